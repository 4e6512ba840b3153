"""What the Triton kernels of the blur share: the Gaussian, the falloff, loads and stores, and the launch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

# Triton 3.6 fails to compile these products for the warp groups of sm_90. The variable leaves them to single warps.
WITHOUT_WARP_GROUPS = {} if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8) else {"DISABLE_MMA_V3": "1"}
_LARGEST_GRID = 2**31 - 1
# Operand and precision of the products of tiles: bfloat16 pixels are exact in tf32; float32 takes three tf32 products,
# accurate to 1e-6; others take half precision.
TILE_PRODUCTS = {torch.bfloat16: (tl.float32, "tf32"), torch.float32: (tl.float32, "tf32x3")}
TAP, SLOPE, SUPPORT = (tl.constexpr(kind) for kind in range(3))  # kinds of window


@triton.jit
def window(offset, sigma, radius, moment, KIND: tl.constexpr):
    """Return the unnormalised Gaussian at integer offsets, its slope in sigma, or 1; always 0 beyond the radius."""
    inside = tl.abs(offset) <= radius
    if KIND == SUPPORT:
        value = tl.where(inside, 1.0, 0.0)
    else:
        x = offset.to(tl.float32)
        value = tl.where(inside, tl.exp2(x * x * (-0.7213475204444817 / (sigma * sigma))), 0.0)  # log2(e) / 2
        if KIND == SLOPE:
            value *= (x * x - moment) / (sigma * sigma * sigma)
    return value


@triton.jit
def tap_sums(sigma, radius, OPERAND: tl.constexpr):
    """Return the sums of the taps, rounded as operands so that a constant image stays constant, and of taps i^2."""
    t = tl.arange(0, 64)
    total = 0.0
    moment = 0.0
    for start in range(0, radius + 1, 64):
        tap = window(start + t, sigma, radius, 0.0, TAP)
        total += tl.sum(tap.to(OPERAND).to(tl.float32))
        moment += tl.sum(tap * (start + t) * (start + t))
    return 2.0 * total - 1.0, 2.0 * moment


@triton.jit
def load_pixels(plane, i, j, stride_h, stride_w, height, width):
    """Load pixels [i, j] of a plane as float32, 0 outside it."""
    where = i.to(tl.int64)[:, None] * stride_h + j.to(tl.int64)[None, :] * stride_w
    return tl.load(plane + where, mask=(i < height)[:, None] & (j < width)[None, :], other=0).to(tl.float32)


@triton.jit
def converted(y, plane):
    """Return values in the type of a plane, rounded and clamped for uint8."""
    if plane.dtype.element_ty == tl.uint8:
        y = tl.where(y > 0.0, tl.minimum(y, 255.0), 0.0)  # NaN becomes 0
        y = ((y + 12582912.0) - 12582912.0).to(tl.int32)  # 1.5 * 2^23: rounds to nearest, ties to even
    return y.to(plane.dtype.element_ty)


@triton.jit
def store_pixels(plane, i, j, stride_h, stride_w, height, width, y):
    """Store pixels [i, j] of a plane."""
    where = i.to(tl.int64)[:, None] * stride_h + j.to(tl.int64)[None, :] * stride_w
    tl.store(plane + where, converted(y, plane), mask=(i < height)[:, None] & (j < width)[None, :])


@triton.jit
def _one_minus_cos(s):
    half = tl.sin(s * 0.5)
    return 2.0 * half * half


@triton.jit
def acuity_at(dy, dx, farthest, FALLOFF: tl.constexpr):
    """Return f(min(1, d / D)) at distances from the fixation, broadcast, times the unit of read_fovea."""
    u = tl.minimum(tl.sqrt(dy * dy + dx * dx), farthest)
    if FALLOFF == "exp":
        return tl.exp2(-u)
    if FALLOFF == "linear":
        f = 1.0 - u
    elif FALLOFF == "quadratic":
        f = 1.0 - u * u
    elif FALLOFF == "log":
        f = 1.0 - tl.log(u / 0.5819767068693265 + 1.0)  # 1 / (e - 1)
        f = tl.where(f < 0.0, 0.0, f)  # below 0, its rounded end would turn the sign of an infinity
    else:
        target = u / 0.5729
        s = tl.exp(tl.log(tl.maximum(6.0 * target, 1e-30)) / 3.0)
        for _ in range(5):  # Newton on s - sin s = target; near 0 the start is exact and the difference cancels
            s -= tl.where(s > 0.1, (s - tl.sin(s) - target) / tl.maximum(_one_minus_cos(s), 1e-6), 0.0)
        f = 1.0 - 0.5729 * _one_minus_cos(s)
    return f


@triton.jit
def border_share(i, n):
    """Return the diagonal of E: 1/2 for the border pixels, else 1."""
    return tl.where((i == 0) | (i == n - 1), 0.5, 1.0)


@triton.jit
def read_axis(sigma_of, kernel_size_of):
    """Return the sigma and the radius of a Gaussian along one axis."""
    sigma = tl.load(sigma_of)
    # A negative or NaN sigma, which is not checked on a GPU, becomes NaN taps at a radius of 1.
    radius = tl.where(sigma > 0.0, tl.load(kernel_size_of) // 2, tl.where(sigma == 0.0, 0, 1))
    # At 0.02 all taps but one are 0. Far below it the square of sigma is 0 too, and the taps would be NaN.
    return tl.where(sigma > 0.02, sigma, tl.where(sigma >= 0.0, 0.02, float("nan"))), radius


@triton.jit
def read_gaussian(sigma_of, kernel_size_of, sample, sigma_b, kernel_size_b, height, width):
    """Return a sample's sigma and its radius: of the kernel, along y, and along x."""
    sigma, radius = read_axis(sigma_of + sample * sigma_b, kernel_size_of + sample * kernel_size_b)
    radius_h = tl.where(height == 1, 0, radius)  # along a side of one pixel the blur is the identity
    radius_w = tl.where(width == 1, 0, radius)
    return sigma, radius, radius_h, radius_w


