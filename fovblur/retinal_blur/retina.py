"""The model of the retina: how the width of the blur follows from eccentricity, and the levels that stand for it.

The contrast threshold of a grating grows with its frequency f and with eccentricity e, as
CT(f, e) = CT0 exp(alpha f (e + e2) / e2) (Geisler and Perry, Proc. SPIE 3299, 1998). Where it reaches 1, nothing finer
is visible at any contrast.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from fovblur.foveated_blur.validation import constant

HALF_AMPLITUDE = math.log(2) / (2 * math.pi**2)  # (sigma f)^2 of a Gaussian that halves the amplitude of frequency f
LARGEST_SIGMA = 8191.0  # pixels, whose kernel size is the largest of all
NYQUIST_PERIOD = 2.0  # pixels in a cycle of the finest grating that a display shows
_AXIS_NYQUIST = math.pi**2 / 2  # a Gaussian of variance v leaves exp(-v * this) of that grating
_KNEE = 2 / _AXIS_NYQUIST


class Retina(NamedTuple):
    """Constants of the model and the geometry in which images are seen."""

    pixels_per_degree: float
    viewing_distance: float | None  # in pixels; None: every degree has as many pixels
    half_resolution: float  # e2, degrees
    frequency_decay: float  # alpha, degrees
    contrast_threshold: float  # CT0

    def variance(self, distance):
        """Return sigma^2 in pixels, at a distance in pixels from the fixation: a number or a tensor.

        The display is itself a blur of the same kind, with a cutoff of half a cycle a pixel. Variances of successive
        Gaussians add up, so that its part is taken off; where the eye sees all that it shows, nothing is left.
        """
        cycle = self.frequency_decay / (self.half_resolution * -math.log(self.contrast_threshold))  # degrees, at e + e2
        scale = math.sqrt(HALF_AMPLITUDE) * cycle * self.pixels_per_degree
        if self.viewing_distance is None:
            root = distance * (scale / self.pixels_per_degree) + scale * self.half_resolution
        else:
            atan = torch.atan if isinstance(distance, Tensor) else math.atan
            tangent = distance / self.viewing_distance
            eccentricity = atan(tangent) * (180 / math.pi)
            # where pixels per degree, the root of those per square degree, have grown
            root = scale * (1 + tangent**2) ** 0.75 * (eccentricity + self.half_resolution)
        beyond = root**2 - HALF_AMPLITUDE * NYQUIST_PERIOD**2
        # More than any level has counts as the largest, and infinity times a slope of 0 would be NaN.
        return beyond.clamp(0, LARGEST_SIGMA**2) if isinstance(beyond, Tensor) else max(beyond, 0.0)


class Levels(NamedTuple):
    """Gaussians from the least to the largest blur of an image."""

    variances: tuple[float, ...]
    sigmas: tuple[float, ...]
    kernel_sizes: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def levels_of(retina: Retina, height: int, width: int, count: int) -> Levels:
    """Return `count` levels for fixations within an image, spaced for an even error of their blend.

    At a squared frequency u, a blend of two Gaussians of variances v and v + d misses one between them by about u^2
    exp(-u v) d^2 / 8. The spacing below makes the largest such error, up to the display's finest grating, even.
    """
    least, largest = retina.variance(0.0), retina.variance(math.hypot(height - 1, width - 1))
    if largest > LARGEST_SIGMA**2:
        asked = f"a sigma of {math.sqrt(largest):.4g} pixels at the corner, of at most {LARGEST_SIGMA:g}"
        raise ValueError(f"pixels_per_degree is {retina.pixels_per_degree:g}; it asks for {asked}")
    start, end = _spacing(least), _spacing(largest)
    sigmas = [sigma_of_variance(_spaced(start + (end - start) * k / (count - 1))) for k in range(count)]
    sizes = [2 * math.floor(4 * sigma + 0.5) + 1 for sigma in sigmas]
    return Levels(tuple(map(variance_of_taps, sigmas, sizes)), tuple(sigmas), tuple(sizes))


def _spacing(variance: float) -> float:
    """Return the place of a variance on a scale whose equal steps have equal errors."""
    if variance < _KNEE:
        return 2 * (1 - math.exp(-variance / _KNEE))
    return 2 * (1 - 1 / math.e) + 2 / math.e * math.log(variance / _KNEE)


def _spaced(place: float) -> float:
    """Return the variance at a place of that scale."""
    knee = 2 * (1 - 1 / math.e)
    return -_KNEE * math.log1p(-place / 2) if place < knee else _KNEE * math.exp((place - knee) * math.e / 2)


def variance_of_taps(sigma: float, kernel_size: int) -> float:
    """Return the variance of the taps of a Gaussian, which that of a narrow one falls short of."""
    if sigma == 0:
        return 0.0
    taps = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(1, kernel_size // 2 + 1)]
    return 2 * sum(tap * i**2 for i, tap in enumerate(taps, 1)) / (1 + 2 * sum(taps))


def sigma_of_variance(variance: float) -> float:
    """Return the sigma of the sampled Gaussian that has a variance, by bisection."""
    if variance == 0:
        return 0.0
    low, high = 0.0, math.sqrt(variance) + 1
    for _ in range(60):
        middle = (low + high) / 2
        below = variance_of_taps(middle, 2 * math.ceil(6 * middle) + 3) < variance
        low, high = (middle, high) if below else (low, middle)
    return high


def level_map(variance: Tensor, levels: Levels) -> Tensor:
    """Return where variances lie between those of the levels, from 0 to their number - 1."""
    lower, at = _lower_level(variance, levels)
    return lower + ((variance - at[lower]) * _slopes(at)[lower]).clamp(0, 1)


def enclosing_levels(variance: Tensor, levels: Levels) -> tuple[Tensor, Tensor, Tensor]:
    """Return the variances of the two levels that every pixel blends, and the slope of its level in its variance."""
    lower, at = _lower_level(variance, levels)
    above = at[lower + 1]
    return at[lower], above, torch.where(variance <= above, _slopes(at)[lower], 0)


def _lower_level(variance: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
    """Return the lower of the two levels that every pixel blends, and the variances of all levels."""
    at = constant(levels.variances, variance.dtype, variance)
    return torch.bucketize(variance.detach().contiguous(), at[1:-1], right=True), at


def _slopes(variances: Tensor) -> Tensor:
    """Return the slope of the level map between levels; levels are alike where nothing is blurred."""
    step = variances.diff()
    return torch.where(step > 0, 1 / step, 0)


def distance_to_fixation(fixation: Tensor, height: int, width: int) -> Tensor:
    """Return the distance of every pixel to the nearest fixation, (B, H, W), for fixations (B, F, 2)."""
    y = torch.arange(height, dtype=fixation.dtype, device=fixation.device)[:, None]
    x = torch.arange(width, dtype=fixation.dtype, device=fixation.device)
    each = [(y - at[:, 0, None, None]) ** 2 + (x - at[:, 1, None, None]) ** 2 for at in fixation.unbind(1)]
    return functools.reduce(torch.minimum, each).clamp(min=torch.finfo(fixation.dtype).tiny).sqrt()  # of slope 0 at 0
