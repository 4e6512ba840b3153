"""Argument checks of the retinal blur; those of images, fixation and border are the foveated blur's."""

from __future__ import annotations

import math
import numbers

from fovblur.retinal_blur.params import MOST_LEVELS


def positive(name: str, value: float, below: float = math.inf) -> float:
    """Return a number above 0 as a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a number")
    if not 0 < value < below:
        limit = "finite" if below == math.inf else f"below {below:g}"
        raise ValueError(f"{name} is {value}; it must be above 0 and {limit}")
    return float(value)


def levels(value: int) -> int:
    """Return a number of levels that kernels take."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"levels is a {type(value).__name__}; it must be an int")
    if not 2 <= value <= MOST_LEVELS:
        raise ValueError(f"levels is {value}; it must be from 2 to {MOST_LEVELS}")
    return int(value)
