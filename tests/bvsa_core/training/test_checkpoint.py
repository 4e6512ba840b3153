"""Runs that are stopped or killed, or meet a full disk, continue to the bytes of an undisturbed one."""

import errno
import io
import math
import os
import pickle
import random
import re
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from method_inputs import SMALLER

from bvsa_core import encoders, methods
from bvsa_core.data.split import Split
from bvsa_core.errors import UserError
from bvsa_core.io import atomic
from bvsa_core.io.atomic import lock
from bvsa_core.training import checkpoint
from bvsa_core.training.augmentation import Augmentation
from bvsa_core.training.checkpoint import Checkpointer, Stopped
from bvsa_core.training.config import RunConfig, RunDataConfig
from bvsa_core.training.loop import fit
from bvsa_core.training.run import run
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder

KILLS = {"data": 7, "train": 8, "grid": 6}
TRAINED = ("--method", "bvsa", "--selection", "validation", "--validation", 6, "--batch_size", 8)
TINIER = "--train_concepts 4 --images_per_concept 2 --train_repetitions 1 --test_concepts 2 --samples 50".split()
GRID = """
methods: [vanilla, {method: bravl, options: {draws: 2, hidden: 16}}]
seeds: 1
resamples: 0
run: {epochs: 2, batch_size: 16}
"""


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "page.html")  # which has a date
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def jobs(tiny_data, tmp_path_factory) -> dict[str, tuple]:
    """Return commands without the folder they write to."""
    grid = tmp_path_factory.mktemp("grids") / "tiny.yaml"
    grid.write_text(GRID)
    return {
        "data": ("data", "synthetic", *TINIER),
        "train": ("train", "--data", tiny_data, *TRAINED, "--epochs", 3, "--out"),
        "grid": ("reproduce", grid, "--eeg", tiny_data, "--out"),
    }


