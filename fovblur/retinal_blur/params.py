"""What every backend of the retinal blur takes; csrc/retinal_blur/params.h declares the same struct for the kernels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

MOST_LEVELS = 32  # kMostLevels of csrc/retinal_blur/params.h


class LevelParams(NamedTuple):
    """Gaussian levels, and which two of them every pixel blends; numbers are in host memory."""

    level: Tensor  # (B, H, W) from 0 to levels - 1, in the dtype that the blur accumulates in, of any strides
    sigmas: tuple[float, ...]  # of the levels, in pixels, increasing; 0 is the identity
    kernel_sizes: tuple[int, ...]  # of the levels, odd
    border: str
    variances: tuple[float, ...] = ()  # CPU: of the levels; then `level` holds variances, which lie between them
