"""Intervals of an accuracy: how far it would move with other subjects, other seeds and other test images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def crossed_bootstrap(
    values: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of values (subjects, seeds, images).

    Each factor is resampled with replacement, independently of the others (Owen, Annals of Applied Statistics 2007), so
    that an image that is hard for every subject stays hard in a resample.

    >>> crossed_bootstrap([[[1.0, 1.0, 1.0]]])
    (1.0, 1.0)
    """
    values = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    weights = [rng.multinomial(size, np.full(size, 1 / size), size=resamples) / size for size in values.shape]
    means = np.einsum("rs,rk,rn,skn->r", *weights, values, optimize=True)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
