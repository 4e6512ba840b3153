"""Progress bars on a terminal; nothing elsewhere."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Rate(ProgressColumn):
    """Items per second, or seconds per item for slow tasks."""

    def render(self, task: Task) -> Text:
        """Return the rate as text, empty while it is unknown."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


class Display:
    """Progress bars on standard error, one per task: a `bvsa_core.progress.Progress` and a context manager."""

    def __init__(self, quiet: bool = False) -> None:
        console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), Rate(), TimeElapsedColumn(), TimeRemainingColumn())
        disable = quiet or not console.is_terminal
        self._bars = Progress(TextColumn("{task.description:<28}"), *columns, console=console, disable=disable)
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, task: str, done: float, total: int, /) -> None:
        """Show that `done` of `total` items of `task` are finished."""
        if task not in self._tasks:  # items done before the first report do not count towards the rate
            self._tasks[task] = self._bars.add_task(task, total=total, completed=int(done))
        self._bars.update(self._tasks[task], completed=done, total=total)

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
