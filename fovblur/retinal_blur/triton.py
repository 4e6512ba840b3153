"""The blend of Gaussian levels in Triton: a program makes one tile of a plane from the levels with weight in it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovblur.foveated_blur.triton_general import general_configuration, tiles_of
from fovblur.foveated_blur.triton_parts import launching_on, load_pixels, place_of_program, read_axis, store_pixels
from fovblur.foveated_blur.triton_tile import filtered_tile, radius_along
from fovblur.foveated_blur.validation import constant
from fovblur.retinal_blur.params import LevelParams


@triton.jit
def _blend_kernel(
    source, target, level_of, sigma_of, kernel_size_of,
    levels, channels, height, width, tile_rows, tile_columns,
    in_b, in_c, in_h, in_w, out_b, out_c, out_h, out_w, level_b, level_h, level_w,
    BORDER: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Compute one tile of y = sum_k max(0, 1 - |level - k|) A_k x A_k^T."""
    tile_column, tile_row, channel, sample = place_of_program(channels, tile_rows, tile_columns)
    first_row, first_column = tile_row * TILE, tile_column * TILE
    source += sample * in_b + channel.to(tl.int64) * in_c
    target += sample * out_b + channel.to(tl.int64) * out_c
    i, j = first_row + tl.arange(0, TILE), first_column + tl.arange(0, TILE)
    x = load_pixels(source, i, j, in_h, in_w, height, width)
    level = load_pixels(level_of + sample * level_b, i, j, level_h, level_w, height, width)
    inside = (i < height)[:, None] & (j < width)[None, :]
    last = (levels - 1).to(tl.float32)
    lowest = tl.maximum(tl.min(tl.where(inside & (level >= 0.0), level, last)), 0.0)
    highest = tl.minimum(tl.max(tl.where(inside & (level <= last), level, 0.0)), last)
    y = level * 0.0  # NaN where the level is
    for k in range(tl.floor(lowest).to(tl.int32), tl.ceil(highest).to(tl.int32) + 1):
        sigma, radius = read_axis(sigma_of + k, kernel_size_of + k)
        blurred = x
        if radius > 0:
            blurred, _, _, _ = filtered_tile(
                source, level_of, first_row, first_column, sigma, sigma,
                radius_along(radius, height, BORDER), radius_along(radius, width, BORDER), 0.0, 0.0, 0.0, 0.0, 0.0,
                in_h, in_w, level_h, level_w, height, width,
                False, False, BORDER, False, "", OPERAND, PRECISION, TILE)  # fmt: skip
        weight = 1.0 - tl.abs(level - k)
        y += tl.where(weight > 0.0, weight * blurred, 0.0)
    store_pixels(target, i, j, out_h, out_w, height, width, y)


def triton_forward(images: Tensor, out: Tensor, params: LevelParams) -> None:
    """Blend images into `out`, both (B, C, H, W) of any strides."""
    configuration = general_configuration(images.dtype)
    programs, tiles = tiles_of(images.shape, configuration["TILE"])
    sigmas = constant(params.sigmas, torch.float32, images)
    kernel_sizes = constant(params.kernel_sizes, torch.int32, images)
    with launching_on(images):
        _blend_kernel[(programs,)](
            images, out, params.level, sigmas, kernel_sizes, len(params.sigmas), *images.shape[1:], *tiles,
            *images.stride(), *out.stride(), *params.level.stride(),
            BORDER=params.border, **configuration,
        )  # fmt: skip
