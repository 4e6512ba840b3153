"""Runs in the way of others, and runs whose data or folder have moved."""

import json
import shutil
from pathlib import Path

import pytest

from bvsa_core.cli import main
from bvsa_core.training import run_folder

QUICK = ("--epochs", "1", "--batch_size", "64")


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture
def other(finished, tmp_path) -> Path:
    """A finished run of other settings, with what other commands and the user left beside it."""
    folder = shutil.copytree(finished, tmp_path / "run")
    for name in ("scores.json", "retrieved.json", "notes.txt"):
        (folder / name).write_text("{}")
    return folder


def test_overwrite_replaces_a_run_once_data_and_options_are_checked(other, small_data, succeed, fail):
    command = ["train", "--data", small_data, "--out", other, *QUICK]
    before = times(other)
    fail("holds a run with other settings: epochs 2 -> 1; choose another folder", *command)
    fail("validation is 999", *command, "--overwrite", "--validation", 999)
    assert times(other) == before
    succeed(*command, "--overwrite")
    result = json.loads((other / "result.json").read_text())
    written = {"run.yaml", "metrics.jsonl", "weights.safetensors", "embeddings.safetensors", "result.json"}
    assert result["epoch"] == 1 and times(other).keys() == {*written, "notes.txt"}
    after = times(other)
    succeed(*command, "--overwrite")
    assert times(other) == after  # it is complete


@pytest.mark.parametrize("damage", ["", "method: bvsa", "[1", "epochs: many\n"])
def test_overwrite_replaces_a_damaged_run(other, small_data, succeed, damage):
    (other / "run.yaml").write_text(damage)
    succeed("train", "--data", small_data, "--out", other, *QUICK, "--overwrite")
    assert "epochs: 1" in (other / "run.yaml").read_text()


def test_a_kill_in_the_middle_of_overwriting_leaves_an_unfinished_run(other, small_data, succeed, monkeypatch):
    removed: list[Path] = []

    def killed(path: Path) -> None:
        if removed:
            raise KeyboardInterrupt
        path.unlink()
        removed.append(path)

    command = ["train", "--data", str(small_data), "--out", str(other), *QUICK, "--overwrite"]
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "remove", killed)
        assert main(command) == 130
    assert removed == [other / "result.json"] and (other / "run.yaml").exists() and (other / "notes.txt").exists()
    succeed(*command)
    assert (other / "result.json").exists() and not (other / "scores.json").exists()


def test_a_run_finds_relative_data_from_any_folder_and_after_a_move(small_data, tmp_path, monkeypatch, succeed, fail):
    work = tmp_path / "work"
    shutil.copytree(small_data, work / "data")
    monkeypatch.chdir(work)
    train = ("train", "--out", "runs/deep/run", "--method", "vanilla", *QUICK, "--data")
    shown = succeed(*train, "data")
    assert "data: data\n" in (work / "runs/deep/run/run.yaml").read_text()
    expected = succeed("retrieve", "runs/deep/run", "--top", 2).replace("runs/deep/run", "RUN")
    assert succeed(*train, work / "data") == shown  # the same place, by another name: the run is complete

    (tmp_path / "elsewhere" / "data").mkdir(parents=True)  # no data set, and not the run's
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = work / "runs/deep/run"
    assert succeed("retrieve", run, "--top", 2).replace(str(run), "RUN") == expected
    work.rename(tmp_path / "moved")
    run = tmp_path / "moved/runs/deep/run"
    assert succeed("retrieve", run, "--top", 2).replace(str(run), "RUN") == expected
    shutil.rmtree(tmp_path / "moved/data")
    fail("data: no recordings inside", "retrieve", run)  # the folder of that name here, as before
