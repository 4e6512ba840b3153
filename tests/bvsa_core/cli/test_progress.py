"""Progress bars: rate and remaining time on a terminal, nothing elsewhere."""

import io

import pytest
from rich.console import Console
from rich.progress import Task

from bvsa_core.cli.progress import Display, Rate


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_show_rate_and_remaining_time_only_on_a_terminal(monkeypatch, terminal):
    output, now = io.StringIO(), [0.0]
    console = Console(file=output, force_terminal=terminal, width=120)
    monkeypatch.setattr("bvsa_core.cli.progress.Console", lambda stderr: console)
    display = Display()
    display.get_time = lambda: now[0]
    with display:
        display("epochs", 40, 100)  # a resumed run
        for done, at in ((44, 10.0), (48, 20.0)):
            now[0] = at
            display("epochs", done, 100)
        display.refresh()
    if not terminal:
        assert not output.getvalue()
        return
    for part in ("epochs", "48/100", "2.5 s each", "0:02:10"):  # 52 epochs left; the first 40 do not count for the rate
        assert part in output.getvalue()


def test_names_of_tasks_are_shown_as_they_are(monkeypatch):
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr("bvsa_core.cli.progress.Console", lambda stderr: console)
    with Display() as display:
        display("[/b] \x1b[2J", 1, 2)
        display.refresh()
    assert r"[/b] \x1b[2J" in output.getvalue()


def test_rates_of_fast_tasks_are_per_second():
    task = Task(0, "images", 100, 50, _get_time=lambda: 0.0)
    task.finished_speed = 12.34
    assert Rate().render(task).plain == "12.3/s"
