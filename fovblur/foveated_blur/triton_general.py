"""The blur for any border, a sigma for each axis, OpenCV's tables, and weights of one's own, in Triton.

A program makes one tile of one plane: of a batch, or of a list of images of different sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovblur.foveated_blur.params import BlurGradients, BlurParams, listed_images
from fovblur.foveated_blur.triton_parts import (
    TILE_PRODUCTS,
    as_float32,
    check_grid,
    element_type,
    launching_on,
    load_pixels,
    place_of_program,
    read_axis,
    read_fovea,
    scale_of,
    store_pixels,
)
from fovblur.foveated_blur.triton_tile import filtered_tile, has_slope, radius_along, weight_at


def is_general(params: BlurParams) -> bool:
    """Return whether a call takes options that only these kernels serve."""
    return params.border != "reflect" or params.sigma.ndim == 2 or params.tables or params.weight is not None


@triton.jit
def _write_tile(
    source, target, weight_of, sigma_of, kernel_size_of, gain_of, fixation_of, mean_of, std_of, decay, scale,
    sample, channel, tile_row, tile_column, height, width,
    in_c, in_h, in_w, out_c, out_h, out_w, weight_h, weight_w,
    sigma_b, sigma_a, kernel_size_b, kernel_size_a, gain_b, fixation_b,
    ADJOINT: tl.constexpr, BORDER: tl.constexpr, TABLES: tl.constexpr, FALLOFF: tl.constexpr,
    NORMALISE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write one tile of y = w x + (1 - w) A_h x A_w^T, normalised, or with ADJOINT of w g + A_h^T (1 - w) g A_w."""
    first_row, first_column = tile_row * TILE, tile_column * TILE
    source += channel.to(tl.int64) * in_c
    target += channel.to(tl.int64) * out_c
    sigma_of += sample * sigma_b
    kernel_size_of += sample * kernel_size_b
    sigma_h, kernel_radius_h = read_axis(sigma_of, kernel_size_of)
    sigma_w, kernel_radius_w = read_axis(sigma_of + sigma_a, kernel_size_of + kernel_size_a)
    radius_h = radius_along(kernel_radius_h, height, BORDER)
    radius_w = radius_along(kernel_radius_w, width, BORDER)
    gain, cy, cx, unit, farthest = read_fovea(gain_of, fixation_of, sample, gain_b, fixation_b, height, width, decay,
                                              FALLOFF)  # fmt: skip
    y, _, _, _ = filtered_tile(
        source, weight_of, first_row, first_column, sigma_h, sigma_w, radius_h, radius_w, gain, cy, cx, unit, farthest,
        in_h, in_w, weight_h, weight_w, height, width,
        ADJOINT, False, BORDER, TABLES, FALLOFF, OPERAND, PRECISION, TILE)  # fmt: skip
    i, j = first_row + tl.arange(0, TILE), first_column + tl.arange(0, TILE)
    x = load_pixels(source, i, j, in_h, in_w, height, width)
    weight = gain * weight_at(i, j, weight_of, gain, cy, cx, unit, farthest, weight_h, weight_w, height, width,
                              FALLOFF)  # fmt: skip
    if ADJOINT:
        y = weight * x + y
    else:
        y = tl.where(weight == 0.0, y, weight * x + (1.0 - weight) * y)
    y = tl.where((kernel_radius_h == 0) & (kernel_radius_w == 0), x, y)
    if NORMALISE:
        if ADJOINT:
            y = y * scale / tl.load(std_of + channel)
        else:
            y = (y * scale - tl.load(mean_of + channel)) / tl.load(std_of + channel)
    store_pixels(target, i, j, out_h, out_w, height, width, y)


