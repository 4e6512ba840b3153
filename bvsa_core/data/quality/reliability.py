"""Signal and noise in a subject's recordings, estimated from repetitions.

One pass over the data in blocks of conditions: sums only, so recordings of any size fit.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bvsa_core.io.memmap import drop_pages

_BLOCK = 2**23  # samples read at once


@dataclass(frozen=True)
class Quality:
    """Statistics of one split of one subject, in the units of the recordings."""

    evoked: np.ndarray  # (channels, time) mean over conditions and repetitions
    covariance: np.ndarray  # (channels, channels) of single trials around the mean of their condition
    reliability: np.ndarray | None  # (channels, time) of means over repetitions; None with one repetition
    conditions: int
    repetitions: int
    splits: int  # number of splits into halves that the reliability is a mean over

    @property
    def ceiling(self) -> np.ndarray | None:
        """Correlation of the true responses with the means over repetitions, (channels, time): sqrt(reliability)."""
        return None if self.reliability is None else np.sqrt(np.clip(self.reliability, 0, 1))


def quality(
    data: np.ndarray, splits: int = 20, seed: int = 0, progress: Callable[[int, int], None] = lambda *_: None
) -> Quality:
    """Compute evoked response, noise covariance and split-half reliability.

    The reliability is the correlation over conditions between the means of two random halves of the repetitions, at
    every channel and time, averaged over splits into halves and corrected by the Spearman-Brown formula to the mean of
    all repetitions. With an odd number, one repetition of each split is in neither half.

    Args:
        data: (conditions, repetitions, channels, time); may be memory-mapped.
        splits: number of splits into halves, or all that there are if they are fewer.
        seed: of the random splits.
        progress: receives the number of conditions done, and of all.
    """
    conditions, repetitions, channels, samples = data.shape
    halves = _halves(repetitions, splits, np.random.default_rng(seed))
    total, products = np.zeros((channels, samples)), np.zeros((channels, channels))
    sums = np.zeros((len(halves), 5, channels, samples))  # of a, b, a a, b b and a b
    origin = np.asarray(data[0]).mean(axis=0, dtype=np.float64)  # subtracted: large offsets cost digits
    step = max(1, _BLOCK // max(1, data[:1].size))
    for start in range(0, conditions, step):
        progress(start, conditions)
        block = np.asarray(data[start : start + step]).astype(np.float32)
        drop_pages(data)
        block -= origin.astype(np.float32)
        total += block.sum(axis=(0, 1), dtype=np.float64)
        for split, (one, other) in zip(sums, halves):
            a, b = (block[:, half].mean(axis=1, dtype=np.float64) for half in (one, other))
            split += [part.sum(axis=0) for part in (a, b, a * a, b * b, a * b)]
        if repetitions > 1:
            block -= block.mean(axis=1, keepdims=True)
        flat = np.moveaxis(block, 2, 0).reshape(channels, -1)
        products += flat @ flat.T
    progress(conditions, conditions)
    mean = total / (conditions * repetitions)
    if repetitions > 1:
        covariance = products / (conditions * (repetitions - 1) * samples)
    else:  # around the mean over conditions
        covariance = (products - conditions * mean @ mean.T) / (max(1, conditions - 1) * samples)
    reliability = _reliability(sums, conditions, repetitions) if halves and conditions > 1 else None
    return Quality(mean + origin, covariance, reliability, conditions, repetitions, len(halves))


def spearman_brown(correlation: np.ndarray, times: float) -> np.ndarray:
    """Return the reliability of a mean over `times` as many repetitions as the means with this correlation."""
    return times * correlation / (1 + (times - 1) * correlation)


def peaks(evoked: np.ndarray, count: int = 3, distance: int = 10) -> list[int]:
    """Return the samples, ascending, where the spread over channels peaks, at least `distance` samples apart."""
    from scipy.signal import find_peaks  # slow to import

    power = np.pad(evoked.std(axis=0), 1, constant_values=-1)  # the first and the last sample may be peaks
    samples = find_peaks(power, distance=distance)[0]
    return sorted((samples[np.argsort(-power[samples], kind="stable")[:count]] - 1).tolist())


def _halves(repetitions: int, splits: int, rng: np.random.Generator) -> list[tuple[list[int], list[int]]]:
    """Return different splits of the repetitions into halves: all that there are, if they are no more than `splits`."""
    size = repetitions // 2
    if size == 0:
        return []
    if repetitions <= 8:
        chosen = itertools.combinations(range(repetitions), 2 * size)
        ways = [(half, each) for each in chosen for half in itertools.combinations(each, size) if half[0] == each[0]]
        drawn = rng.permutation(len(ways))[:splits]
        return [(list(ways[i][0]), [n for n in ways[i][1] if n not in ways[i][0]]) for i in drawn]
    orders = (rng.permutation(repetitions).tolist() for _ in range(splits))
    return [(order[:size], order[size : 2 * size]) for order in orders]


def _reliability(sums: np.ndarray, conditions: int, repetitions: int) -> np.ndarray:
    """Return the reliability, (channels, time), from the sums of `quality` over conditions."""
    a, b, aa, bb, ab = np.moveaxis(sums / conditions, 1, 0)
    spread = np.sqrt(np.clip((aa - a * a) * (bb - b * b), 0, None))
    correlation = np.divide(ab - a * b, spread, out=np.zeros_like(spread), where=spread > 0)
    mean = np.clip(correlation, -1, 1).mean(axis=0)
    return spearman_brown(np.clip(mean, -0.5, 1), repetitions / (repetitions // 2))
