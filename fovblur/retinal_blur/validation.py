"""Argument checks of the retinal blur; those of images, fixation and border are the foveated blur's."""

from __future__ import annotations

import numbers

from fovblur.retinal_blur.params import MOST_LEVELS


def positive(name: str, value: float, below: float = 1e9) -> float:
    """Return a number as a float, in a range where the model neither overflows nor divides by 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a number")
    if not 1e-6 <= value < below:
        raise ValueError(f"{name} is {value}; it must be at least 1e-6 and below {below:g}")
    return float(value)


def levels(value: int) -> int:
    """Return a number of levels that kernels take."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"levels is a {type(value).__name__}; it must be an int")
    if not 2 <= value <= MOST_LEVELS:
        raise ValueError(f"levels is {value}; it must be from 2 to {MOST_LEVELS}")
    return int(value)
