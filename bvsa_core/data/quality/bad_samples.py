"""Count NaN, infinite and constant samples by channel, block by block so that recordings of any size fit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bvsa_core.errors import first_few
from bvsa_core.io.memmap import drop_pages

_BLOCK = 2**24  # samples checked at once


class BadSampleCounter:
    """Counter of trials in which a channel is not finite, or constant from the first sample to the last."""

    def __init__(self, channels: int):
        self.trials = 0
        self.not_finite = np.zeros(channels, int)  # trials
        self.constant = np.zeros(channels, int)  # trials
        self.bad_conditions: list[int] = []

    def update(self, block: np.ndarray, first: int | None = None) -> None:
        """Count a block (..., channels, time), whose first axis is conditions from `first` on."""
        block = np.asarray(block).astype(np.float32, copy=False)  # comparing float16 is slow
        bad = ~np.isfinite(block).all(axis=-1)
        flat = block.max(axis=-1) == block.min(axis=-1)
        others = tuple(range(block.ndim - 2))
        self.trials += bad.size // bad.shape[-1]
        self.not_finite += bad.sum(axis=others)
        self.constant += (flat & ~bad).sum(axis=others)
        if first is not None and bad.any():
            self.bad_conditions += (first + np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))).tolist()

    def messages(self, path: Path, channels: list[str], images: list[str] | None = None) -> list[str]:
        """Return one line for each kind of damage."""
        lines = []
        if self.not_finite.any():
            where, remedy = f"channels {self._worst(channels, self.not_finite)}", "fetch or make it again"
            if self.bad_conditions and images is not None:
                first, more = self.bad_conditions[0], len(self.bad_conditions) - 1
                which = f"condition {first} ({images[first]})" + (f" and {more} more" if more else "")
                lines.append(f"{path}: {which}: NaN or infinite samples in {where}; {remedy}")
            else:
                lines.append(f"{path}: NaN, or too large for float16, in {where}; {remedy}")
        if self.constant.any():
            where = f"channels {self._worst(channels, self.constant)}"
            lines.append(f"{path}: flat in {where}; leave these out, or make the file again")
        return lines

    def _worst(self, channels: list[str], counts: np.ndarray) -> str:
        return first_few([f"{channels[i]} ({counts[i]} of {self.trials} trials)" for i in np.flatnonzero(counts)])


def count_bad_samples(data: np.ndarray, progress: Callable[[int, int], None] = lambda *_: None) -> BadSampleCounter:
    """Count the bad samples of (conditions, repetitions, channels, time), which may be memory-mapped."""
    counter = BadSampleCounter(data.shape[2])
    step = max(1, _BLOCK // max(1, data[:1].size))
    for start in range(0, len(data), step):
        progress(start, len(data))
        counter.update(data[start : start + step], start)
        drop_pages(data)
    progress(len(data), len(data))
    return counter
