"""The blur as two small matrix products a tile, A_h X A_w^T, in Triton.

A is a banded matrix whose rows sum to 1. A program makes one strip of columns and walks down its rows, a chunk at a
time, over the channels of a sample. Tiles of A are computed once a program, from sigma. A chunk of pixels becomes
H^T = A_w X^T, which is multiplied at once by each tile of A_h that it meets; the sums of the outputs that are not yet
complete are what the walk carries on. Left and right, the reflecting border is folded into A_w: a tap outside the
image is added to the column that it mirrors to. Above and below, mirrored rows are read. The adjoint is
A^T = E A E^-1, where E counts border pixels half; the derivative in sigma is a band too.

Radii beyond the strip's halo, images smaller than the radius, and strips with infinite or NaN pixels are computed tile
by tile, with the band made anew for each product.
"""

# The tuples that a kernel builds grow while it is compiled.
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fovblur import backends
from fovblur.foveated_blur.params import BlurGradients, BlurParams
from fovblur.foveated_blur.triton_general import blur_general, general_parameter_gradients, is_general
from fovblur.foveated_blur.triton_parts import (
    SLOPE,
    SUPPORT,
    TAP,
    TILE_PRODUCTS,
    acuity_at,
    as_float32,
    border_share,
    check_grid,
    converted,
    launching_on,
    load_pixels,
    place_of_program,
    read_fovea,
    read_gaussian,
    scale_of,
    store_pixels,
    tap_sums,
    window,
)

