"""One tile of a plane as two small products, A_h X A_w^T, in Triton: for any border, radius and pixels.

X is read at positions beyond the border too, so that A holds the taps by their distance alone. Positions are read as
far as the border's pattern goes before it repeats; taps beyond are added to those of the position that repeats them, so
that a radius may exceed the image.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fovblur.foveated_blur.triton_parts import (
    SLOPE,
    SUPPORT,
    TAP,
    acuity_at,
    border_share,
    load_pixels,
    tap_sums,
    window,
)


@triton.jit
def _has_table(radius):
    return (radius >= 1) & (radius <= 4)


@triton.jit
def has_slope(radius, TABLES: tl.constexpr):
    """Return whether the taps depend on sigma."""
    depends = radius > 0
    if TABLES:
        depends = depends & ~_has_table(radius)
    return depends


@triton.jit
def _taps(offset, sigma, radius, moment, KIND: tl.constexpr, TABLES: tl.constexpr):
    """Return a window, or 256 times the taps of OpenCV's table."""
    taps = window(offset, sigma, radius, moment, KIND)
    if TABLES and KIND == TAP:
        t = tl.abs(offset)
        first = tl.where(radius == 1, 128.0, tl.where(radius == 2, 96.0, tl.where(radius == 3, 72.0, 60.0)))
        second = tl.where(radius <= 2, 64.0, tl.where(radius == 3, 56.0, 51.0))
        third = tl.where(radius == 1, 0.0, tl.where(radius == 2, 16.0, tl.where(radius == 3, 28.0, 30.0)))
        fourth = tl.where(radius <= 2, 0.0, tl.where(radius == 3, 8.0, 13.0))
        fifth = tl.where(radius == 4, 4.0, 0.0)
        table = tl.where(t == 2, third, tl.where(t == 3, fourth, tl.where(t == 4, fifth, 0.0)))
        table = tl.where(t == 0, first, tl.where(t == 1, second, table))
        taps = tl.where(_has_table(radius), table, taps)
    return taps


@triton.jit
def _sums(sigma, radius, OPERAND: tl.constexpr, TABLES: tl.constexpr):
    """Return the sum of the taps and their second moment."""
    total, moment = tap_sums(sigma, radius, OPERAND)
    if TABLES:
        total = tl.where(_has_table(radius), 256.0, total)
    return total, moment / total


@triton.jit
def _reach(n, BORDER: tl.constexpr):
    """Return how many positions on either side of n pixels are read: the period of the border's pattern."""
    if BORDER == "reflect":
        reach = 2 * n - 2
    elif BORDER == "symmetric":
        reach = 2 * n
    elif BORDER == "constant":
        reach = n * 0
    else:
        reach = n
    return reach


@triton.jit
def _pixel_at(p, n, BORDER: tl.constexpr):
    """Return the pixel, of n, at positions p within reach."""
    if BORDER == "reflect":
        p = tl.abs(p)
        p = tl.where(p < n, p, tl.abs(2 * n - 2 - p))
    elif BORDER == "symmetric":
        p = tl.where(p < 0, -1 - p, p)
        p = tl.where(p < n, p, tl.where(p < 2 * n, 2 * n - 1 - p, p - 2 * n))
    elif BORDER == "replicate":
        p = tl.minimum(tl.maximum(p, 0), n - 1)
    elif BORDER == "circular":
        p = tl.where(p < 0, p + n, tl.where(p < n, p, p - n))
    return p


@triton.jit
def _within_reach(p, n, BORDER: tl.constexpr):
    reach = _reach(n, BORDER)
    return (p >= -reach) & (p < n + reach)


