"""How long work reports its progress: one protocol, which a terminal's bars, a log or a test implement."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A callable that hears how far each task of some work has come."""

    def __call__(self, task: str, done: float, total: int, /) -> None:
        """Report that `done` of `total` items of `task` are finished; fractions are parts of the item at work."""


def no_progress(task: str, done: float, total: int, /) -> None:
    """Ignore all reports; the default where a function takes a `Progress`."""
