"""Progress: how fast and how long yet on a terminal, silence elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bvsa_core.cli import progress


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_tell_rate_and_remaining_time_on_a_terminal_alone(monkeypatch, terminal):
    shown, now = io.StringIO(), [0.0]
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=shown, force_terminal=terminal, width=120))
    display = progress.Display()
    display._bars.get_time = lambda: now[0]
    with display:
        display("epochs", 40, 100)  # as of a run that goes on
        for done, at in ((44, 10.0), (48, 20.0)):
            now[0] = at
            display("epochs", done, 100)
        display._bars.refresh()
    if not terminal:
        assert not shown.getvalue()
        return
    assert "epochs" in shown.getvalue() and "48/100" in shown.getvalue()
    assert (
        "2.5 s each" in shown.getvalue() and "0:02:10" in shown.getvalue()
    )  # 52 epochs, not counting the 40 as done in no time


def test_rates_of_fast_things_are_a_second():
    task = progress.Task(0, "images", 100, 50, _get_time=lambda: 0.0)
    task.finished_speed = 12.34
    assert progress.Rate().render(task).plain == "12.3/s"
