"""The blur as two small matrix products a tile, A_h X A_w^T, in Triton.

A is a banded matrix whose rows sum to 1. The reflecting border is folded in: a tap outside the image is added to the
column that it mirrors to. Tiles of A are computed in registers from sigma, so the same code serves any radius, in one
launch a batch. The adjoint is A^T = E A E^-1, where E counts border pixels half; the derivative in sigma is a band too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovblur.foveated_blur.params import BlurGradients, BlurParams

# Operand type and precision of the products by image type. uint8 and float16 pixels are exact in float16, whose taps
# are rounded by 2^-12; bfloat16 pixels are exact in tf32; float32 takes three tf32 products, accurate to 1e-6.
_PRODUCTS = {
    torch.uint8: (tl.float16, "ieee"),
    torch.float16: (tl.float16, "ieee"),
    torch.bfloat16: (tl.float32, "tf32"),
    torch.float32: (tl.float32, "tf32x3"),
}
_LARGEST_GRID = 2**31 - 1
_TAP, _SLOPE, _SUPPORT = (tl.constexpr(kind) for kind in range(3))  # kinds of window


@triton.jit
def _window(offset, sigma, radius, moment, KIND: tl.constexpr):
    """Return the unnormalised Gaussian at integer offsets, its slope in sigma, or 1; always 0 beyond the radius."""
    inside = tl.abs(offset) <= radius
    if KIND == _SUPPORT:
        value = tl.where(inside, 1.0, 0.0)
    else:
        x = offset.to(tl.float32)
        u = x / sigma
        value = tl.where(inside, tl.exp(-0.5 * u * u), 0.0)
        if KIND == _SLOPE:
            value *= (x * x - moment) / (sigma * sigma * sigma)
    return value


@triton.jit
def _band(i, p, n, sigma, radius, moment, KIND: tl.constexpr):
    """Return A[i, p] for broadcasting indices: the sum of the taps of output i on pixel p of n under REFLECT_101."""
    period = tl.maximum(2 * (n - 1), 1)
    total = tl.zeros_like(i + p).to(tl.float32)
    # Pixel p appears at positions p + m period and, except for the two border pixels, at -p + m period. Positions lie
    # in [-radius, n - 1 + radius], so |m| is at most (radius + n - 1) / period, rounded up.
    wraps = (radius + n - 1 + period - 1) // period
    lowest = tl.min(i) - radius
    highest = tl.max(i) + radius
    first, last = tl.min(p), tl.max(p)
    mirrors = (p > 0) & (p < n - 1)
    for m in range(-wraps, wraps + 1):
        shift = m * period
        if (first + shift <= highest) & (last + shift >= lowest):
            total += _window(p + shift - i, sigma, radius, moment, KIND)
        if (shift - last <= highest) & (shift - first >= lowest):
            total += tl.where(mirrors, _window(shift - p - i, sigma, radius, moment, KIND), 0.0)
    return total


@triton.jit
def _sums(sigma, radius, OPERAND: tl.constexpr):
    """Return the sums of the taps, rounded as operands so that a constant image stays constant, and of taps i^2."""
    t = tl.arange(0, 64)
    total = 0.0
    moment = 0.0
    for start in range(0, radius + 1, 64):
        tap = _window(start + t, sigma, radius, 0.0, _TAP)
        total += tl.sum(tap.to(OPERAND).to(tl.float32))
        moment += tl.sum(tap * (start + t) * (start + t))
    return 2.0 * total - 1.0, 2.0 * moment


@triton.jit
def _load(plane, i, j, stride_h, stride_w, height, width):
    """Load pixels [i, j] of a plane as float32, 0 outside it."""
    where = i.to(tl.int64)[:, None] * stride_h + j.to(tl.int64)[None, :] * stride_w
    return tl.load(plane + where, mask=(i < height)[:, None] & (j < width)[None, :], other=0).to(tl.float32)


@triton.jit
def _store(plane, i, j, stride_h, stride_w, height, width, y):
    """Store pixels [i, j] of a plane, rounded and clamped for uint8."""
    if plane.dtype.element_ty == tl.uint8:
        y = tl.where(y > 0.0, tl.minimum(y, 255.0), 0.0)  # NaN becomes 0
        y = ((y + 12582912.0) - 12582912.0).to(tl.int32)  # 1.5 * 2^23: rounds to nearest, ties to even
    where = i.to(tl.int64)[:, None] * stride_h + j.to(tl.int64)[None, :] * stride_w
    tl.store(plane + where, y.to(plane.dtype.element_ty), mask=(i < height)[:, None] & (j < width)[None, :])


@triton.jit
def _one_minus_cos(s):
    half = tl.sin(s * 0.5)
    return 2.0 * half * half


@triton.jit
def _acuity(i, j, cy, cx, height, width, decay, FALLOFF: tl.constexpr):
    """Return f(min(1, d / D)) at the pixels of a tile."""
    reach_y, reach_x = height - 1 - cy, width - 1 - cx
    is_default = (cy == (height // 2).to(tl.float32)) & (cx == (width // 2).to(tl.float32))
    reach_y = tl.where(is_default, reach_y, tl.maximum(tl.abs(cy), tl.abs(reach_y)))
    reach_x = tl.where(is_default, reach_x, tl.maximum(tl.abs(cx), tl.abs(reach_x)))
    reach = tl.sqrt(reach_y * reach_y + reach_x * reach_x)
    dy, dx = i.to(tl.float32)[:, None] - cy, j.to(tl.float32)[None, :] - cx
    distance = tl.sqrt(dy * dy + dx * dx)
    u = tl.where(distance < reach, distance / tl.maximum(reach, 1e-30), tl.where(distance > 0, 1.0, 0.0))
    if FALLOFF == "exp":
        f = tl.exp(-decay * u)
    elif FALLOFF == "linear":
        f = 1.0 - u
    elif FALLOFF == "quadratic":
        f = 1.0 - u * u
    elif FALLOFF == "log":
        f = 1.0 - tl.log(u / 0.5819767068693265 + 1.0)  # 1 / (e - 1)
    else:
        target = u / 0.5729
        s = tl.exp(tl.log(tl.maximum(6.0 * target, 1e-30)) / 3.0)
        for _ in range(5):  # Newton on s - sin s = target; near 0 the start is exact and the difference cancels
            s -= tl.where(s > 0.1, (s - tl.sin(s) - target) / tl.maximum(_one_minus_cos(s), 1e-6), 0.0)
        f = 1.0 - 0.5729 * _one_minus_cos(s)
    return f


@triton.jit
def _border_share(i, n):
    """Return the diagonal of E: 1/2 for the border pixels, else 1."""
    return tl.where((i == 0) | (i == n - 1), 0.5, 1.0)


@triton.jit
def _count_of_sign(plane, i, j, p_first, p_end, q_first, q_end, stride_h, stride_w, height, width, radius_h, radius_w,
                   NEGATIVE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """Return the number of NaN or infinite pixels of one sign in the support of each output of a tile."""
    count = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for p_start in range(p_first, p_end, ROWS):
        p = p_start + tl.arange(0, ROWS)
        along = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for q_start in range(q_first, q_end, DEPTH):
            q = q_start + tl.arange(0, DEPTH)
            x = _load(plane, p, q, stride_h, stride_w, height, width)
            bad = tl.where((x == (float("-inf") if NEGATIVE else float("inf"))) | (x != x), 1.0, 0.0)
            support = _band(j[None, :], q[:, None], width, 1.0, radius_w, 0.0, _SUPPORT)
            along += tl.dot(bad, tl.minimum(support, 1.0), input_precision="tf32")
        support = _band(i[:, None], p[None, :], height, 1.0, radius_h, 0.0, _SUPPORT)
        count += tl.dot(tl.minimum(support, 1.0), tl.minimum(along, 1.0), input_precision="tf32")
    return count


@triton.jit
def _spread_non_finite(y, plane, i, j, p_first, p_end, q_first, q_end, stride_h, stride_w, height, width,
                       radius_h, radius_w, BLOCK: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """Overwrite y with NaN or infinity where the support holds such pixels, which the products skip."""
    above = _count_of_sign(plane, i, j, p_first, p_end, q_first, q_end, stride_h, stride_w, height, width,
                           radius_h, radius_w, False, BLOCK, ROWS, DEPTH) > 0  # fmt: skip
    below = _count_of_sign(plane, i, j, p_first, p_end, q_first, q_end, stride_h, stride_w, height, width,
                           radius_h, radius_w, True, BLOCK, ROWS, DEPTH) > 0  # fmt: skip
    return tl.where(above & below, float("nan"), tl.where(above, float("inf"), tl.where(below, float("-inf"), y)))


@triton.jit
def _place(channels, row_tiles, column_tiles, BLOCK: tl.constexpr):
    """Return the program's tile, sample, channel, first row and column, and the indices of its rows and columns."""
    tile = tl.program_id(0).to(tl.int64)
    column_tile = (tile % column_tiles).to(tl.int32)
    row_tile = (tile // column_tiles % row_tiles).to(tl.int32)
    plane = tile // (column_tiles * row_tiles)
    channel, sample = plane % channels, plane // channels
    first_row, first_column = row_tile * BLOCK, column_tile * BLOCK
    i, j = first_row + tl.arange(0, BLOCK), first_column + tl.arange(0, BLOCK)
    return tile, sample, channel, first_row, first_column, i, j


@triton.jit
def _gaussian(sigma_of, kernel_size_of, sample, sigma_b, kernel_size_b, height, width):
    """Return a sample's sigma and its radius: of the kernel, along y, and along x."""
    sigma = tl.load(sigma_of + sample * sigma_b)
    # A negative or NaN sigma, which is not checked on a GPU, becomes NaN taps at a radius of 1.
    radius = tl.where(sigma > 0.0, tl.load(kernel_size_of + sample * kernel_size_b) // 2, tl.where(sigma == 0.0, 0, 1))
    sigma = tl.where(sigma > 0.0, sigma, tl.where(sigma == 0.0, 1.0, float("nan")))
    radius_h = tl.where(height == 1, 0, radius)  # along a side of one pixel the blur is the identity
    radius_w = tl.where(width == 1, 0, radius)
    return sigma, radius, radius_h, radius_w


@triton.jit
def _fovea(gain_of, fixation_of, sample, gain_b, fixation_b):
    """Return a sample's gain and the y and x of its fixation."""
    fixation = fixation_of + sample * fixation_b
    return tl.load(gain_of + sample * gain_b), tl.load(fixation), tl.load(fixation + 1)


@triton.jit
def _blur_kernel(
    source, target, sigma_of, kernel_size_of, gain_of, fixation_of, mean_of, std_of,
    decay, scale, channels, height, width, row_tiles, column_tiles,
    in_b, in_c, in_h, in_w, out_b, out_c, out_h, out_w, sigma_b, kernel_size_b, gain_b, fixation_b,
    ADJOINT: tl.constexpr, FALLOFF: tl.constexpr, NORMALISE: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute one tile of y = w x + (1 - w) A_h x A_w^T, normalised, or with ADJOINT of w g + A_h^T (1 - w) g A_w."""
    _, sample, channel, first_row, first_column, i, j = _place(channels, row_tiles, column_tiles, BLOCK)
    source += sample * in_b + channel * in_c
    target += sample * out_b + channel * out_c

    sigma, radius, radius_h, radius_w = _gaussian(sigma_of, kernel_size_of, sample, sigma_b, kernel_size_b,
                                                  height, width)  # fmt: skip
    gain, cy, cx = _fovea(gain_of, fixation_of, sample, gain_b, fixation_b)
    sum_h, _ = _sums(sigma, radius_h, OPERAND)
    sum_w, _ = _sums(sigma, radius_w, OPERAND)
    p_first, p_end = tl.maximum(first_row - radius_h, 0), tl.minimum(first_row + BLOCK + radius_h, height)
    # Steps of DEPTH are aligned to the left border so that pixels are read several at a time; taps beyond the radius
    # are 0.
    q_first = tl.maximum(first_column - radius_w, 0) // DEPTH * DEPTH
    q_end = tl.minimum(first_column + BLOCK + radius_w, width)

    y = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    bad = 0.0
    for p_start in range(p_first, p_end, ROWS):
        p = p_start + tl.arange(0, ROWS)
        along = tl.zeros((ROWS, BLOCK), dtype=tl.float32)  # rows p of the image, filtered along x
        for q_start in range(q_first, q_end, DEPTH):
            q = q_start + tl.arange(0, DEPTH)
            x = _load(source, p, q, in_h, in_w, height, width)
            if ADJOINT:
                x *= 1.0 - gain * _acuity(p, q, cy, cx, height, width, decay, FALLOFF)
                x /= _border_share(p, height)[:, None] * _border_share(q, width)[None, :]
            finite = tl.abs(x) < float("inf")
            bad = tl.maximum(bad, tl.max(tl.where(finite, 0.0, 1.0)))
            across = _band(j[None, :], q[:, None], width, sigma, radius_w, 0.0, _TAP).to(OPERAND)
            along = tl.dot(tl.where(finite, x, 0.0).to(OPERAND), across, along, input_precision=PRECISION)
        down = _band(i[:, None], p[None, :], height, sigma, radius_h, 0.0, _TAP).to(OPERAND)
        y = tl.dot(down, (along / sum_w).to(OPERAND), y, input_precision=PRECISION)
    y /= sum_h
    if bad > 0.0:
        y = _spread_non_finite(y, source, i, j, p_first, p_end, q_first, q_end, in_h, in_w, height, width,
                               radius_h, radius_w, BLOCK, ROWS, DEPTH)  # fmt: skip

    x = _load(source, i, j, in_h, in_w, height, width)
    weight = gain * _acuity(i, j, cy, cx, height, width, decay, FALLOFF)
    if ADJOINT:
        y = weight * x + _border_share(i, height)[:, None] * _border_share(j, width)[None, :] * y
    else:
        y = tl.where(weight == 0.0, y, weight * x + (1.0 - weight) * y)
    y = tl.where(radius == 0, x, y)
    if NORMALISE:
        if ADJOINT:
            y = y * scale / tl.load(std_of + channel)
        else:
            y = (y * scale - tl.load(mean_of + channel)) / tl.load(std_of + channel)
    _store(target, i, j, out_h, out_w, height, width, y)


@triton.jit
def _parameter_gradient_kernel(
    grad, images, of_sigma, of_gain, sigma_of, kernel_size_of, gain_of, fixation_of, std_of,
    decay, scale, channels, height, width, row_tiles, column_tiles,
    grad_b, grad_c, grad_h, grad_w, in_b, in_c, in_h, in_w, sigma_b, kernel_size_b, gain_b, fixation_b,
    FALLOFF: tl.constexpr, NORMALISE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Sum one tile of dL/dsigma = sum g (1 - w) (A' x A^T + A x A'^T) and of dL/dgain = sum g f (x - A x A^T)."""
    tile, sample, channel, first_row, first_column, i, j = _place(channels, row_tiles, column_tiles, BLOCK)
    images += sample * in_b + channel * in_c
    grad += sample * grad_b + channel * grad_c

    sigma, _, radius_h, radius_w = _gaussian(sigma_of, kernel_size_of, sample, sigma_b, kernel_size_b,
                                             height, width)  # fmt: skip
    sum_h, moment_h = _sums(sigma, radius_h, OPERAND)
    sum_w, moment_w = _sums(sigma, radius_w, OPERAND)
    moment_h /= sum_h
    moment_w /= sum_w
    # Steps of DEPTH are aligned to the left border so that pixels are read several at a time; taps beyond the radius
    # are 0.
    q_first = tl.maximum(first_column - radius_w, 0) // DEPTH * DEPTH
    q_end = tl.minimum(first_column + BLOCK + radius_w, width)

    y = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    slope = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for p_start in range(tl.maximum(first_row - radius_h, 0), tl.minimum(first_row + BLOCK + radius_h, height), ROWS):
        p = p_start + tl.arange(0, ROWS)
        along = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        along_slope = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for q_start in range(q_first, q_end, DEPTH):
            q = q_start + tl.arange(0, DEPTH)
            x = _load(images, p, q, in_h, in_w, height, width).to(OPERAND)
            across = _band(j[None, :], q[:, None], width, sigma, radius_w, 0.0, _TAP).to(OPERAND)
            across_slope = _band(j[None, :], q[:, None], width, sigma, radius_w, moment_w, _SLOPE).to(OPERAND)
            along = tl.dot(x, across, along, input_precision=PRECISION)
            along_slope = tl.dot(x, across_slope, along_slope, input_precision=PRECISION)
        along = (along / sum_w).to(OPERAND)
        along_slope = (along_slope / sum_w).to(OPERAND)
        down = _band(i[:, None], p[None, :], height, sigma, radius_h, 0.0, _TAP).to(OPERAND)
        down_slope = _band(i[:, None], p[None, :], height, sigma, radius_h, moment_h, _SLOPE).to(OPERAND)
        y = tl.dot(down, along, y, input_precision=PRECISION)
        slope = tl.dot(down_slope, along, slope, input_precision=PRECISION)
        slope = tl.dot(down, along_slope, slope, input_precision=PRECISION)

    # The products need no gain, fixation or radius of the kernel, so no register holds them meanwhile.
    gain, cy, cx = _fovea(gain_of, fixation_of, sample, gain_b, fixation_b)
    g = _load(grad, i, j, grad_h, grad_w, height, width)
    if NORMALISE:
        g = g * scale / tl.load(std_of + channel)
    acuity = _acuity(i, j, cy, cx, height, width, decay, FALLOFF)
    x = _load(images, i, j, in_h, in_w, height, width)
    is_blurred = (radius_h > 0) | (radius_w > 0) | (sigma != sigma)
    inside = (i < height)[:, None] & (j < width)[None, :] & is_blurred
    tl.store(of_sigma + tile, tl.sum(tl.where(inside, g * (1.0 - gain * acuity) * slope / sum_h, 0.0)))
    tl.store(of_gain + tile, tl.sum(tl.where(inside, g * acuity * (x - y / sum_h), 0.0)))


def launch_configuration(dtype: torch.dtype) -> dict:
    """Return compile-time constants and warps of the blur and its adjoint for sources of one dtype.

    Chosen for sm_86 by compilation: no spills, two blocks resident on a multiprocessor, and within that the fewest
    exponentials a pixel, since every product makes its part of the band anew.
    """
    operand, precision = _PRODUCTS[dtype]
    block = 32 if dtype == torch.float32 else 64
    return {"OPERAND": operand, "PRECISION": precision, "BLOCK": block, "ROWS": 64, "DEPTH": 16, "num_warps": 4}


def parameter_gradient_configuration(dtype: torch.dtype) -> dict:
    """Return the same for the gradients of sigma and gain."""
    return launch_configuration(dtype) | {"BLOCK": 32, "ROWS": 32}


def triton_forward(images: Tensor, out: Tensor, params: BlurParams) -> None:
    """Blur images into `out`, both (B, C, H, W) of any strides."""
    _blur(images, out, False, params)


def triton_backward(grad: Tensor, images: Tensor, grads: BlurGradients, params: BlurParams) -> None:
    """Fill `grads` for the gradient of the result."""
    if grads.images is not None:
        _blur(grad, grads.images, True, params)
    if grads.sigma is None and grads.gain is None:
        return
    batch, channels, height, width = images.shape
    configuration = parameter_gradient_configuration(images.dtype)
    row_tiles, column_tiles, tiles = _tiles(images, configuration["BLOCK"])
    sigma, kernel_size, gain, fixation, _, std, falloff, decay = params
    of_sigma, of_gain = (sigma.new_empty(batch, tiles // batch) for _ in range(2))
    with _device_of(images):
        _parameter_gradient_kernel[(tiles,)](
            grad, images, of_sigma, of_gain, sigma, kernel_size, gain, fixation, sigma if std is None else std,
            decay, _scale(images.dtype), channels, height, width, row_tiles, column_tiles,
            *grad.stride(), *images.stride(), *_sample_strides(params),
            FALLOFF=falloff, NORMALISE=std is not None, **configuration,
        )  # fmt: skip
    for total, part in ((grads.sigma, of_sigma), (grads.gain, of_gain)):
        if total is not None:
            torch.sum(part, dim=1, out=total)


def _blur(source: Tensor, target: Tensor, adjoint: bool, params: BlurParams) -> None:
    """Launch the blur of images, or its adjoint on gradients."""
    _, channels, height, width = source.shape
    configuration = launch_configuration(source.dtype)
    row_tiles, column_tiles, tiles = _tiles(source, configuration["BLOCK"])
    sigma, kernel_size, gain, fixation, mean, std, falloff, decay = params
    with _device_of(source):
        _blur_kernel[(tiles,)](
            source, target, sigma, kernel_size, gain, fixation,
            sigma if mean is None else mean, sigma if std is None else std,  # a missing one is not read
            decay, _scale(source.dtype), channels, height, width, row_tiles, column_tiles,
            *source.stride(), *target.stride(), *_sample_strides(params),
            ADJOINT=adjoint, FALLOFF=falloff, NORMALISE=mean is not None, **configuration,
        )  # fmt: skip


def _sample_strides(params: BlurParams) -> tuple[int, ...]:
    return tuple(tensor.stride(0) for tensor in (params.sigma, params.kernel_size, params.gain, params.fixation))


def _tiles(images: Tensor, block: int) -> tuple[int, int, int]:
    """Return the number of tiles along a column, along a row, and in all."""
    batch, channels, height, width = images.shape
    row_tiles, column_tiles = triton.cdiv(height, block), triton.cdiv(width, block)
    tiles = batch * channels * row_tiles * column_tiles
    if tiles > _LARGEST_GRID:
        shape = tuple(images.shape)
        raise ValueError(f"images of shape {shape} need {tiles} blocks; split the batch to stay below 2^31")
    return row_tiles, column_tiles, tiles


def _device_of(images: Tensor) -> torch.cuda.device:
    return torch.cuda.device(images.device if images.is_cuda else -1)


def _scale(dtype: torch.dtype) -> float:
    return 1 / 255 if dtype == torch.uint8 else 1.0