_ENOUGH_PROGRAMS = 512  # for every multiprocessor to have some


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
            total += window(p + shift - i, sigma, radius, moment, KIND)
        if (shift - last <= highest) & (shift - first >= lowest):
            total += tl.where(mirrors, window(shift - p - i, sigma, radius, moment, KIND), 0.0)
    return total


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
            x = load_pixels(plane, p, q, stride_h, stride_w, height, width)
            bad = tl.where((x == (float("-inf") if NEGATIVE else float("inf"))) | (x != x), 1.0, 0.0)
            support = _band(j[None, :], q[:, None], width, 1.0, radius_w, 0.0, SUPPORT)
            along += tl.dot(bad, tl.minimum(support, 1.0), input_precision="tf32")
        support = _band(i[:, None], p[None, :], height, 1.0, radius_h, 0.0, SUPPORT)
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
def _blurred_tile(plane, i, j, first_row, first_column, sigma, radius_h, radius_w, gain, cy, cx, unit, farthest,
                  stride_h, stride_w, height, width, ADJOINT: tl.constexpr, FALLOFF: tl.constexpr,
                  OPERAND: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Return one tile of A_h x A_w^T, or with ADJOINT of E^-1 A_h^T (1 - w) g A_w E^-1, for any radius and pixels."""
    DEPTH: tl.constexpr = TILE // 2
    sum_h, _ = tap_sums(sigma, radius_h, OPERAND)
    sum_w, _ = tap_sums(sigma, radius_w, OPERAND)
    p_first, p_end = tl.maximum(first_row - radius_h, 0), tl.minimum(first_row + TILE + radius_h, height)
    # Steps of DEPTH are aligned to the left border so that pixels are read several at a time; taps beyond the radius
    # are 0.
    q_first = tl.maximum(first_column - radius_w, 0) // DEPTH * DEPTH
    q_end = tl.minimum(first_column + TILE + radius_w, width)
    y = tl.zeros((TILE, TILE), dtype=tl.float32)
    bad = 0.0
    for p_start in range(p_first, p_end, TILE):
        p = p_start + tl.arange(0, TILE)
        along = tl.zeros((TILE, TILE), dtype=tl.float32)  # rows p of the image, filtered along x
        for q_start in range(q_first, q_end, DEPTH):
            q = q_start + tl.arange(0, DEPTH)
            x = load_pixels(plane, p, q, stride_h, stride_w, height, width)
            if ADJOINT:
                dy, dx = (p.to(tl.float32) - cy)[:, None] * unit, (q.to(tl.float32) - cx)[None, :] * unit
                x *= 1.0 - gain * acuity_at(dy, dx, farthest, FALLOFF)
                x /= border_share(p, height)[:, None] * border_share(q, width)[None, :]
            finite = tl.abs(x) < float("inf")
            bad = tl.maximum(bad, tl.max(tl.where(finite, 0.0, 1.0)))
            across = _band(j[None, :], q[:, None], width, sigma, radius_w, 0.0, TAP).to(OPERAND)
            along = tl.dot(tl.where(finite, x, 0.0).to(OPERAND), across, along, input_precision=PRECISION)
        down = _band(i[:, None], p[None, :], height, sigma, radius_h, 0.0, TAP).to(OPERAND)
        y = tl.dot(down, (along / sum_w).to(OPERAND), y, input_precision=PRECISION)
    y /= sum_h
    if bad > 0.0:
        y = _spread_non_finite(y, plane, i, j, p_first, p_end, q_first, q_end, stride_h, stride_w, height, width,
                               radius_h, radius_w, TILE, TILE, DEPTH)  # fmt: skip
    return y


@triton.jit
def _parts(x, OPERAND: tl.constexpr, SPLIT: tl.constexpr):
    """Return float32 numbers as an operand, and with SPLIT what its rounding leaves as another."""
    high = x.to(OPERAND)
    if SPLIT:
        return high, (x - high.to(tl.float32)).to(OPERAND)
    else:
        return high, high


@triton.jit
def _pixel_factor(plane, first_row, end_row, first_column, stride_h, stride_w, height, width,
                  HALO: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Return the power of 2 that brings the largest of some pixels of a strip to [1, 2); its inverse is normal."""
    i = first_row + tl.arange(0, HALO) * tl.cdiv(end_row - first_row, HALO)
    some = tl.abs(load_pixels(plane, i, first_column + tl.arange(0, COLUMNS), stride_h, stride_w, height, width))
    magnitude = tl.max(some)
    exponent = tl.maximum(tl.minimum(magnitude.to(tl.int32, bitcast=True) >> 23, 230), 24)
    return tl.where(magnitude > 0.0, ((254 - exponent) << 23).to(tl.float32, bitcast=True), 1.0)


@triton.jit
def _multiply(a, b, total, SPLIT: tl.constexpr):
    """Return total + a b of operands in parts; the product of the low ones is below the rounding of the rest."""
    if SPLIT:
        total = tl.dot(a[1], b[0], total)
        total = tl.dot(a[0], b[1], total)
    return tl.dot(a[0], b[0], total)


@triton.jit
def _kept(tap, OPERAND: tl.constexpr, SPLIT: tl.constexpr):
    """Return the taps that the products see."""
    high, low = _parts(tap, OPERAND, SPLIT)
    kept = high.to(tl.float32)
    if SPLIT:
        kept += low.to(tl.float32)
    return kept


@triton.jit
def _half_taps(sigma, radius, HALO: tl.constexpr, OPERAND: tl.constexpr, SPLIT: tl.constexpr):
    """Return 1 / the sum of the taps, by which they are multiplied, the sum of the products' taps, and the moment."""
    t = tl.arange(0, 2 * HALO)
    times = tl.where(t == 0, 1.0, 2.0)
    taps = window(t, sigma, radius, 0.0, TAP)
    inverse = 1.0 / tl.sum(times * taps)
    return inverse, tl.sum(times * _kept(taps * inverse, OPERAND, SPLIT)), tl.sum(2.0 * taps * t * t) * inverse


@triton.jit
def _across(j, q, near_border, width, sigma, radius, inverse, moment, KIND: tl.constexpr, ADJOINT: tl.constexpr,
            OPERAND: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """Return A_w[j, q], or with ADJOINT A_w[q, j], for a radius below the width."""
    j, q = j[:, None], q[None, :]
    taps = window(q - j, sigma, radius, moment, KIND)
    if near_border:
        pixel = j if ADJOINT else q
        last = width - 1
        taps += tl.where(pixel > 0, window(q + j, sigma, radius, moment, KIND), 0.0)
        taps += tl.where(pixel < last, window(2 * last - q - j, sigma, radius, moment, KIND), 0.0)
    return _parts(taps * inverse, OPERAND, SPLIT)


@triton.jit
def _down(shift, sigma, radius, inverse, moment, KIND: tl.constexpr, ROWS: tl.constexpr, OPERAND: tl.constexpr,
          SPLIT: tl.constexpr):  # fmt: skip
    """Return A_h[i, p] as [p, i], for chunks of rows p that begin `shift` rows below those of the outputs i."""
    rows = tl.arange(0, ROWS)
    taps = window(rows[:, None] + shift - rows[None, :], sigma, radius, moment, KIND)
    return _parts(taps * inverse, OPERAND, SPLIT)


@triton.jit
def _mirrored(i, n):
    """Return the rows, of n, at positions i, which lie less than n - 1 outside; farther ones return any row."""
    i = tl.abs(i)
    return tl.maximum(tl.minimum(i, 2 * (n - 1) - i), 0)


@triton.jit
def _chunk(plane, q, i, sharp, gain, cy, cx, unit, farthest, stride_h, stride_w, height, width, factor,
           ADJOINT: tl.constexpr, FALLOFF: tl.constexpr, OPERAND: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """Return pixels [q, i] of a plane in parts, 0 left and right of it.

    With ADJOINT they are multiplied by 1 - w, and by a factor if the range of the operand is smaller than theirs.
    """
    where = q.to(tl.int64)[:, None] * stride_w
    inside = ((q >= 0) & (q < width))[:, None]
    x = tl.load((plane + where) + i.to(tl.int64)[None, :] * stride_h, mask=inside, other=0)
    # The columns take part in the conversions, so that they come before the pixels are shared by the warps.
    if SPLIT or (x.dtype == tl.bfloat16 and OPERAND == tl.float16):
        x = x.to(tl.float32) * tl.where(inside, factor, 0.0)
    elif x.dtype == tl.uint8:
        x = (x.to(tl.int16) | tl.where(inside, 0x6400, 0).to(tl.int16)).to(tl.float16, bitcast=True)  # 1024 + x
        x -= tl.where(inside, 1024.0, 0.0).to(tl.float16)
    else:
        x = x.to(OPERAND)
    if ADJOINT:
        dy, dx = (i.to(tl.float32) - cy)[None, :] * unit, (q.to(tl.float32) - cx)[:, None] * unit
        x *= (1.0 - sharp - gain * acuity_at(dy, dx, farthest, FALLOFF)).to(x.dtype)
    return _parts(x, OPERAND, SPLIT)


@triton.jit
def _blur_strip(
    source, target, mean_of, std_of, pixel_factor, sigma, radius, radius_h, radius_w, gain, cy, cx, unit, farthest,
    scale, first_channel, end_channel, first_column, first_row, end_row, height, width,
    in_c, in_h, in_w, out_c, out_h, out_w,
    ADJOINT: tl.constexpr, FALLOFF: tl.constexpr, NORMALISE: tl.constexpr, OPERAND: tl.constexpr, SPLIT: tl.constexpr,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, HALO: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Blur rows of a strip, for radii up to HALO and below the sides.

    Return 1 if the products could not hold the pixels: one is infinite, NaN or too large, or with SPLIT all are too
    small; else 0.
    """
    inverse_h, kept_h, _ = _half_taps(sigma, radius_h, HALO, OPERAND, SPLIT)
    inverse_w, kept_w, _ = _half_taps(sigma, radius_w, HALO, OPERAND, SPLIT)
    factor = 1.0 / (kept_h * kept_w * pixel_factor)
    gain = tl.where(radius == 0, 0.0, gain)
    sharp = tl.where(radius == 0, 1.0, 0.0)  # what is added to w: z = x without a blur

    near_border = (first_column < radius_w) | (first_column + COLUMNS + radius_w > width)
    columns = tl.arange(0, COLUMNS)
    j = first_column + columns
    across = ()  # tiles of A_w for the parts of a chunk of pixels, from left to right
    for k in tl.static_range(1 + 2 * HALO // COLUMNS):
        q = first_column - HALO + k * COLUMNS + columns
        tile = _across(j, q, near_border, width, sigma, radius_w, inverse_w, 0.0, TAP, ADJOINT, OPERAND, SPLIT)
        across += (tile,)
    # Tiles of A_h for the chunks of outputs that a chunk of pixels meets, lowest first; the sums of all but the first
    # outputs, which that chunk completes, go on to the next chunk.
    zeros = tl.zeros((COLUMNS, ROWS), dtype=tl.float32)
    downs = (_down(HALO, sigma, radius_h, inverse_h, 0.0, TAP, ROWS, OPERAND, SPLIT),)
    sums = (zeros,)
    for k in tl.static_range(1, 2 * HALO // ROWS + 1):
        tile = _down(HALO - k * ROWS, sigma, radius_h, inverse_h, 0.0, TAP, ROWS, OPERAND, SPLIT)
        downs += (tile,)
        if k > 1:
            sums += (zeros,)
    bad = tl.zeros((COLUMNS,), dtype=tl.float32)
    largest = bad
    rows = tl.arange(0, ROWS)
    dy, dx = rows.to(tl.float32) * unit - cy * unit, (j.to(tl.float32) - cx)[:, None] * unit
    from_columns, to_columns = j.to(tl.int64)[:, None] * in_w, j.to(tl.int64)[:, None] * out_w
    channel, row = first_channel, first_row - HALO
    chunks = (end_row - first_row + ROWS - 1) // ROWS + 2 * HALO // ROWS
    for _ in tl.range(0, (end_channel - first_channel).to(tl.int32) * chunks, num_stages=STAGES):
        plane = source + channel * in_c
        i = _mirrored(row + rows, height)
        h = zeros  # [column, row]
        for k in tl.static_range(1 + 2 * HALO // COLUMNS):
            q = first_column - HALO + k * COLUMNS + columns
            pixels = _chunk(plane, q, i, sharp, gain, cy, cx, unit, farthest, in_h, in_w, height, width, pixel_factor,
                            ADJOINT, FALLOFF, OPERAND, SPLIT)  # fmt: skip
            h = _multiply(across[k], pixels, h, SPLIT)
        if ADJOINT:
            h *= tl.where((rows == -row) | (rows == height - 1 - row), 2.0, 1.0)[None, :]  # 1 / E_h
        h = _parts(h, OPERAND, SPLIT)
        y = _multiply(h, downs[0], sums[0], SPLIT)
        later = ()
        for k in tl.static_range(1, 2 * HALO // ROWS):
            later += (_multiply(h, downs[k], sums[k], SPLIT),)
        later += (_multiply(h, downs[2 * HALO // ROWS], zeros, SPLIT),)
        sums = later
        done = row - HALO
        if done >= first_row:
            bad += tl.sum(y, 1) * 0.0  # NaN from an infinity or NaN on
            i = done + rows
            inside = (i < end_row)[None, :] & (j < width)[:, None]
            x = tl.load((plane + from_columns) + i.to(tl.int64)[None, :] * in_h, mask=inside, other=0).to(tl.float32)
            if SPLIT:
                largest = tl.maximum(largest, tl.max(tl.abs(x), 1))
            if ADJOINT:
                y *= tl.where((rows == -done) | (rows == height - 1 - done), 0.5 * factor, factor)[None, :]
                weight = sharp + gain * acuity_at((dy + done * unit)[None, :], dx, farthest, FALLOFF)
                y = weight * x + y
            else:
                y = y * factor - x
                y = x + (1.0 - sharp - gain * acuity_at((dy + done * unit)[None, :], dx, farthest, FALLOFF)) * y
            if NORMALISE:
                std = 1.0 / tl.load(std_of + channel)
                y *= scale * std
                if not ADJOINT:
                    y -= tl.load(mean_of + channel) * std
            to = (target + channel * out_c + to_columns) + i.to(tl.int64)[None, :] * out_h
            tl.store(to, converted(y, target), mask=inside)
        ends = done + ROWS >= end_row
        channel = tl.where(ends, channel + 1, channel)
        row = tl.where(ends, first_row - HALO, row + ROWS)
    worst = tl.max(tl.where(bad == 0.0, 0.0, 1.0))
    if SPLIT:
        worst = tl.where((tl.max(largest) > 0.0) & (tl.max(largest) * pixel_factor < 0.125), 1.0, worst)
    return worst


@triton.jit
def _blur_kernel(
    source, target, sigma_of, kernel_size_of, gain_of, fixation_of, mean_of, std_of,
    decay, scale, channels, height, width, group_channels, segment_rows, groups, segments, strips,
    in_b, in_c, in_h, in_w, out_b, out_c, out_h, out_w, sigma_b, kernel_size_b, gain_b, fixation_b,
    ADJOINT: tl.constexpr, FALLOFF: tl.constexpr, NORMALISE: tl.constexpr,
    OPERAND: tl.constexpr, SPLIT: tl.constexpr, COLUMNS: tl.constexpr, HALO: tl.constexpr,
    ROWS: tl.constexpr, WIDE_ROWS: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Compute part of a strip of y = w x + (1 - w) A_h x A_w^T, normalised.

    With ADJOINT the strip is one of w g + A_h^T (1 - w) g A_w.
    """
    strip, segment, group, sample = place_of_program(groups, segments, strips)
    source += sample * in_b
    target += sample * out_b
    first_column, first_row = strip * COLUMNS, segment * segment_rows
    end_row = tl.minimum(first_row + segment_rows, height)
    first_channel = (group * group_channels).to(tl.int64)
    end_channel = tl.minimum(first_channel + group_channels, channels)
    sigma, radius, radius_h, radius_w = read_gaussian(sigma_of, kernel_size_of, sample, sigma_b, kernel_size_b,
                                                  height, width)  # fmt: skip
    gain, cy, cx, unit, farthest = read_fovea(gain_of, fixation_of, sample, gain_b, fixation_b, height, width, decay,
                                          FALLOFF)  # fmt: skip

    fits = (radius_h < tl.maximum(height - 1, 1)) & (radius_w < width)
    pixel_factor = 1.0
    if SPLIT:
        pixel_factor = _pixel_factor(source + first_channel * in_c, first_row, end_row, first_column, in_h, in_w,
                                     height, width, HALO, COLUMNS)  # fmt: skip
    bad = 1.0
    if fits & (radius <= HALO):
        bad = _blur_strip(source, target, mean_of, std_of, pixel_factor, sigma, radius, radius_h, radius_w,
                          gain, cy, cx, unit, farthest, scale, first_channel, end_channel, first_column,
                          first_row, end_row, height, width, in_c, in_h, in_w, out_c, out_h, out_w,
                          ADJOINT, FALLOFF, NORMALISE, OPERAND, SPLIT, COLUMNS, ROWS, HALO, STAGES)  # fmt: skip
    elif fits & (radius <= 2 * HALO):
        bad = _blur_strip(source, target, mean_of, std_of, pixel_factor, sigma, radius, radius_h, radius_w,
                          gain, cy, cx, unit, farthest, scale, first_channel, end_channel, first_column,
                          first_row, end_row, height, width, in_c, in_h, in_w, out_c, out_h, out_w,
                          ADJOINT, FALLOFF, NORMALISE, OPERAND, SPLIT, COLUMNS, WIDE_ROWS, 2 * HALO, 1)  # fmt: skip
    if bad > 0.0:
        for channel in range(first_channel, end_channel):
            from_plane, to_plane = source + channel * in_c, target + channel * out_c
            for row in range(first_row, end_row, TILE):
                for column in range(first_column, tl.minimum(first_column + COLUMNS, width), TILE):
                    i, j = row + tl.arange(0, TILE), column + tl.arange(0, TILE)
                    y = _blurred_tile(from_plane, i, j, row, column, sigma, radius_h, radius_w, gain, cy, cx, unit,
                                      farthest, in_h, in_w, height, width, ADJOINT, FALLOFF,
                                      tl.float32 if SPLIT else OPERAND, "tf32x3" if SPLIT else "ieee",
                                      TILE)  # fmt: skip
                    x = load_pixels(from_plane, i, j, in_h, in_w, height, width)
                    dy, dx = (i.to(tl.float32) - cy)[:, None] * unit, (j.to(tl.float32) - cx)[None, :] * unit
                    weight = gain * acuity_at(dy, dx, farthest, FALLOFF)
                    if ADJOINT:
                        y = weight * x + border_share(i, height)[:, None] * border_share(j, width)[None, :] * y
                    else:
                        y = tl.where(weight == 0.0, y, weight * x + (1.0 - weight) * y)
                    y = tl.where(radius == 0, x, y)
                    if NORMALISE:
                        if ADJOINT:
                            y = y * scale / tl.load(std_of + channel)
                        else:
                            y = (y * scale - tl.load(mean_of + channel)) / tl.load(std_of + channel)
                    store_pixels(to_plane, i, j, out_h, out_w, end_row, width, y)


@triton.jit
def _gradient_tile(grad, images, std, first_row, first_column, end_row, end_column, sigma, radius_h, radius_w,
                   gain, cy, cx, unit, farthest, height, width, grad_h, grad_w, in_h, in_w,
                   FALLOFF: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
                   TILE: tl.constexpr):  # fmt: skip
    """Return the sums of one tile of a plane, for any radius and pixels."""
    DEPTH: tl.constexpr = TILE // 2
    sum_h, moment_h = tap_sums(sigma, radius_h, OPERAND)
    sum_w, moment_w = tap_sums(sigma, radius_w, OPERAND)
    moment_h /= sum_h
    moment_w /= sum_w
    i, j = first_row + tl.arange(0, TILE), first_column + tl.arange(0, TILE)
    p_first, p_end = tl.maximum(first_row - radius_h, 0), tl.minimum(first_row + TILE + radius_h, height)
    # Steps of DEPTH are aligned to the left border so that pixels are read several at a time; taps beyond the radius
    # are 0.
    q_first = tl.maximum(first_column - radius_w, 0) // DEPTH * DEPTH
    q_end = tl.minimum(first_column + TILE + radius_w, width)
    y = tl.zeros((TILE, TILE), dtype=tl.float32)
    slope = tl.zeros((TILE, TILE), dtype=tl.float32)
    for p_start in range(p_first, p_end, TILE):
        p = p_start + tl.arange(0, TILE)
        along = tl.zeros((TILE, TILE), dtype=tl.float32)
        along_slope = tl.zeros((TILE, TILE), dtype=tl.float32)
        for q_start in range(q_first, q_end, DEPTH):
            q = q_start + tl.arange(0, DEPTH)
            x = load_pixels(images, p, q, in_h, in_w, height, width).to(OPERAND)
            across = _band(j[None, :], q[:, None], width, sigma, radius_w, 0.0, TAP).to(OPERAND)
            across_slope = _band(j[None, :], q[:, None], width, sigma, radius_w, moment_w, SLOPE).to(OPERAND)
            along = tl.dot(x, across, along, input_precision=PRECISION)
            along_slope = tl.dot(x, across_slope, along_slope, input_precision=PRECISION)
        along = (along / sum_w).to(OPERAND)
        along_slope = (along_slope / sum_w).to(OPERAND)
        down = _band(i[:, None], p[None, :], height, sigma, radius_h, 0.0, TAP).to(OPERAND)
        down_slope = _band(i[:, None], p[None, :], height, sigma, radius_h, moment_h, SLOPE).to(OPERAND)
        y = tl.dot(down, along, y, input_precision=PRECISION)
        slope = tl.dot(down_slope, along, slope, input_precision=PRECISION)
        slope = tl.dot(down, along_slope, slope, input_precision=PRECISION)
    g = load_pixels(grad, i, j, grad_h, grad_w, height, width) * std
    acuity = acuity_at(
        (i.to(tl.float32) - cy)[:, None] * unit, (j.to(tl.float32) - cx)[None, :] * unit, farthest, FALLOFF
    )
    x = load_pixels(images, i, j, in_h, in_w, height, width)
    inside = (i < end_row)[:, None] & (j < end_column)[None, :]
    of_sigma = tl.sum(tl.where(inside, g * (1.0 - gain * acuity) * slope / sum_h, 0.0))
    return of_sigma, tl.sum(tl.where(inside, g * acuity * (x - y / sum_h), 0.0))


@triton.jit
def _gradient_strip(
    grad, images, std_of, pixel_factor, sigma, radius_h, radius_w, gain, cy, cx, unit, farthest, scale,
    first_channel, end_channel, first_column, first_row, end_row, height, width,
    grad_c, grad_h, grad_w, in_c, in_h, in_w,
    FALLOFF: tl.constexpr, NORMALISE: tl.constexpr, OPERAND: tl.constexpr,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, HALO: tl.constexpr,
):  # fmt: skip
    """Return the sums of rows of a strip, as _blur_strip walks, and 1 if the products could not hold the pixels."""
    inverse_h, kept_h, moment_h = _half_taps(sigma, radius_h, HALO, OPERAND, False)
    inverse_w, kept_w, moment_w = _half_taps(sigma, radius_w, HALO, OPERAND, False)
    factor = 1.0 / (kept_h * kept_w * pixel_factor)
    near_border = (first_column < radius_w) | (first_column + COLUMNS + radius_w > width)
    columns = tl.arange(0, COLUMNS)
    j = first_column + columns
    across, across_slope = (), ()
    for k in tl.static_range(1 + 2 * HALO // COLUMNS):
        q = first_column - HALO + k * COLUMNS + columns
        tile = _across(j, q, near_border, width, sigma, radius_w, inverse_w, 0.0, TAP, False, OPERAND, False)
        across += (tile,)
        tile = _across(j, q, near_border, width, sigma, radius_w, inverse_w, moment_w, SLOPE, False, OPERAND, False)
        across_slope += (tile,)
    zeros = tl.zeros((COLUMNS, ROWS), dtype=tl.float32)
    downs, downs_slope, sums, sums_slope = (), (), (), ()
    for k in tl.static_range(2 * HALO // ROWS + 1):
        tile = _down(HALO - k * ROWS, sigma, radius_h, inverse_h, 0.0, TAP, ROWS, OPERAND, False)
        downs += (tile,)
        tile = _down(HALO - k * ROWS, sigma, radius_h, inverse_h, moment_h, SLOPE, ROWS, OPERAND, False)
        downs_slope += (tile,)
        if k > 0:
            sums += (zeros,)
            sums_slope += (zeros,)

    rows = tl.arange(0, ROWS)
    dy, dx = rows.to(tl.float32) * unit - cy * unit, (j.to(tl.float32) - cx)[:, None] * unit
    from_columns, grad_columns = j.to(tl.int64)[:, None] * in_w, j.to(tl.int64)[:, None] * grad_w
    of_sigma, of_gain, largest = zeros, zeros, zeros
    channel, row = first_channel, first_row - HALO
    chunks = (end_row - first_row + ROWS - 1) // ROWS + 2 * HALO // ROWS
    for _ in tl.range(0, (end_channel - first_channel).to(tl.int32) * chunks, num_stages=1):
        plane = images + channel * in_c
        i = _mirrored(row + rows, height)
        h, h_slope = zeros, zeros
        for k in tl.static_range(1 + 2 * HALO // COLUMNS):
            q = first_column - HALO + k * COLUMNS + columns
            pixels = _chunk(plane, q, i, 0.0, gain, cy, cx, unit, farthest, in_h, in_w, height, width, pixel_factor,
                            False, FALLOFF, OPERAND, False)  # fmt: skip
            h = _multiply(across[k], pixels, h, False)
            h_slope = _multiply(across_slope[k], pixels, h_slope, False)
        h, h_slope = _parts(h, OPERAND, False), _parts(h_slope, OPERAND, False)
        y = _multiply(h, downs[0], sums[0], False)
        slope = _multiply(h, downs_slope[0], sums_slope[0], False)
        slope = _multiply(h_slope, downs[0], slope, False)
        later, later_slope = (), ()
        for k in tl.static_range(1, 2 * HALO // ROWS + 1):
            before = sums[k] if k < 2 * HALO // ROWS else zeros
            later += (_multiply(h, downs[k], before, False),)
            before = sums_slope[k] if k < 2 * HALO // ROWS else zeros
            before = _multiply(h, downs_slope[k], before, False)
            later_slope += (_multiply(h_slope, downs[k], before, False),)
        sums, sums_slope = later, later_slope
        done = row - HALO
        if done >= first_row:
            i = done + rows
            inside = (i < end_row)[None, :] & (j < width)[:, None]
            at = (plane + from_columns) + i.to(tl.int64)[None, :] * in_h
            x = tl.load(at, mask=inside, other=0).to(tl.float32)
            at_grad = (grad + channel * grad_c + grad_columns) + i.to(tl.int64)[None, :] * grad_h
            g = tl.load(at_grad, mask=inside, other=0).to(tl.float32)
            if NORMALISE:
                g *= scale / tl.load(std_of + channel)
            largest = tl.maximum(largest, tl.abs(x))
            acuity = acuity_at((dy + done * unit)[None, :], dx, farthest, FALLOFF)
            of_sigma += (g - gain * acuity * g) * slope
            of_gain += acuity * g * (x - y * factor)
        ends = done + ROWS >= end_row
        channel = tl.where(ends, channel + 1, channel)
        row = tl.where(ends, first_row - HALO, row + ROWS)
    sigma_sum, gain_sum = tl.sum(of_sigma) * factor, tl.sum(of_gain)
    worst = tl.where(tl.abs(sigma_sum) + tl.abs(gain_sum) < float("inf"), 0.0, 1.0)
    worst = tl.where((tl.max(largest) > 0.0) & (tl.max(largest) * pixel_factor < 0.125), 1.0, worst)
    return sigma_sum, gain_sum, worst


@triton.jit
def _parameter_gradient_kernel(
    grad, images, of_sigma, of_gain, sigma_of, kernel_size_of, gain_of, fixation_of, std_of,
    decay, scale, channels, height, width, group_channels, segment_rows, groups, segments, strips,
    grad_b, grad_c, grad_h, grad_w, in_b, in_c, in_h, in_w, sigma_b, kernel_size_b, gain_b, fixation_b,
    FALLOFF: tl.constexpr, NORMALISE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr, HALO: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sum part of a strip of dL/dsigma = sum g (1 - w) (A' x A^T + A x A'^T), dL/dgain = sum g f (x - A x A^T)."""
    strip, segment, group, sample = place_of_program(groups, segments, strips)
    images += sample * in_b
    grad += sample * grad_b
    first_column, first_row = strip * COLUMNS, segment * segment_rows
    end_column, end_row = tl.minimum(first_column + COLUMNS, width), tl.minimum(first_row + segment_rows, height)
    first_channel = (group * group_channels).to(tl.int64)
    end_channel = tl.minimum(first_channel + group_channels, channels)
    sigma, _, radius_h, radius_w = read_gaussian(sigma_of, kernel_size_of, sample, sigma_b, kernel_size_b,
                                             height, width)  # fmt: skip
    gain, cy, cx, unit, farthest = read_fovea(gain_of, fixation_of, sample, gain_b, fixation_b, height, width, decay,
                                          FALLOFF)  # fmt: skip

    is_blurred = (radius_h > 0) | (radius_w > 0) | (sigma != sigma)
    fits = (radius_h < tl.maximum(height - 1, 1)) & (radius_w < width) & (tl.maximum(radius_h, radius_w) <= HALO)
    sigma_sum, gain_sum, bad = 0.0, 0.0, 1.0
    if images.dtype.element_ty != tl.float32:  # whose products would need more registers
        if is_blurred & fits:
            pixel_factor = 1.0
            if images.dtype.element_ty == tl.bfloat16:
                pixel_factor = _pixel_factor(images + first_channel * in_c, first_row, end_row, first_column,
                                             in_h, in_w, height, width, HALO, COLUMNS)  # fmt: skip
            sigma_sum, gain_sum, bad = _gradient_strip(
                grad, images, std_of, pixel_factor, sigma, radius_h, radius_w, gain, cy, cx, unit, farthest, scale,
                first_channel, end_channel, first_column, first_row, end_row, height, width,
                grad_c, grad_h, grad_w, in_c, in_h, in_w,
                FALLOFF, NORMALISE, tl.float16, COLUMNS, ROWS, HALO)  # fmt: skip
    if is_blurred & (bad > 0.0):
        sigma_sum, gain_sum = 0.0, 0.0
        for channel in range(first_channel, end_channel):
            std = 1.0
            if NORMALISE:
                std = scale / tl.load(std_of + channel)
            for row in range(first_row, end_row, TILE):
                for column in range(first_column, end_column, TILE):
                    sigma_part, gain_part = _gradient_tile(
                        grad + channel * grad_c, images + channel * in_c, std, row, column, end_row, end_column,
                        sigma, radius_h, radius_w, gain, cy, cx, unit, farthest, height, width,
                        grad_h, grad_w, in_h, in_w, FALLOFF, OPERAND, PRECISION, TILE)  # fmt: skip
                    sigma_sum += sigma_part
                    gain_sum += gain_part
    tl.store(of_sigma + tl.program_id(0).to(tl.int64), sigma_sum)
    tl.store(of_gain + tl.program_id(0).to(tl.int64), gain_sum)


def launch_configuration(dtype: torch.dtype, adjoint: bool) -> dict:
    """Return compile-time constants and warps of the blur, or its adjoint, for sources of one dtype.

    Chosen for sm_86 by compilation: no spills, and within that the fewest instructions an output. Two blocks are
    resident on a multiprocessor, or one for float32, whose taps take twice the shared memory; hence its one stage, with
    no copy to shared memory in flight.
    """
    split = dtype == torch.float32
    operand = tl.bfloat16 if dtype == torch.bfloat16 else tl.float16
    if backends.triton_is_interpreted() and dtype == torch.bfloat16:
        operand = tl.float32  # the interpreter multiplies no bfloat16
    rows, wide_rows = (16 if split and adjoint else 32), (16 if split or adjoint else 32)
    return {
        "OPERAND": operand, "SPLIT": split, "COLUMNS": 64, "HALO": 32, "ROWS": rows, "WIDE_ROWS": wide_rows,
        "TILE": 32, "STAGES": 1 if split else 2, "num_warps": 4,
    }  # fmt: skip


def parameter_gradient_configuration(dtype: torch.dtype) -> dict:
    """Return the same for the gradients of sigma and gain; operand and precision are those of single tiles."""
    operand, precision = TILE_PRODUCTS.get(dtype, (tl.float16, "ieee"))
    return {
        "OPERAND": operand, "PRECISION": precision, "COLUMNS": 64, "HALO": 32, "ROWS": 16, "TILE": 32, "num_warps": 4,
    }  # fmt: skip


def triton_forward(images: Tensor, out: Tensor, params: BlurParams) -> None:
    """Blur images into `out`, both (B, C, H, W) of any strides."""
    (blur_general if is_general(params) else _blur)(images, out, False, params)


def triton_backward(grad: Tensor, images: Tensor, grads: BlurGradients, params: BlurParams) -> None:
    """Fill `grads` for the gradient of the result."""
    general = is_general(params)
    if grads.images is not None:
        (blur_general if general else _blur)(grad, grads.images, True, params)
    if grads.sigma is None and grads.gain is None:
        return
    (general_parameter_gradients if general else _parameter_gradients)(grad, images, grads, params)


def _parameter_gradients(grad: Tensor, images: Tensor, grads: BlurGradients, params: BlurParams) -> None:
    """Fill the gradients of sigma and gain."""
    batch, channels, height, width = images.shape
    configuration = parameter_gradient_configuration(images.dtype)
    grid = _grid(images.shape, configuration["COLUMNS"], configuration["ROWS"])
    sigma, kernel_size, gain, fixation, _, std, _, falloff, decay, *_ = params
    of_sigma, of_gain = (sigma.new_empty(batch, grid.programs // batch) for _ in range(2))
    with launching_on(images):
        _parameter_gradient_kernel[(grid.programs,)](
            grad, images, of_sigma, of_gain, sigma, kernel_size, gain, fixation, sigma if std is None else std,
            as_float32(decay), scale_of(images.dtype), channels, height, width,
            grid.group_channels, grid.segment_rows, grid.groups, grid.segments, grid.strips,
            *grad.stride(), *images.stride(), *_sample_strides(params),
            FALLOFF=falloff, NORMALISE=std is not None, **configuration,
        )  # fmt: skip
    for total, part in ((grads.sigma, of_sigma), (grads.gain, of_gain)):
        if total is not None:
            torch.sum(part, dim=1, out=total)


def _blur(source: Tensor, target: Tensor, adjoint: bool, params: BlurParams) -> None:
    """Launch the blur of images, or its adjoint on gradients."""
    _, channels, height, width = source.shape
    configuration = launch_configuration(source.dtype, adjoint)
    grid = _grid(source.shape, configuration["COLUMNS"], configuration["ROWS"])
    sigma, kernel_size, gain, fixation, mean, std, _, falloff, decay, *_ = params
    with launching_on(source):
        _blur_kernel[(grid.programs,)](
            source, target, sigma, kernel_size, gain, fixation,
            sigma if mean is None else mean, sigma if std is None else std,  # a missing one is not read
            as_float32(decay), scale_of(source.dtype), channels, height, width,
            grid.group_channels, grid.segment_rows, grid.groups, grid.segments, grid.strips,
            *source.stride(), *target.stride(), *_sample_strides(params),
            ADJOINT=adjoint, FALLOFF=falloff, NORMALISE=mean is not None, **configuration,
        )  # fmt: skip


def _sample_strides(params: BlurParams) -> tuple[int, ...]:
    return tuple(tensor.stride(0) for tensor in (params.sigma, params.kernel_size, params.gain, params.fixation))


class _Grid(NamedTuple):
    """How programs share images: each has a strip of columns, a segment of its rows, and a group of channels."""

    strips: int
    segments: int
    groups: int
    segment_rows: int
    group_channels: int
    programs: int


def _grid(shape: torch.Size, columns: int, rows: int) -> _Grid:
    """Return the grid for images of one shape: whole strips of all channels, or shorter ones if there are few."""
    batch, channels, height, width = shape
    strips = triton.cdiv(width, columns)
    group_channels, segment_rows = channels, height
    if batch * strips < _ENOUGH_PROGRAMS:
        group_channels = 1
        if batch * strips * channels < _ENOUGH_PROGRAMS:
            segment_rows = 2 * rows
    groups, segments = triton.cdiv(channels, group_channels), triton.cdiv(height, segment_rows)
    programs = batch * groups * segments * strips
    check_grid(f"a batch of shape {tuple(shape)}", programs)
    return _Grid(strips, segments, groups, segment_rows, group_channels, programs)