@pytest.mark.parametrize("job", ["data", "train", "grid"])
def test_a_job_killed_at_random_moments_continues_to_the_same_bytes(fork_server, jobs, tmp_path, seed, job):
    when, arguments = random.Random(seed), jobs[job]
    (undisturbed,) = fork_server.bvsa(*arguments, tmp_path / "whole")
    assert undisturbed.code == 0, undisturbed.err
    expected, killed, finished = content(tmp_path / "whole"), 0, 0
    while killed < KILLS[job] or finished < 1:
        folder = tmp_path / f"disturbed{finished}"
        after = when.uniform(0, undisturbed.seconds) if killed < KILLS[job] else None
        (ended,) = fork_server.bvsa(*arguments, folder, after=after)
        assert ended.code in (0, -signal.SIGKILL), ended.err
        killed += ended.code != 0
        if ended.code == 0:
            finished += 1
            assert content(folder) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reports_how_to_continue_and_the_run_does(fork_server, jobs, tmp_path, number):
    arguments = ("train", "--quiet", *jobs["train"][1:-3], "--epochs", 15, "--out", tmp_path / "run")
    folder = tmp_path / "run"
    (ended,) = fork_server.bvsa(*arguments, after=folder / "resume.pt", by=number)
    message = rf"bvsa: {folder}: stopped in epoch \d+ of 15; the same command continues\n"
    assert ended.code == 128 + number and re.fullmatch(message, ended.err), ended
    assert not list(folder.glob(".*"))
    (ended,) = fork_server.bvsa(*arguments)
    continued = content(folder)
    shutil.rmtree(folder)
    (undisturbed,) = fork_server.bvsa(*arguments)
    assert ended.code == undisturbed.code == 0 and continued == content(folder)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_continues_from_any_batch(tmp_path, name, seed):
    """The saved state is complete: parameters, per-sample state, moments, random numbers, augmentation."""
    torch.manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(20, 8), dim=1)
    names, subject_of = [str(i) for i in range(20)], torch.zeros(20, dtype=torch.int64)
    split = Split(torch.randn(20, 2, 75), torch.arange(20), names, names, ["O1", "O2"], 1, subject_of, ["sub-01"])
    options = {"samga": SMALLER["samga"]}.get(name)
    config = RunConfig(method=name, method_options=options, encoder="tsconv", epochs=2, batch_size=8, lr=1e-3)
    augment = Augmentation(split, ["shift", "smooth", "noise", "channel_dropout"], seed)

    def train(checkpointer: Checkpointer | None, begin: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(begin)
        build = partial(encoders.build, "tsconv")
        method = methods.method_class(name)(config.method_options, build, len(split), encoders.InputSpec(2, 75, 8))
        views = lambda indices, gain, kernel_size: features[indices]  # noqa: E731
        report = checkpointer.folder.add_metrics if checkpointer else lambda metrics: None
        settings = {"checkpointer": checkpointer, "augment": augment}
        fit(method, split, views, features, config, Fabric(accelerator="cpu"), report, **settings)
        return method.state_dict()

    expected = train(None, seed)
    stop_after = random.Random(seed).sample(range(1, 6), 2)  # of six batches
    folder = RunFolder(tmp_path)
    for batches in stop_after:
        checkpointer = Checkpointer(folder)
        checkpointer.on_step_end = partial(stop_at, checkpointer, (batches - 1) // 3, (batches - 1) % 3 + 1)
        with pytest.raises(Stopped, match=r"stopped in epoch \d of 2"):
            train(checkpointer, seed)
        state = train(Checkpointer(folder), seed + 1)  # what the new seed has drawn is replaced
        assert all(torch.equal(state[key], expected[key]) for key in expected)
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
        folder.resume.unlink()


def stop_at(checkpointer: Checkpointer, epoch: int, batch: int, state, *of: int) -> None:
    checkpointer.stopping = signal.SIGINT if (state.epoch, state.batch) == (epoch, batch) else None
    Checkpointer.on_step_end(checkpointer, state, *of)


@pytest.fixture(scope="module")
def run_data(tiny_data) -> RunData:
    return RunData(RunDataConfig(data=tiny_data))


@pytest.fixture
def every_batch(monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(checkpoint, "MAX_WRITE_SHARE", math.inf)


def config(run_data: RunData) -> RunConfig:
    return RunConfig(data=run_data.config.data, method="ubp", epochs=2, batch_size=16)


def test_a_disk_that_is_full_at_any_write_loses_nothing(run_data, tmp_path, every_batch, monkeypatch):
    expected = run(config(run_data), run_data, RunFolder(tmp_path / "whole"))
    writes, room, full = 0, 0, True

    class Full(io.FileIO):
        """A file that writes half of its data once there is no room."""

        def write(self, data: bytes) -> None:
            nonlocal writes
            writes += 1
            super().write(data if writes <= room else data[: len(data) // 2])
            if writes > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    while full:
        folder, writes, full = RunFolder(tmp_path / f"run{room}"), 0, False
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "open", Full, raising=False)
            try:
                run(config(run_data), run_data, folder)
            except UserError as error:
                full = True
                assert str(error).startswith(f"{folder.path}/"), error
                problem = "cannot be written (No space left on device)"
                assert str(error).endswith(f"{problem}; make room, or choose another folder")
        assert not list(folder.path.glob(".*"))
        assert run(config(run_data), run_data, folder) == expected
        assert content(folder.path) == content(tmp_path / "whole")
        room += 1
    # run.yaml, no metrics; twice two batches, a line and an epoch; weights, embeddings, result; and the undisturbed run
    assert room == 1 + 1 + 2 * (2 + 1 + 1) + 3 + 1


def test_a_folder_takes_one_run_at_a_time_and_a_dead_one_does_not_count(run_data, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with (
        lock(folder, activity="a run"),
        pytest.raises(UserError, match=rf"run: a run is going on there \(process {os.getpid()} on .*\); wait"),
    ):
        run(config(run_data), run_data, RunFolder(folder))
    (folder / ".lock").write_text("process 1 on elsewhere\n")  # left by a killed process
    (folder / ".weights.safetensors.elsewhere.1.partial").write_text("half")
    result = run(config(run_data), run_data, RunFolder(folder))
    assert not list(folder.glob(".*"))
    (folder / ".lock").touch()  # left by one that was killed at the very end
    assert run(config(run_data), run_data, RunFolder(folder)) == result and not list(folder.glob(".*"))


def test_states_that_are_damaged_or_of_another_run_or_version_are_refused(run_data, tmp_path, every_batch, monkeypatch):
    folder = RunFolder(tmp_path)
    states = []
    monkeypatch.setattr(checkpoint, "write_atomically", lambda path, content: states.append(content))
    expected = run(config(run_data), run_data, folder)
    (tmp_path / "result.json").unlink()
    archive = states[0].partition(b"\n")[2]
    flipped = bytearray(states[0])
    flipped[len(flipped) // 2] ^= 1  # in a weight, where torch.load notices nothing
    others = {}
    for name, value in (("seed", 3), ("lr", 0.5)):
        run(replace(config(run_data), **{name: value}), run_data, RunFolder(tmp_path / name))
        others[name] = states[-1]
    cases = {
        b"": "damaged, or of another version",
        b"no archive": "damaged, or of another version",
        archive: "damaged, or of another version",
        pickle.dumps(print, 2): "damaged, or of another version",
        states[0][: len(states[0]) // 2]: "its checksum differs",
        bytes(flipped): "its checksum differs",
        others["seed"]: "seed was 3, and is 0",
        others["lr"]: "lr was 0.5, and is 0.0001",
    }
    for content, reason in cases.items():
        folder.resume.write_bytes(content)
        message = rf"resume.pt: not the state of this run \(.*{reason}\); delete it, and the run"
        with pytest.raises(UserError, match=message) as error:
            run(config(run_data), run_data, folder)
        assert "\n" not in str(error.value)
    folder.resume.rename(tmp_path / "resume.safetensors")
    with pytest.raises(UserError, match=r"resume.safetensors: the state of an earlier version; delete it, and the run"):
        run(config(run_data), run_data, folder)
    (tmp_path / "resume.safetensors").unlink()
    assert run(config(run_data), run_data, folder) == expected
