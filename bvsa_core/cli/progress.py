"""Progress bars on a terminal; nothing elsewhere."""

from rich import progress
from rich.console import Console
from rich.text import Text

from bvsa_core.errors import printable


class Rate(progress.ProgressColumn):
    """Items per second, or seconds per item for slow tasks."""

    def render(self, task: progress.Task) -> Text:
        """Return the rate as text, empty while it is unknown."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


class Display(progress.Progress):
    """Progress bars on standard error, one per task: a `bvsa_core.progress.Progress` and a context manager."""

    def __init__(self, quiet: bool = False) -> None:
        console = Console(stderr=True)
        done = (
            progress.TextColumn("{task.description:<28}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
        )
        times = progress.TimeElapsedColumn(), progress.TimeRemainingColumn()
        super().__init__(*done, Rate(), *times, console=console, disable=quiet or not console.is_terminal)
        self._ids: dict[str, progress.TaskID] = {}

    def __call__(self, task: str, done: float, total: int, /) -> None:
        """Show that `done` of `total` items of `task` are finished."""
        if task not in self._ids:  # items done before the first report do not count towards the rate
            self._ids[task] = self.add_task(printable(task), total=total, completed=int(done))
        self.update(self._ids[task], completed=done, total=total)