@triton.jit
def read_fovea(gain_of, fixation_of, sample, gain_b, fixation_b, height, width, decay, FALLOFF: tl.constexpr):
    """Return a sample's gain, the y and x of its fixation, the unit of distances, and the distance D in that unit."""
    fixation = fixation_of + sample * fixation_b
    cy, cx = tl.load(fixation), tl.load(fixation + 1)
    reach_y, reach_x = height - 1 - cy, width - 1 - cx
    is_default = (cy == 1.0 * (height // 2)) & (cx == 1.0 * (width // 2))
    reach_y = tl.where(is_default, reach_y, tl.maximum(tl.abs(cy), tl.abs(reach_y)))
    reach_x = tl.where(is_default, reach_x, tl.maximum(tl.abs(cx), tl.abs(reach_x)))
    farthest = decay * 1.4426950408889634 if FALLOFF == "exp" else 1.0  # log2(e): exp(-decay u) is a power of 2
    unit = farthest / tl.maximum(tl.sqrt(reach_y * reach_y + reach_x * reach_x), 1e-30)
    return tl.load(gain_of + sample * gain_b), cy, cx, unit, farthest


@triton.jit
def place_of_program(groups, segments, strips):
    """Return the program's strip, segment of rows, group of channels, and sample."""
    program = tl.program_id(0).to(tl.int64)
    strip, rest = (program % strips).to(tl.int32), program // strips
    segment, rest = (rest % segments).to(tl.int32), rest // segments
    return strip, segment, (rest % groups).to(tl.int32), rest // groups


def as_float32(number: float) -> float:
    """Return a positive number within the normal float32 range, or 0: Triton may take others as float64."""
    limits = torch.finfo(torch.float32)
    return min(number, limits.max) if number >= limits.tiny else 0.0


@contextlib.contextmanager
def launching_on(images: Tensor) -> Iterator[None]:
    """Make the images' device the current one, with the settings that compilation needs."""
    before = {name: os.environ.get(name) for name in WITHOUT_WARP_GROUPS}
    os.environ.update(WITHOUT_WARP_GROUPS)
    try:
        with torch.cuda.device(images.device if images.is_cuda else -1):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def check_grid(images: str, programs: int) -> None:
    """Raise ValueError if images, described in words, need more programs than a grid can have."""
    if programs > _LARGEST_GRID:
        raise ValueError(f"{images} needs {programs} blocks; split it to stay below 2^31")


def element_type(dtype: torch.dtype) -> tl.dtype:
    """Return Triton's name of a dtype."""
    return getattr(tl, str(dtype).removeprefix("torch."))


def scale_of(dtype: torch.dtype) -> float:
    """Return what brings pixels of a dtype to [0, 1]."""
    return 1 / 255 if dtype == torch.uint8 else 1.0
