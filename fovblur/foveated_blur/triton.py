"""The blur as two small matrix products a tile, A_h X A_w^T, in Triton.

A is banded, row-stochastic, and has the reflecting border folded in: a tap that falls outside is added to the column it
mirrors to. Its tiles are made in registers from sigma, so any radius is served by the same code, one launch a batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Operand type of the products and their precision, by image type. uint8 and float16 pixels are exact in float16, whose
# taps cost 2^-12; bfloat16 pixels are exact in tf32; float32 takes three tf32 products, which keep 1e-6.
_PRODUCTS = {
    torch.uint8: (tl.float16, "ieee"),
    torch.float16: (tl.float16, "ieee"),
    torch.bfloat16: (tl.float32, "tf32"),
    torch.float32: (tl.float32, "tf32x3"),
}
_LARGEST_GRID = 2**31 - 1


@triton.jit
def _tap(offset, sigma, radius):
    """Gaussian window at an integer offset, 0 beyond the radius; not normalised."""
    u = offset.to(tl.float32) / sigma
    return tl.where(tl.abs(offset) <= radius, tl.exp(-0.5 * u * u), 0.0)


@triton.jit
def _fold(i, p, n, sigma, radius, INDICATOR: tl.constexpr):
    """A[i, p] for index tiles i and p that broadcast: all taps of output i that land on pixel p of n under REFLECT_101.

    With INDICATOR, 1 where any does: the support, in which underflowed taps count.
    """
    period = tl.maximum(2 * (n - 1), 1)
    total = tl.zeros_like(i + p).to(tl.float32)
    # Positions that show pixel p are p + m period and, but for the two border pixels, -p + m period. Positions lie in
    # [-radius, n - 1 + radius], so |m| is at most (radius + n - 1) / period, rounded up.
    wraps = (radius + n - 1 + period - 1) // period
    lowest = tl.min(i) - radius
    highest = tl.max(i) + radius
    first, last = tl.min(p), tl.max(p)
    mirrors = (p > 0) & (p < n - 1)
    for m in range(-wraps, wraps + 1):
        if (first + m * period <= highest) & (last + m * period >= lowest):
            offset = p + m * period - i
            if INDICATOR:
                total += tl.where(tl.abs(offset) <= radius, 1.0, 0.0)
            else:
                total += _tap(offset, sigma, radius)
        if (m * period - last <= highest) & (m * period - first >= lowest):
            offset = m * period - p - i
            if INDICATOR:
                total += tl.where(mirrors & (tl.abs(offset) <= radius), 1.0, 0.0)
            else:
                total += tl.where(mirrors, _tap(offset, sigma, radius), 0.0)
    return total


@triton.jit
def _load(plane, i, j, stride_h, stride_w, height, width):
    where = i.to(tl.int64)[:, None] * stride_h + j.to(tl.int64)[None, :] * stride_w
    return tl.load(plane + where, mask=(i < height)[:, None] & (j < width)[None, :], other=0)


@triton.jit
def _is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _window_sum(n, sigma, radius, OPERAND: tl.constexpr):
    """Sum of the taps, rounded as the products see them, so that a constant image stays constant."""
    t = tl.arange(0, 64)
    total = 0.0
    for start in range(0, radius + 1, 64):
        total += tl.sum(_tap(start + t, sigma, radius).to(OPERAND).to(tl.float32))
    return 2.0 * total - 1.0


@triton.jit
def _spread(plane, i, j, first_row, first_column, stride_h, stride_w, height, width, radius_h, radius_w, NEGATIVE: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """How many NaN or infinite pixels, of one sign, lie in the support of each output of a tile."""
    count = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for p_start in range(tl.maximum(first_row - radius_h, 0), tl.minimum(first_row + BLOCK + radius_h, height), DEPTH):
        p = p_start + tl.arange(0, DEPTH)
        along = tl.zeros((DEPTH, BLOCK), dtype=tl.float32)
        for q_start in range(tl.maximum(first_column - radius_w, 0), tl.minimum(first_column + BLOCK + radius_w, width), DEPTH):
            q = q_start + tl.arange(0, DEPTH)
            x = _load(plane, p, q, stride_h, stride_w, height, width).to(tl.float32)
            infinite = x == (float("-inf") if NEGATIVE else float("inf"))
            bad = tl.where(infinite | (x != x), 1.0, 0.0)
            support = _fold(j[None, :], q[:, None], width, 1.0, radius_w, True)
            along += tl.dot(bad, tl.where(support > 0, 1.0, 0.0), input_precision="tf32")
        support = _fold(i[:, None], p[None, :], height, 1.0, radius_h, True)
        count += tl.dot(tl.where(support > 0, 1.0, 0.0), tl.where(along > 0, 1.0, 0.0), input_precision="tf32")
    return count


@triton.jit
def _one_minus_cos(s):
    half = tl.sin(s * 0.5)
    return 2.0 * half * half


@triton.jit
def _acuity(u, decay, FALLOFF: tl.constexpr):
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
def _kernel(
    images, out, sigma_of, kernel_size_of, gain_of, fixation_of, mean_of, std_of,
    decay, scale, channels, height, width, row_tiles, column_tiles, tiles,
    in_b, in_c, in_h, in_w, out_b, out_c, out_h, out_w, sigma_b, kernel_size_b, gain_b, fixation_b,
    FALLOFF: tl.constexpr, NORMALISE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    column_tile = (tile % column_tiles).to(tl.int32)
    row_tile = (tile // column_tiles % row_tiles).to(tl.int32)
    plane = tile // (column_tiles * row_tiles)
    channel = plane % channels
    sample = plane // channels
    first_row, first_column = row_tile * BLOCK, column_tile * BLOCK
    i = first_row + tl.arange(0, BLOCK)
    j = first_column + tl.arange(0, BLOCK)
    source = images + sample * in_b + channel * in_c
    target = out + sample * out_b + channel * out_c

    sigma = tl.load(sigma_of + sample * sigma_b)
    radius = tl.where(sigma == 0.0, 0, tl.load(kernel_size_of + sample * kernel_size_b) // 2)
    sigma = tl.where(sigma == 0.0, 1.0, sigma)
    radius_h = tl.where(height == 1, 0, radius)  # along a side of one pixel the blur is the identity
    radius_w = tl.where(width == 1, 0, radius)
    sum_h = _window_sum(height, sigma, radius_h, OPERAND)
    sum_w = _window_sum(width, sigma, radius_w, OPERAND)

    y = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    bad = 0.0
    for p_start in range(tl.maximum(first_row - radius_h, 0), tl.minimum(first_row + BLOCK + radius_h, height), DEPTH):
        p = p_start + tl.arange(0, DEPTH)
        along = tl.zeros((DEPTH, BLOCK), dtype=tl.float32)  # rows p of the image, filtered along x
        for q_start in range(tl.maximum(first_column - radius_w, 0), tl.minimum(first_column + BLOCK + radius_w, width), DEPTH):
            q = q_start + tl.arange(0, DEPTH)
            x = _load(source, p, q, in_h, in_w, height, width).to(tl.float32)
            finite = _is_finite(x)
            bad = tl.maximum(bad, tl.max(tl.where(finite, 0.0, 1.0)))
            x = tl.where(finite, x, 0.0).to(OPERAND)
            across = _fold(j[None, :], q[:, None], width, sigma, radius_w, False).to(OPERAND)
            along = tl.dot(x, across, along, input_precision=PRECISION)
        down = _fold(i[:, None], p[None, :], height, sigma, radius_h, False).to(OPERAND)
        y = tl.dot(down, (along / sum_w).to(OPERAND), y, input_precision=PRECISION)
    y = y / sum_h
    if bad > 0.0:  # non-finite pixels were left out of the products; they take over their support, and no more
        above = _spread(source, i, j, first_row, first_column, in_h, in_w, height, width, radius_h, radius_w, False, BLOCK, DEPTH) > 0
        below = _spread(source, i, j, first_row, first_column, in_h, in_w, height, width, radius_h, radius_w, True, BLOCK, DEPTH) > 0
        y = tl.where(above & below, float("nan"), tl.where(above, float("inf"), tl.where(below, float("-inf"), y)))

    x = _load(source, i, j, in_h, in_w, height, width).to(tl.float32)
    cy = tl.load(fixation_of + sample * fixation_b)
    cx = tl.load(fixation_of + sample * fixation_b + 1)
    reach_y, reach_x = height - 1 - cy, width - 1 - cx
    is_default = (cy == (height // 2).to(tl.float32)) & (cx == (width // 2).to(tl.float32))
    reach_y = tl.where(is_default, reach_y, tl.maximum(tl.abs(cy), tl.abs(reach_y)))
    reach_x = tl.where(is_default, reach_x, tl.maximum(tl.abs(cx), tl.abs(reach_x)))
    reach = tl.sqrt(reach_y * reach_y + reach_x * reach_x)
    dy, dx = i.to(tl.float32)[:, None] - cy, j.to(tl.float32)[None, :] - cx
    distance = tl.sqrt(dy * dy + dx * dx)
    u = tl.where(distance < reach, distance / tl.maximum(reach, 1e-30), tl.where(distance > 0, 1.0, 0.0))
    weight = tl.load(gain_of + sample * gain_b) * _acuity(u, decay, FALLOFF)
    y = tl.where(weight == 0.0, y, weight * x + (1.0 - weight) * y)
    y = tl.where(radius == 0, x, y)
    if NORMALISE:
        y = (y * scale - tl.load(mean_of + channel)) / tl.load(std_of + channel)
    if out.dtype.element_ty == tl.uint8:
        y = tl.where(y > 0.0, tl.minimum(y, 255.0), 0.0)  # NaN becomes 0
        y = (y + 12582912.0) - 12582912.0  # 1.5 * 2^23: rounds to nearest, ties to even
        y = y.to(tl.int32)
    where = i.to(tl.int64)[:, None] * out_h + j.to(tl.int64)[None, :] * out_w
    tl.store(target + where, y.to(out.dtype.element_ty), mask=(i < height)[:, None] & (j < width)[None, :])


def launch_configuration(dtype: torch.dtype) -> dict:
    """Compile-time constants of the kernel and its warps, for images of one dtype."""
    operand, precision = _PRODUCTS[dtype]
    half = operand == tl.float16
    return {"OPERAND": operand, "PRECISION": precision, "BLOCK": 64, "DEPTH": 64 if half else 32, "num_warps": 8 if half else 4}


def triton_forward(
    images: Tensor,
    out: Tensor,
    sigma: Tensor,
    kernel_size: Tensor,
    gain: Tensor,
    fixation: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    falloff: str,
    decay: float,
) -> None:
    batch, channels, height, width = images.shape
    configuration = launch_configuration(images.dtype)
    row_tiles, column_tiles = (triton.cdiv(side, configuration["BLOCK"]) for side in (height, width))
    tiles = batch * channels * row_tiles * column_tiles
    if tiles > _LARGEST_GRID:
        raise ValueError(f"images of shape {tuple(images.shape)} need {tiles} blocks; split the batch to stay below 2^31")
    device = torch.cuda.device(images.device) if images.is_cuda else torch.cuda.device(-1)
    with device:
        _kernel[(tiles,)](
            images, out, sigma, kernel_size, gain, fixation, sigma if mean is None else mean, sigma if std is None else std,
            decay, 1 / 255 if images.dtype == torch.uint8 else 1.0, channels, height, width, row_tiles, column_tiles, tiles,
            *images.stride(), *out.stride(), sigma.stride(0), kernel_size.stride(0), gain.stride(0), fixation.stride(0),
            FALLOFF=falloff, NORMALISE=mean is not None, **configuration,
        )  # fmt: skip


def triton_backward(*arguments) -> None:
    from fovblur.foveated_blur.reference import reference_backward

    reference_backward(*arguments)
