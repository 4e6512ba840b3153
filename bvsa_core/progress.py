"""Progress of long work: one protocol, and its display on standard error, as bars on a terminal or lines in a log."""

import datetime
from typing import ClassVar, Protocol

from rich import progress
from rich.console import Console
from rich.text import Text

from bvsa_core.errors import printable

LINE_EVERY_S = 5.0  # between the lines of a task in a log


class Progress(Protocol):
    """A callable that receives how far each task has come."""

    def __call__(self, task: str, done: float, total: int, note: str = "", /) -> None:
        """Report that `done` of `total` items of `task` are finished; fractions count parts of an item.

        `note` is a figure to show beside them, such as the loss.
        """


def no_progress(task: str, done: float, total: int, note: str = "", /) -> None:
    """Ignore all reports; the default of functions that take a `Progress`."""


class Rate(progress.ProgressColumn):
    """Items per second, or seconds per item for slow tasks."""

    def render(self, task: progress.Task) -> Text:
        """Return the rate as text, empty while it is unknown."""
        return Text(_rate(task))


class Display(progress.Progress):
    """Progress of tasks on standard error: a `Progress` and a context manager.

    On a terminal every task has a bar. Elsewhere it has a line when it starts, when it ends, and every few seconds
    between.

    Args:
        quiet: show nothing.
    """

    quiet: ClassVar[bool] = False  # of all displays; --quiet sets it

    def __init__(self, quiet: bool = False) -> None:
        console = Console(stderr=True)
        quiet = quiet or Display.quiet
        done = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[note]}", markup=False),
        )
        times = progress.TimeElapsedColumn(), progress.TimeRemainingColumn()
        super().__init__(*done, Rate(), *times, console=console, disable=quiet or not console.is_terminal)
        self._ids: dict[str, progress.TaskID] = {}
        self._last_lines: dict[str, float] | None = None if quiet or console.is_terminal else {}

    def __call__(self, task: str, done: float, total: int, note: str = "", /) -> None:
        """Show that `done` of `total` items of `task` are finished; a task that starts anew counts from its start."""
        begins = task not in self._ids
        if begins:  # items done before the first report do not count towards the rate
            self._ids[task] = self.add_task(printable(task), total=total, completed=int(done), note="")
        shown = self.tasks[self._ids[task]]
        was_finished = shown.finished and not begins
        if not begins and done < total and (was_finished or done < shown.completed):
            self.reset(shown.id, total=total, completed=int(done), note="")
            begins, was_finished = True, False
        self.update(shown.id, completed=done, total=total, note=printable(note) or shown.fields["note"])
        if self._last_lines is not None and not was_finished:
            due = self.get_time() - self._last_lines.get(task, 0.0) >= LINE_EVERY_S
            if begins or shown.finished or due:
                self._last_lines[task] = self.get_time()
                self.console.print(_line(shown), markup=False, highlight=False, soft_wrap=True)


def _rate(task: progress.Task) -> str:
    speed = task.finished_speed or task.speed
    if not speed:
        return ""
    return f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"


def _line(task: progress.Task) -> str:
    """Return a task's progress as a line of a log."""
    seconds = task.elapsed if task.finished else task.time_remaining
    time = str(datetime.timedelta(seconds=int(seconds or 0)))
    end = "" if not seconds or seconds < 1 else f"in {time}" if task.finished else f"{time} left"
    counts = f"{task.description} {int(task.completed)}/{int(task.total or 0)}"
    return ", ".join(part for part in (counts, task.fields["note"], _rate(task), end) if part)
