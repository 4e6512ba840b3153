"""Progress: bars with rate, loss and remaining time on a terminal, plain lines in a log, nothing with --quiet."""

import io

import pytest
from rich.console import Console
from rich.progress import Task

from bvsa_core.cli import main
from bvsa_core.progress import LINE_EVERY_S, Display, Rate


@pytest.fixture
def output(monkeypatch):
    """Return a function that sends displays to a terminal or a log, and returns what it holds."""

    def make(terminal: bool) -> io.StringIO:
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=120, color_system=None)
        monkeypatch.setattr("bvsa_core.progress.Console", lambda stderr: console)
        return text

    return make


def test_bars_show_loss_rate_and_remaining_time_on_a_terminal(output):
    text, now = output(terminal=True), [0.0]
    display = Display()
    display.get_time = lambda: now[0]
    with display:
        display("epochs", 40, 100)  # a resumed run
        for done, at in ((44, 10.0), (48, 20.0)):
            now[0] = at
            display("epochs", done, 100, f"loss {done}.5")
        display.refresh()
    # 52 epochs left; the first 40 do not count for the rate
    for part in ("epochs", "48/100", "loss 48.5", "2.5 s each", "0:02:10"):
        assert part in text.getvalue()


def test_a_log_has_a_line_at_start_and_end_and_every_few_seconds(output):
    text, now = output(terminal=False), [0.0]
    display = Display()
    display.get_time = lambda: now[0]
    with display:
        for epoch in range(11):
            now[0] = epoch * LINE_EVERY_S / 2
            display("epochs", epoch + 0.25, 11)
            display("epochs", epoch + 1, 11, f"loss {epoch}")
        display("epochs", 11, 11)
        display("epochs", 0, 3)  # of the next subject
        display("images", 5, 5)
    lines = text.getvalue().splitlines()
    assert lines[:3] == [
        "epochs 0/11",
        "epochs 2/11, loss 1, 2.5 s each, 0:00:22 left",
        "epochs 4/11, loss 3, 2.5 s each, 0:00:17 left",
    ]
    assert [line.split(",")[0] for line in lines] == [
        "epochs 0/11", "epochs 2/11", "epochs 4/11", "epochs 6/11", "epochs 8/11", "epochs 10/11", "epochs 11/11",
        "epochs 0/3", "images 5/5",
    ]  # fmt: skip
    assert lines[6].endswith("in 0:00:25")


def test_quiet_shows_results_only(small_data, tmp_path, monkeypatch, capfd):
    train = ["train", "--data", str(small_data), "--epochs", "2", "--out"]
    assert main([*train, str(tmp_path / "loud")]) == 0
    loud = capfd.readouterr()
    assert "epochs 2/2, loss " in loud.err and "train recordings 1/1, sub-01" in loud.err
    assert main([*train, str(tmp_path / "quiet"), "--quiet"]) == 0
    quiet = capfd.readouterr()
    assert not quiet.err and quiet.out == loud.out.replace("loud", "quiet")


@pytest.mark.parametrize("terminal", [True, False])
def test_names_of_tasks_are_shown_as_they_are(output, terminal):
    text = output(terminal)
    with Display() as display:
        display("[/b] \x1b[2J", 1, 2, "[b]")
        display.refresh()
    assert r"[/b] \x1b[2J" in text.getvalue() and "[b]" in text.getvalue()


def test_rates_of_fast_tasks_are_per_second():
    task = Task(0, "images", 100, 50, _get_time=lambda: 0.0)
    task.finished_speed = 12.34
    assert Rate().render(task).plain == "12.3/s"
