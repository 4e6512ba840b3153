"""Samples that cannot be right, channel by channel, counted block by block so that recordings of any size fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bvsa_core.data.layouts.conversion import drop_pages

_BLOCK = 2**24  # samples looked at at once
_NAMED = 5  # of many


class BadSampleCounter:
    """Trials in which a channel is not finite, or the same from the first sample to the last.

    Args:
        channels: how many.
    """

    def __init__(self, channels: int):
        self.trials = 0
        self.not_finite = np.zeros(channels, int)  # trials
        self.constant = np.zeros(channels, int)  # trials
        self.bad_conditions: list[int] = []

    def add(self, block: np.ndarray, first: int | None = None) -> None:
        """Count a block (..., channels, time); its first axis are the conditions from `first` on."""
        block = np.asarray(block).astype(np.float32, copy=False)  # float16 is compared slowly
        bad = ~np.isfinite(block).all(axis=-1)
        flat = block.max(axis=-1) == block.min(axis=-1)
        others = tuple(range(block.ndim - 2))
        self.trials += bad.size // bad.shape[-1]
        self.not_finite += bad.sum(axis=others)
        self.constant += (flat & ~bad).sum(axis=others)
        if first is not None and bad.any():
            self.bad_conditions += (first + np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))).tolist()

    def problems(self, path: Path, channels: list[str], images: list[str] | None = None) -> list[str]:
        """One line for each kind of damage."""
        lines = []
        if self.not_finite.any():
            where = f"channels {self._told(channels, self.not_finite)}"
            if self.bad_conditions and images is not None:
                first, more = self.bad_conditions[0], len(self.bad_conditions) - 1
                which = f"condition {first} ({images[first]})" + (f" and {more} more" if more else "")
                lines.append(f"{path}: {which}: NaN or infinite samples in {where}; fetch or make it again")
            else:
                lines.append(f"{path}: NaN, or too large for float16, in {where}; fetch or make it again")
        if self.constant.any():
            lines.append(
                f"{path}: flat in channels {self._told(channels, self.constant)}; leave these out, or make the file again"
            )
        return lines

    def _told(self, channels: list[str], counts: np.ndarray) -> str:
        found = np.flatnonzero(counts)
        named = [f"{channels[i]} ({counts[i]} of {self.trials} trials)" for i in found[:_NAMED]]
        return first_few(named, len(found))


def first_few(named: list[str], count: int | None = None) -> str:
    """The first five, and how many more there are."""
    count = len(named) if count is None else count
    return ", ".join(named[:_NAMED]) + (f" and {count - _NAMED} more" if count > _NAMED else "")


def scan(data: np.ndarray, progress: Callable[[int, int], None] = lambda *_: None) -> BadSampleCounter:
    """Look at (conditions, repetitions, channels, time), which may be memory-mapped."""
    found = BadSampleCounter(data.shape[2])
    step = max(1, _BLOCK // max(1, data[:1].size))
    for start in range(0, len(data), step):
        progress(start, len(data))
        found.add(data[start : start + step], start)
        drop_pages(data)
    progress(len(data), len(data))
    return found