@triton.jit
def _band(i, p, n, sigma, radius, moment, KIND: tl.constexpr, BORDER: tl.constexpr, TABLES: tl.constexpr):
    """Return the taps of outputs i on positions p of n pixels, with those on the positions that repeat p."""
    taps = _taps(p - i, sigma, radius, moment, KIND, TABLES)
    if BORDER != "constant":
        period = tl.maximum(_reach(n, BORDER), 1)
        outwards = tl.where(p < 0, -period, period)
        is_outside = (p < 0) | (p >= n)
        for m in range(1, (radius - 1) // period + 1):
            repeated = _taps(p + m * outwards - i, sigma, radius, moment, KIND, TABLES)
            taps += tl.where(is_outside, repeated, 0.0)
    return taps


@triton.jit
def _span(first, radius, n, BORDER: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr):
    """Return the first position, a multiple of STEP from the border, and the last that the outputs of a tile read."""
    reach = _reach(n, BORDER)
    start = tl.maximum(first - tl.cdiv(radius, STEP) * STEP, -tl.cdiv(reach, STEP) * STEP)
    return start, tl.minimum(tl.minimum(first + TILE, n) + radius, n + reach)


@triton.jit
def _read(plane, p, q_start, stride_h, stride_w, height, width, BORDER: tl.constexpr, DEPTH: tl.constexpr):
    """Return the pixels at positions [p, q_start + 0 .. DEPTH - 1] as float32, 0 beyond the reach."""
    rows = plane + _pixel_at(p, height, BORDER).to(tl.int64)[:, None] * stride_h
    row_inside = _within_reach(p, height, BORDER)[:, None]
    q = q_start + tl.arange(0, DEPTH)
    if (q_start >= 0) & (q_start + DEPTH <= width):  # several pixels at a time
        x = tl.load(rows + q.to(tl.int64)[None, :] * stride_w, mask=row_inside, other=0)
    else:
        inside = row_inside & _within_reach(q, width, BORDER)[None, :]
        x = tl.load(rows + _pixel_at(q, width, BORDER).to(tl.int64)[None, :] * stride_w, mask=inside, other=0)
    return x.to(tl.float32)


@triton.jit
def weight_at(i, j, weight_of, gain, cy, cx, unit, farthest, weight_h, weight_w, height, width,
               FALLOFF: tl.constexpr):  # fmt: skip
    """Return f at pixels [i, j]: from a map if there is no falloff."""
    if FALLOFF == "":
        return load_pixels(weight_of, i, j, weight_h, weight_w, height, width)
    else:
        dy, dx = (i.to(tl.float32) - cy)[:, None] * unit, (j.to(tl.float32) - cx)[None, :] * unit
        return acuity_at(dy, dx, farthest, FALLOFF)


@triton.jit
def filtered_tile(
    plane, weight_of, first_row, first_column, sigma_h, sigma_w, radius_h, radius_w, gain, cy, cx, unit, farthest,
    stride_h, stride_w, weight_h, weight_w, height, width,
    ADJOINT: tl.constexpr, SLOPES: tl.constexpr, BORDER: tl.constexpr, TABLES: tl.constexpr, FALLOFF: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return one tile of A_h x A_w^T, its derivatives in sigma along y and x, and 1 if a non-finite pixel was met.

    With ADJOINT the tile is one of A_h^T (1 - w) g A_w; without SLOPES the derivatives are 0. In outputs whose support
    holds a NaN or infinite pixel, the tile has it and the derivatives do not.
    """
    DEPTH: tl.constexpr = TILE // 2
    SHARED_EDGES: tl.constexpr = ADJOINT and BORDER == "reflect"  # A^T = E A E^-1; for other borders A^T = A
    i, j = first_row + tl.arange(0, TILE), first_column + tl.arange(0, TILE)
    sum_h, moment_h = _sums(sigma_h, radius_h, OPERAND, TABLES)
    sum_w, moment_w = _sums(sigma_w, radius_w, OPERAND, TABLES)
    p_start, p_end = _span(first_row, radius_h, height, BORDER, TILE, DEPTH)
    q_start, q_end = _span(first_column, radius_w, width, BORDER, TILE, DEPTH)
    y = tl.zeros((TILE, TILE), dtype=tl.float32)
    slope_h, slope_w = y, y
    bad = 0.0
    for row in range(p_start, p_end, TILE):
        p = row + tl.arange(0, TILE)
        along = tl.zeros((TILE, TILE), dtype=tl.float32)  # rows p, filtered along x
        along_slope = along
        for column in range(q_start, q_end, DEPTH):
            q = column + tl.arange(0, DEPTH)
            x = _read(plane, p, column, stride_h, stride_w, height, width, BORDER, DEPTH)
            if ADJOINT:
                x *= 1.0 - gain * weight_at(_pixel_at(p, height, BORDER), _pixel_at(q, width, BORDER), weight_of,
                                            gain, cy, cx, unit, farthest, weight_h, weight_w, height, width,
                                            FALLOFF)  # fmt: skip
            finite = tl.abs(x) < float("inf")
            bad = tl.maximum(bad, tl.max(tl.where(finite, 0.0, 1.0)))
            x = tl.where(finite, x, 0.0).to(OPERAND)
            across = _band(j[None, :], q[:, None], width, sigma_w, radius_w, 0.0, TAP, BORDER, TABLES)
            if SHARED_EDGES:
                across /= border_share(_pixel_at(q, width, BORDER), width)[:, None]
            along = tl.dot(x, across.to(OPERAND), along, input_precision=PRECISION)
            if SLOPES:
                across = _band(j[None, :], q[:, None], width, sigma_w, radius_w, moment_w, SLOPE, BORDER, TABLES)
                along_slope = tl.dot(x, across.to(OPERAND), along_slope, input_precision=PRECISION)
        if SHARED_EDGES:
            along *= border_share(j, width)[None, :]
        along = (along / sum_w).to(OPERAND)
        down = _band(i[:, None], p[None, :], height, sigma_h, radius_h, 0.0, TAP, BORDER, TABLES)
        if SHARED_EDGES:
            down /= border_share(_pixel_at(p, height, BORDER), height)[None, :]
        y = tl.dot(down.to(OPERAND), along, y, input_precision=PRECISION)
        if SLOPES:
            along_slope = (along_slope / sum_w).to(OPERAND)
            slope_w = tl.dot(down.to(OPERAND), along_slope, slope_w, input_precision=PRECISION)
            down = _band(i[:, None], p[None, :], height, sigma_h, radius_h, moment_h, SLOPE, BORDER, TABLES)
            slope_h = tl.dot(down.to(OPERAND), along, slope_h, input_precision=PRECISION)
    y /= sum_h
    if SHARED_EDGES:
        y *= border_share(i, height)[:, None]
    if bad > 0.0:
        above = _meets(plane, i, j, float("inf"), p_start, p_end, q_start, q_end, stride_h, stride_w, height, width,
                       radius_h, radius_w, BORDER, TILE, DEPTH)  # fmt: skip
        below = _meets(plane, i, j, float("-inf"), p_start, p_end, q_start, q_end, stride_h, stride_w, height, width,
                       radius_h, radius_w, BORDER, TILE, DEPTH)  # fmt: skip
        y = tl.where(above & below, float("nan"), tl.where(above, float("inf"), tl.where(below, float("-inf"), y)))
    return y, slope_h / sum_h, slope_w / sum_h, bad


@triton.jit
def _meets(plane, i, j, infinity, p_start, p_end, q_start, q_end, stride_h, stride_w, height, width, radius_h, radius_w,
           BORDER: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """Return whether the support of each output of a tile holds a NaN or an infinity of one sign."""
    count = tl.zeros((TILE, TILE), dtype=tl.float32)
    for row in range(p_start, p_end, TILE):
        p = row + tl.arange(0, TILE)
        along = tl.zeros((TILE, TILE), dtype=tl.float32)
        for column in range(q_start, q_end, DEPTH):
            q = column + tl.arange(0, DEPTH)
            x = _read(plane, p, column, stride_h, stride_w, height, width, BORDER, DEPTH)
            support = _band(j[None, :], q[:, None], width, 1.0, radius_w, 0.0, SUPPORT, BORDER, False)
            is_bad = tl.where((x == infinity) | (x != x), 1.0, 0.0)
            along += tl.dot(is_bad, tl.minimum(support, 1.0), input_precision="tf32")
        support = _band(i[:, None], p[None, :], height, 1.0, radius_h, 0.0, SUPPORT, BORDER, False)
        count += tl.dot(tl.minimum(support, 1.0), tl.minimum(along, 1.0), input_precision="tf32")
    return count > 0.0


@triton.jit
def radius_along(radius, n, BORDER: tl.constexpr):
    """Return the radius along a side of n pixels: 0 along a single pixel, unless zeros surround it."""
    return radius if BORDER == "constant" else tl.where(n == 1, 0, radius)