@triton.jit
def _general_blur_kernel(
    source, target, sigma_of, kernel_size_of, gain_of, fixation_of, weight_of, mean_of, std_of,
    decay, scale, channels, height, width, tile_rows, tile_columns,
    in_b, in_c, in_h, in_w, out_b, out_c, out_h, out_w,
    sigma_b, sigma_a, kernel_size_b, kernel_size_a, gain_b, fixation_b, weight_b, weight_h, weight_w,
    ADJOINT: tl.constexpr, BORDER: tl.constexpr, TABLES: tl.constexpr, FALLOFF: tl.constexpr,
    NORMALISE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Compute one tile of a batch of images, or of the adjoint."""
    tile_column, tile_row, channel, sample = place_of_program(channels, tile_rows, tile_columns)
    _write_tile(
        source + sample * in_b, target + sample * out_b, weight_of + sample * weight_b,
        sigma_of, kernel_size_of, gain_of, fixation_of, mean_of, std_of, decay, scale,
        sample, channel, tile_row, tile_column, height, width,
        in_c, in_h, in_w, out_c, out_h, out_w, weight_h, weight_w,
        sigma_b, sigma_a, kernel_size_b, kernel_size_a, gain_b, fixation_b,
        ADJOINT, BORDER, TABLES, FALLOFF, NORMALISE, OPERAND, PRECISION, TILE)  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def _list_blur_kernel(
    table, sigma_of, kernel_size_of, gain_of, fixation_of, mean_of, std_of, decay, scale, count,
    sigma_b, sigma_a, kernel_size_b, kernel_size_a, gain_b, fixation_b,
    SOURCE: tl.constexpr, TARGET: tl.constexpr, FIELDS: tl.constexpr,
    BORDER: tl.constexpr, TABLES: tl.constexpr, FALLOFF: tl.constexpr,
    NORMALISE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Compute one tile of a list of images. `table` is that of listed_images, whose docstring numbers the fields."""
    program = tl.program_id(0).to(tl.int64)
    sample, last = program * 0, program * 0 + count - 1
    while sample < last:  # binary search for the last image whose first tile is not after this one
        middle = (sample + last + 1) // 2
        is_later = tl.load(table + middle * FIELDS + (FIELDS - 1)) > program
        sample, last = tl.where(is_later, sample, middle), tl.where(is_later, middle - 1, last)
    fields = table + sample * FIELDS
    height, width = tl.load(fields + 9).to(tl.int32), tl.load(fields + 10).to(tl.int32)
    tile_rows, tile_columns = tl.cdiv(height, TILE), tl.cdiv(width, TILE)
    tile = (program - tl.load(fields + FIELDS - 1)).to(tl.int32)
    _write_tile(
        tl.load(fields).to(tl.pointer_type(SOURCE)), tl.load(fields + 4).to(tl.pointer_type(TARGET)),
        tl.load(fields + 11).to(tl.pointer_type(tl.float32)),
        sigma_of, kernel_size_of, gain_of, fixation_of, mean_of, std_of, decay, scale,
        sample, tile // (tile_rows * tile_columns), tile // tile_columns % tile_rows, tile % tile_columns,
        height, width, tl.load(fields + 1), tl.load(fields + 2), tl.load(fields + 3),
        tl.load(fields + 5), tl.load(fields + 6), tl.load(fields + 7), tl.load(fields + 12), tl.load(fields + 13),
        sigma_b, sigma_a, kernel_size_b, kernel_size_a, gain_b, fixation_b,
        False, BORDER, TABLES, FALLOFF, NORMALISE, OPERAND, PRECISION, TILE)  # fmt: skip


@triton.jit
def _general_gradient_kernel(
    grad, images, of_sigma, of_gain, sigma_of, kernel_size_of, gain_of, fixation_of, weight_of, std_of,
    decay, scale, channels, height, width, tile_rows, tile_columns,
    grad_b, grad_c, grad_h, grad_w, in_b, in_c, in_h, in_w,
    sigma_b, sigma_a, kernel_size_b, kernel_size_a, gain_b, fixation_b, weight_b, weight_h, weight_w,
    BORDER: tl.constexpr, TABLES: tl.constexpr, FALLOFF: tl.constexpr, NORMALISE: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sum a tile of dL/dsigma_h = sum g (1 - w) A_h' x A_w^T, of sigma_w, and dL/dgain = sum g f (x - A_h x A_w^T)."""
    tile_column, tile_row, channel, sample = place_of_program(channels, tile_rows, tile_columns)
    first_row, first_column = tile_row * TILE, tile_column * TILE
    images += sample * in_b + channel.to(tl.int64) * in_c
    grad += sample * grad_b + channel.to(tl.int64) * grad_c
    weight_of += sample * weight_b
    sigma_of += sample * sigma_b
    kernel_size_of += sample * kernel_size_b
    sigma_h, radius_h = read_axis(sigma_of, kernel_size_of)
    sigma_w, radius_w = read_axis(sigma_of + sigma_a, kernel_size_of + kernel_size_a)
    radius_h = radius_along(radius_h, height, BORDER)
    radius_w = radius_along(radius_w, width, BORDER)
    gain, cy, cx, unit, farthest = read_fovea(gain_of, fixation_of, sample, gain_b, fixation_b, height, width, decay,
                                              FALLOFF)  # fmt: skip
    sigma_h_sum, sigma_w_sum, gain_sum = 0.0, 0.0, 0.0
    if (radius_h > 0) | (radius_w > 0) | (sigma_h != sigma_h) | (sigma_w != sigma_w):
        y, slope_h, slope_w, bad = filtered_tile(
            images, weight_of, first_row, first_column, sigma_h, sigma_w, radius_h, radius_w,
            gain, cy, cx, unit, farthest, in_h, in_w, weight_h, weight_w, height, width,
            False, True, BORDER, TABLES, FALLOFF, OPERAND, PRECISION, TILE)  # fmt: skip
        i, j = first_row + tl.arange(0, TILE), first_column + tl.arange(0, TILE)
        inside = (i < height)[:, None] & (j < width)[None, :]
        g = load_pixels(grad, i, j, grad_h, grad_w, height, width)
        if NORMALISE:
            g *= scale / tl.load(std_of + channel)
        x = load_pixels(images, i, j, in_h, in_w, height, width)
        f = weight_at(i, j, weight_of, gain, cy, cx, unit, farthest, weight_h, weight_w, height, width,
                      FALLOFF)  # fmt: skip
        through = tl.where(inside, g * (1.0 - gain * f), 0.0)
        not_finite = tl.where(bad > 0.0, float("nan"), 0.0)
        sigma_h_sum = tl.where(has_slope(radius_h, TABLES), tl.sum(through * slope_h) + not_finite, 0.0)
        sigma_w_sum = tl.where(has_slope(radius_w, TABLES), tl.sum(through * slope_w) + not_finite, 0.0)
        gain_sum = tl.sum(tl.where(inside, g * f * (x - y), 0.0)) + not_finite
    program = tl.program_id(0).to(tl.int64)
    tl.store(of_sigma + 2 * program, sigma_h_sum)
    tl.store(of_sigma + 2 * program + 1, sigma_w_sum)
    tl.store(of_gain + program, gain_sum)


def general_configuration(dtype: torch.dtype) -> dict:
    """Return compile-time constants and warps for images of one dtype."""
    operand, precision = TILE_PRODUCTS.get(dtype, (tl.float16, "ieee"))
    return {"OPERAND": operand, "PRECISION": precision, "TILE": 32, "num_warps": 4}


def blur_general(source: Tensor, target: Tensor, adjoint: bool, params: BlurParams) -> None:
    """Blur images, or apply the adjoint to gradients; not under the border replicate, whose blur is not symmetric."""
    configuration = general_configuration(source.dtype)
    programs, tiles = tiles_of(source.shape, configuration["TILE"])
    with launching_on(source):
        _general_blur_kernel[(programs,)](
            source, target, *_tensors(params), _map(params), *_normalisation(params),
            as_float32(params.decay), scale_of(source.dtype), *source.shape[1:], *tiles,
            *source.stride(), *target.stride(), *_strides(params), *_map_strides(params),
            ADJOINT=adjoint, **_options(params), **configuration,
        )  # fmt: skip


def triton_forward_list(
    images: Sequence[Tensor], out: Sequence[Tensor], params: BlurParams, weights: Sequence[Tensor] | None = None
) -> None:
    """Blur images (C, H, W) of any sizes into `out` in one launch; arguments as of native.cuda_forward_list."""
    first = images[0]
    configuration = general_configuration(first.dtype)
    grids = (map(triton.cdiv, image.shape, (1, configuration["TILE"], configuration["TILE"])) for image in images)
    tiles = [math.prod(grid) for grid in grids]
    check_grid(f"a list of {len(images)} images", sum(tiles))
    if sum(tiles) == 0:
        return
    table = listed_images(images, out, weights, tiles)
    options = _options(params) | ({} if weights is None else {"FALLOFF": ""})
    with launching_on(first):
        _list_blur_kernel[(sum(tiles),)](
            table, *_tensors(params), *_normalisation(params), as_float32(params.decay), scale_of(first.dtype),
            len(images), *_strides(params),
            SOURCE=element_type(first.dtype), TARGET=element_type(out[0].dtype), FIELDS=table.shape[1],
            **options, **configuration,
        )  # fmt: skip


def general_parameter_gradients(grad: Tensor, images: Tensor, grads: BlurGradients, params: BlurParams) -> None:
    """Fill the gradients of sigma and gain."""
    batch = len(images)
    configuration = general_configuration(images.dtype)
    programs, tiles = tiles_of(images.shape, configuration["TILE"])
    of_sigma, of_gain = (
        params.sigma.new_empty(batch, programs // batch, 2),
        params.gain.new_empty(batch, programs // batch),
    )
    with launching_on(images):
        _general_gradient_kernel[(programs,)](
            grad, images, of_sigma, of_gain, *_tensors(params), _map(params),
            _normalisation(params)[1], as_float32(params.decay), scale_of(images.dtype), *images.shape[1:], *tiles,
            *grad.stride(), *images.stride(), *_strides(params), *_map_strides(params),
            **_options(params), **configuration,
        )  # fmt: skip
    if grads.sigma is not None:
        torch.sum(of_sigma, dim=1 if grads.sigma.ndim == 2 else (1, 2), out=grads.sigma)
    if grads.gain is not None:
        torch.sum(of_gain, dim=1, out=grads.gain)


def tiles_of(shape: torch.Size, tile: int) -> tuple[int, tuple[int, int]]:
    """Return the number of programs, one for each tile, and how many tiles a plane has along y and x."""
    batch, channels, height, width = shape
    tiles = triton.cdiv(height, tile), triton.cdiv(width, tile)
    programs = batch * channels * tiles[0] * tiles[1]
    check_grid(f"a batch of shape {tuple(shape)}", programs)
    return programs, tiles


def _tensors(params: BlurParams) -> tuple[Tensor, ...]:
    return params.sigma, params.kernel_size, params.gain, params.fixation


def _normalisation(params: BlurParams) -> tuple[Tensor, Tensor]:
    """Return mean and std; a missing one is not read."""
    mean, std = params.mean, params.std
    return params.sigma if mean is None else mean, params.sigma if std is None else std


def _map(params: BlurParams) -> Tensor:
    """Return the map of weights; a missing one is not read."""
    return params.sigma if params.weight is None else params.weight


def _strides(params: BlurParams) -> tuple[int, ...]:
    """Return the strides of sigma and kernel size from sample to sample and axis to axis, and those of the others."""
    axis = 1 if params.sigma.ndim == 2 else 0
    sigma, kernel_size = params.sigma.stride(0), params.kernel_size.stride(0)
    return sigma, axis, kernel_size, axis, params.gain.stride(0), params.fixation.stride(0)


def _map_strides(params: BlurParams) -> tuple[int, ...]:
    return (0, 0, 0) if params.weight is None else params.weight.stride()


def _options(params: BlurParams) -> dict:
    falloff = params.falloff if params.weight is None else ""
    normalise = params.std is not None
    return {"BORDER": params.border, "TABLES": params.tables, "FALLOFF": falloff, "NORMALISE": normalise}
