"""Progress of long work: one protocol for terminal bars, logs and tests."""

from typing import Protocol


class Progress(Protocol):
    """A callable that receives how far each task has come."""

    def __call__(self, task: str, done: float, total: int, note: str = "", /) -> None:
        """Report that `done` of `total` items of `task` are finished; fractions count parts of an item.

        `note` is a figure to show beside them, such as the loss.
        """


def no_progress(task: str, done: float, total: int, note: str = "", /) -> None:
    """Ignore all reports; the default of functions that take a `Progress`."""
