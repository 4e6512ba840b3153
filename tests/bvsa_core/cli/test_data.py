"""bvsa data eeg, meg and export, and training on what they make."""

import json
import shutil

import fake_eeg
import numpy as np
import pytest

from bvsa_core.cli import main
from bvsa_core.data.dataset import Dataset
from bvsa_core.data.split import load_split

QUICK = ["--epochs", "1", "--batch_size", "64", "--method", "vanilla"]


def test_training_on_the_store_equals_training_on_its_source(small_data, tmp_path, succeed):
    stored = tmp_path / "stored"
    for done in ("converted", "was there already"):
        printed = succeed("data", "eeg", small_data, stored).splitlines()
        assert printed == [f"{name}: ubp {done}, in {stored / name}" for name in ("sub-01", "sub-02")]
    (stored / "Image_set").symlink_to(Dataset(small_data).image_folders[0])
    for split in ("train", "test"):
        first, second = (load_split(Dataset(data), ["sub-02"], split) for data in (small_data, stored))
        assert first.recordings.equal(second.recordings) and first.image_of.equal(second.image_of)
        assert (first.images, first.concepts) == (second.images, second.concepts)
    assert "nothing wrong" in succeed("data", "check", stored)
    weights = []
    for data in (small_data, stored):
        out = tmp_path / f"run-{data.name}"
        printed = succeed("train", "--data", data, "--bank", tmp_path / "bank", "--out", out, *QUICK)
        assert "synthetic data, 12-way" in printed and "source synthetic" in " ".join(printed.split())
        weights.append(next(out.rglob("weights.safetensors")).read_bytes())
    assert weights[0] == weights[1]


def test_recordings_are_exported(small_data, tmp_path, succeed):
    succeed("data", "eeg", small_data, tmp_path / "stored", "--subjects", "sub-02")
    out = tmp_path / "out" / "Preprocessed_data_250Hz_whiten"
    assert succeed("data", "export", tmp_path / "stored", out).splitlines() == [f"sub-02: written, in {out / 'sub-02'}"]
    first, second = (Dataset(data).load("sub-02", "train") for data in (small_data, tmp_path / "out"))
    np.testing.assert_array_equal(first.data, second.data)
    assert (first.images, first.sessions) == (second.images, second.sessions)


@pytest.fixture
def folders(tmp_path):
    """Make published folders, each with another error."""
    planted = fake_eeg.plant(1)
    fake_eeg.osf(tmp_path / "osf", planted)
    fake_eeg.arrays(tmp_path / "arrays", planted)
    (tmp_path / "empty").mkdir()
    shutil.copytree(tmp_path / "osf", tmp_path / "cut")
    file = tmp_path / "cut" / "sub-1" / "preprocessed_eeg_training.npy"
    file.write_bytes(file.read_bytes()[:-1000])
    (tmp_path / "file").touch()
    return tmp_path


WRONG = [
    ("eeg {t}/nowhere {t}/out", "{t}/nowhere: no such folder"),
    ("eeg {t}/empty {t}/out", "{t}/empty: none of the published EEG layouts"),
    ("eeg {t}/cut {t}/out", "{t}/cut/sub-1/preprocessed_eeg_training.npy: damaged or incomplete"),
    ("eeg {t}/osf {t}/file", "{t}/file"),
    ("eeg {t}/osf {t}/out --whitening nun", "whitening"),
    ("eeg {t}/osf {t}/out --whitening none", "whitening is none, but fixed in the layout osf_preprocessed; leave"),
    ("eeg {t}/osf {t}/out --subjects sub-07", "no subject sub-07; there are sub-01"),
    ("eeg {t}/osf {t}/out --images {t}/empty", "--images {t}/empty: neither image_metadata.npy nor"),
    ("eeg {t}/arrays {t}/out --whole_epoch true", "has no samples before image onset"),
    ("eeg {t}/osf", "folder"),
    ("meg {t}/osf {t}/out", "{t}/osf: none of the published MEG layouts"),
    ("meg {t}/osf {t}/out --whitening none", "whitening"),
    ("export {t}/empty {t}/out", "{t}/empty: no recordings inside"),
    ("egg {t}/osf {t}/out", "egg"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message[-25:] for _, message in WRONG])
def test_errors_are_one_line(arguments, message, folders, fail):
    fail(message.format(t=folders), "data", *arguments.format(t=folders).split())
    assert not list(folders.glob("out/sub-*"))


def test_a_failed_conversion_is_resumed_when_its_files_are_whole(folders, succeed):
    assert main(["data", "eeg", str(folders / "cut"), str(folders / "out")]) == 2
    name = "preprocessed_eeg_training.npy"
    shutil.copy(folders / "osf" / "sub-1" / name, folders / "cut" / "sub-1" / name)
    succeed("data", "eeg", folders / "cut", folders / "out")
    assert sorted(path.name for path in (folders / "out").iterdir()) == ["dataset.json", "sub-01"]
    assert json.loads((folders / "out" / "dataset.json").read_text())["name"] == "THINGS-EEG2"
