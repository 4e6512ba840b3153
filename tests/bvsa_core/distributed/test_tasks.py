"""Independent tasks: here, on joblib's workers and on a Dask cluster; lost workers, stopped commands."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from dask_cluster import REPOSITORY, kill_in_the_middle, wait_for
from task_functions import context, do, wait

from bvsa_core.cli import main
from bvsa_core.distributed.tasks import LOST, TaskPool, Workers
from bvsa_core.errors import UserError
from bvsa_core.vision import shards


def run(options: Workers, folder: Path, *names: str) -> dict[str, str | None]:
    """Run tasks that write files; returns what went wrong with each."""
    with TaskPool(options, context(None), context) as pool:
        return {path.name: error for path, error in pool.run(do, [folder / name for name in names])}


@pytest.mark.parametrize("place", ["here", "workers", "cluster"])
def test_a_task_that_fails_is_reported_and_others_go_on(place, request, tmp_path):
    if place == "cluster":
        cluster = request.getfixturevalue("cluster")
        cluster.add_workers(1, threads=3)  # three threads of one task
        options = Workers(scheduler=cluster.address)
    else:
        options = Workers(2 if place == "workers" else 1, threads=3)
    results = run(options, tmp_path, "one", "wrong", "two", "unreadable", "bug", "three")
    assert results.pop("bug").rstrip().endswith("ZeroDivisionError")
    unreadable = "/nowhere: No such file or directory"
    done = dict.fromkeys(("one", "two", "three"))
    assert results == {**done, "wrong": "a task is wrong", "unreadable": unreadable}
    written = [(tmp_path / name).read_text().split(maxsplit=2) for name in done]
    assert {threads for _, threads, _ in written} == {"3"}
    longest = max((done for _, _, done in written), key=len)
    assert longest.startswith("[None, ") and (place == "workers" or longest.count(",") == 6)
    assert (str(os.getpid()) == written[0][0]) == (place == "here")


def test_threads_are_shared_out(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        run(Workers(workers=3), tmp_path, "one")
        assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / "one").read_text().split()[1] == "2"


def test_a_killed_worker_costs_its_task(tmp_path):
    names = ["one", "killed", "two", "killed once", "three", "four"]
    results = run(Workers(workers=2, threads=1), tmp_path, *names)
    assert results == {name: LOST if name == "killed" else None for name in names}
    assert all((tmp_path / name).read_text() for name in names if name != "killed")


@pytest.fixture
def waiting(tmp_path) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A command in a session of its own, as in a terminal, and its two workers, which wait."""
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "support")])
    command = [sys.executable, "-c", f"import task_functions; task_functions.wait_in_workers({str(tmp_path)!r})"]
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    workers = [int(each.stem) for each in tmp_path.glob("*.pid")]
    yield process, workers
    process.kill()
    process.wait()
    assert not any(alive(worker) for worker in workers)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_end_with_their_parent(waiting):
    process, workers = waiting
    process.kill()
    wait_for(lambda: not any(alive(worker) for worker in workers), seconds=10)


def test_ctrl_c_ends_workers_and_is_reported_once(waiting):
    process, workers = waiting
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == -signal.SIGINT and not any(alive(worker) for worker in workers)
    assert process.stderr.read().count("Traceback") == 1


def test_a_worker_that_alone_gets_a_signal_costs_its_task_nothing(tmp_path):
    assert run(Workers(workers=2, threads=1), tmp_path, "one", "stopped once", "two") == dict.fromkeys(
        ("one", "stopped once", "two")
    )
    assert (tmp_path / "stopped once").read_text()


def test_ctrl_c_stops_tasks_of_a_cluster(cluster, tmp_path):
    cluster.add_workers(1)

    def stop() -> None:
        with TaskPool(Workers(scheduler=cluster.address), context(None), context) as pool:
            for _ in pool.run(wait, [tmp_path]):
                pass

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 5)
    with pytest.raises(KeyboardInterrupt):
        stop()
    wait_for(lambda: list(tmp_path.glob("*.stopped")), seconds=10)


def test_a_worker_lost_in_the_middle_of_features_leaves_the_bank_of_one_process(
    cluster, small_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(shards, "IMAGES", 6)
    serial, shared, parallel = (tmp_path / name for name in ("serial", "shared", "parallel"))

    def fill(bank: Path, *flags: object) -> None:
        command = ("features", "--data", small_data, "--levels", "1:0", "51:0.5", "--threads", 1, "--bank", bank)
        assert main([str(word) for word in (*command, *flags)]) == 0
        assert "train: 90 images at 2 levels" in capsys.readouterr().out

    fill(serial)
    lost, _ = cluster.add_workers(2)
    killed = kill_in_the_middle(
        lost, lambda: list(shared.rglob("about.json")), lambda: list(shared.rglob("k*-of-*.safetensors"))
    )
    fill(shared, "--scheduler", cluster.address)
    killed.join()
    assert lost.wait() == -signal.SIGKILL
    fill(parallel, "--workers", 2)
    assert content(serial) == content(shared) == content(parallel) and len(content(serial)) == 8


def content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_scheduler_that_does_not_answer_is_one_line(tmp_path, small_data, capsys):
    command = ["features", "--data", str(small_data), "--bank", str(tmp_path), "--scheduler"]
    for address, message in (
        ("tcp://127.0.0.1:9", "--scheduler tcp://127.0.0.1:9: no Dask scheduler answers there ("),
        ("nonsense:", "--scheduler nonsense:: no Dask scheduler answers there ("),
    ):
        started = time.monotonic()
        assert main([*command, address]) == 2 and time.monotonic() - started < 15
        shown = capsys.readouterr().err
        assert message in shown and "start one with 'dask scheduler'" in shown and shown.count("\n") == 1


def test_options_that_do_not_fit_are_refused(monkeypatch):
    for options, message in (
        ({"workers": 0}, "--workers is 0; it must be at least 1"),
        ({"threads": 0}, "--threads is 0; it must be at least 1"),
        ({"workers": 2, "scheduler": "tcp://here:1"}, "--workers is for this machine and --scheduler for a cluster"),
    ):
        with pytest.raises(UserError, match=message):
            Workers(**options)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="each process of torchrun.*use --workers or --scheduler"):
        Workers()
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(UserError, match=r"--scheduler needs Dask .*pip install 'fovblur\[cluster\]'"):
        TaskPool(Workers(scheduler="tcp://here:1"), None, context).__enter__()
