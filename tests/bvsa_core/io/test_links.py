"""Links, pipes and devices in folders from elsewhere: nothing is written, locked or deleted through them."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bvsa_core.data.stimulus_set import import_images
from bvsa_core.data.store import SubjectWriter, cached_array
from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import RunDataCache, run_cell
from bvsa_core.experiments.grid import Cell
from bvsa_core.io.atomic import append_line, lock, make_folder, remove_temporary, write_atomically
from bvsa_core.io.image_file import read_image
from bvsa_core.synthetic.dataset import SyntheticConfig, make_dataset
from bvsa_core.training.config import RunConfig, RunDataConfig
from bvsa_core.training.logs import logger
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.vision.bank import FeatureBank
from bvsa_core.vision.clip import load_clip

CELL = Cell(RunConfig(), "eeg", "bvsa", (), 0)
pytestmark = pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="needs links that any user can make")


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """Return a folder that must stay as it is."""
    folder = tmp_path / "elsewhere"
    (folder / "sub").mkdir(parents=True)
    for name in ("precious", "sub/precious", ".x.0123.partial"):
        (folder / name).write_text("precious\n")
    return folder


def contents(folder: Path) -> dict[str, str | None]:
    return {str(path): path.read_text() if path.is_file() else None for path in folder.rglob("*")}


def holding(folder: Path, name: str | None = None) -> None:
    with lock(folder, name):
        pass


def convert(folder: Path) -> None:
    with SubjectWriter(folder, "sub-01", {"layout": "some"}):
        pass


def bring_images(folder: Path) -> None:
    source = folder.parent / "source"
    path = source / "test_images/00001_bat/bat_01s.jpg"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(path)
    import_images(source, folder, 8)


def run(folder: Path) -> None:
    run_folder = RunFolder(folder)
    with run_folder.locked():
        run_folder.begin(RunConfig())


def run_in_grid(folder: Path) -> None:
    run_cell(CELL, folder, RunDataCache())


def synthesise(folder: Path) -> None:
    config = SyntheticConfig(subjects=1, train_concepts=1, test_concepts=1)
    description = {"name": "synthetic", "modality": "EEG", "config": asdict(config)}
    (folder / "dataset.json").write_text(json.dumps(description))
    make_dataset(folder, config)


def log(folder: Path) -> None:
    with logger("tensorboard", folder):
        pass


TO_FOLDERS: dict[str, Callable[[Path], object]] = {
    ".sub-01.partial": convert,
    "Preprocessed_data_250Hz_whiten": synthesise,
    "Image_set_Resize": bring_images,
    "Image_set_Resize/test_images": bring_images,
    "Image_feature": lambda folder: RunData(RunDataConfig(data=folder)).bank_for_paths([]),
    str(CELL.folder.parent): run_in_grid,
    str(CELL.folder): run_in_grid,
    "tensorboard": log,
}
TO_FILES: dict[str, Callable[[Path], object]] = {
    ".lock": holding,
    ".name.lock": lambda folder: holding(folder, "name"),
    "lines": lambda folder: append_line(folder / "lines", "line"),
    "file": lambda folder: write_atomically(folder / "file", b"content"),
    "run.yaml": run,
    "metrics.jsonl": run,
    "resume.pt": run,
    "array.npy": lambda folder: cached_array(folder / "array.npy", lambda: np.zeros(1)),
}


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("name", [*TO_FOLDERS, *TO_FILES])
def test_links_of_our_names_are_refused(tmp_path, elsewhere, name, dangling):
    folder, before = tmp_path / "from_elsewhere", contents(elsewhere)
    (folder / name).parent.mkdir(parents=True)
    act = {**TO_FOLDERS, **TO_FILES}[name]
    (folder / name).symlink_to(elsewhere / ("missing" if dangling else "sub" if name in TO_FOLDERS else "precious"))
    with pytest.raises(UserError, match=f"{name}: is a symbolic link, which is not written to; "):
        act(folder)
    assert contents(elsewhere) == before


def test_links_are_cleared_away_and_not_what_they_lead_to(tmp_path, elsewhere):
    folder, before = tmp_path / "from_elsewhere", contents(elsewhere)
    folder.mkdir()
    for number, target in enumerate(("sub", "precious", "missing")):
        (folder / f".x.{number}.partial").symlink_to(elsewhere / target)
    remove_temporary(folder)
    assert not list(folder.iterdir())
    partial = folder / ".sub-01.partial"
    partial.mkdir()
    (partial / "train.npy").symlink_to(elsewhere / "precious")
    (partial / "sessions").symlink_to(elsewhere)
    with SubjectWriter(folder, "sub-01", {"layout": "some"}) as writer:
        writer.create_array("train", (1, 1, 1, 1))[:] = 1
    assert contents(elsewhere) == before


def test_a_folder_is_not_made_where_a_link_leads(tmp_path, elsewhere):
    (tmp_path / "sub-01").symlink_to(elsewhere / "missing")
    with pytest.raises(UserError, match="sub-01: is a symbolic link"):
        make_folder(tmp_path / "sub-01", lambda made: None)
    assert not (elsewhere / "missing").exists()


def test_a_bank_of_elsewhere_leads_nowhere(tmp_path, elsewhere):
    clip = load_clip("tiny")
    bank = FeatureBank(tmp_path / "bank", clip, [])
    bank.folder.rename(tmp_path / "moved")
    bank.folder.symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{bank.key}: is a symbolic link"):
        FeatureBank(tmp_path / "bank", clip, [])


def test_folders_that_the_user_names_may_be_links(tmp_path):
    (tmp_path / "disk").mkdir()
    folder = tmp_path / "out"
    folder.symlink_to(tmp_path / "disk")
    with lock(folder):
        write_atomically(folder / "file", b"content")
        append_line(folder / "lines", "line")
        make_folder(folder / "made", lambda made: None)
    run(folder / "run")
    assert sorted(os.listdir(tmp_path / "disk")) == ["file", "lines", "made", "run"]


@pytest.mark.parametrize("name", [".lock", "lines", "file", "resume.pt"])
def test_pipes_are_neither_read_nor_written(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: is no regular file, which is not written to"):
        TO_FILES[name](tmp_path)


def test_an_image_is_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("/dev/zero")
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(UserError, match=f"image .*{name} is no regular file; remove it"):
            read_image(tmp_path / name)
