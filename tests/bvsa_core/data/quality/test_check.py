"""bvsa data check reports everything that is wrong with a store or a published folder, and the remedy."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import fake_eeg
import numpy as np
import pytest
from command_output import error_of
from PIL import Image

from bvsa_core.cli import main
from bvsa_core.data import store, things_eeg
from bvsa_core.data.quality.check import check_dataset
from bvsa_core.data.store import Header, SplitHeader, SubjectWriter
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import Locked, lock

RECIPE = {"layout": "planted", "files": {}}


def make(folder: Path, subject: str = "sub-01", data=None, repetitions: int = 4, **changes) -> Path:
    """Write a subject of three training and two test images, with two channels and five samples."""
    splits = {}
    with SubjectWriter(folder, subject, RECIPE) as writer:
        for split, conditions in (("train", 3), ("test", 2)):
            names = [f"{split}{i}" for i in range(conditions)]
            files = [f"{i:05d}_{name}/{name}_01b.jpg" for i, name in enumerate(names, start=1)]
            images = [f"{fake_eeg.PARTS[split]}_images/{file}" for file in files]
            shape = [conditions, repetitions, 2, 5]
            sessions = np.tile([1, 1, 2, 2], (conditions, 1))[:, :repetitions].tolist()
            splits[split] = SplitHeader(shape, images, names, sessions)
            array = writer.create_array(split, tuple(shape))
            array[:] = np.random.default_rng(0).standard_normal(shape) if data is None else data
            array.flush()
            for image in images:
                path = folder / "Image_set_Resize" / image
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), (50 * conditions, 20 * len(path.name), int(path.parent.name[:5]))).save(path)
        times = [i / 100 for i in range(5)]
        header = Header(subject, "EEG", "V", 100.0, ["O1", "Oz"], times, "planted", ["Made."], splits)
        writer.commit(replace(header, **changes))
    return folder / subject


def alter(subject: Path, **changes) -> None:
    path = subject / store.HEADER
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def alter_split(subject: Path, split: str, **changes) -> None:
    splits = json.loads((subject / store.HEADER).read_text())["splits"]
    splits[split] |= changes
    alter(subject, splits=splits)


def alter_samples(subject: Path, split: str, where: tuple, value: float) -> None:
    data = np.load(subject / f"{split}.npy", mmap_mode="r+")
    data[where] = value
    data.flush()


def problems(folder: Path) -> list[str]:
    lines = check_dataset(folder).problems
    assert all("; " in line and "\n" not in line for line in lines), lines
    return lines


def check_each_once(lines: list[str], parts: list[str]) -> None:
    """Check that each of the parts is in one line."""
    for part in parts:
        assert sum(part in line for line in lines) == 1, part


@pytest.fixture
def two(tmp_path):
    make(tmp_path), make(tmp_path, "sub-02")
    return tmp_path


def test_a_new_store_has_no_problems_and_an_empty_folder_is_no_data_set(two):
    (two / "empty").mkdir()
    with pytest.raises(UserError, match="no recordings inside"):
        check_dataset(two / "empty")
    report = check_dataset(two)
    assert report.problems == [] and report.summary[-1] == "5 images named"


def test_damaged_samples_are_named_by_channel_and_by_checksum(two):
    alter_samples(two / "sub-01", "train", (1, 2, 0, 3), np.nan)
    alter_samples(two / "sub-01", "train", (2, 0, 0, 3), np.inf)
    alter_samples(two / "sub-02", "test", (slice(None), slice(None), 1), 7)
    bad, altered, flat, altered_too = problems(two)
    assert "sub-01/train.npy: condition 1 (training_images/00002_train1/train1_01b.jpg) and 1 more" in bad
    assert "O1 (2 of 12 trials)" in bad
    assert "sub-02/test.npy: flat in channels Oz (8 of 8 trials);" in flat and "O1" not in flat
    assert all("checksum differs" in line for line in (altered, altered_too))


HEADERS = [
    ({"units": ""}, "has no units"),
    ({"sampling_rate": 0}, "the sampling rate is 0"),
    ({"sampling_rate": 250.0}, "250 Hz, and times 0.01 s apart"),
    ({"times": [0.0, 0.01, 0.01, 0.02, 0.03]}, "times that do not increase"),
    ({"channels": ["Oz", "Oz"]}, "channels named twice: Oz"),
    ({"channels": ["Oz"]}, "damaged (the train part contradicts itself)"),
    ({"times": "soon!"}, "damaged (something in it is of another type)"),
    ({"modality": "MEG"}, "MEG recordings in a folder of EEG"),
    ({"format": 9}, "format 9, and this version reads 1"),
]


@pytest.mark.parametrize(("changes", "message"), HEADERS)
def test_errors_in_a_header_are_reported(tmp_path, changes, message):
    subject = make(tmp_path)
    (tmp_path / "dataset.json").write_text('{"name": "x", "modality": "EEG"}')
    alter(subject, **changes)
    (line,) = problems(tmp_path)
    assert "sub-01/header.json: " in line and message in line


def test_errors_in_conditions_are_reported(tmp_path):
    subject = make(tmp_path)
    images = store.read_header(subject).splits["train"].images
    alter_split(subject, "train", images=[images[0], images[0], images[2]], sessions=[[1, 1, 3, 3]] * 3)
    alter_split(subject, "test", concepts=["Train0", "test1"], sessions=[[1, 1, 3, 3]] * 2)
    shown = store.read_header(subject).splits["test"].images[1]
    shutil.copy(tmp_path / "Image_set_Resize" / images[0], tmp_path / "Image_set_Resize" / shown)
    twice, session, concept, image = problems(tmp_path)
    assert "train.npy: 1 image(s) in two conditions" in twice and images[0] in twice
    assert "no recordings of session 2;" in session
    assert "1 test concept(s) are trained on too (Train0)" in concept
    assert "1 test image(s) are trained on too (test1_01b.jpg)" in image
    for sessions in ([[1, 1]] * 3, [[1, 1, 2, 2**62]] * 3, [[1, 1, 2, 0.5]] * 3):
        alter_split(subject, "train", sessions=sessions)
        assert "contradicts itself" in problems(tmp_path)[0]


def test_subjects_that_differ_are_reported(two):
    make(two, "sub-03", channels=["O1", "O2"], times=[i / 100 + 0.01 for i in range(5)])
    images = store.read_header(two / "sub-02").splits["test"].images
    other = ["test_images/00009_x/x_01b.jpg", images[1]]
    alter_split(two / "sub-02", "test", images=other, sessions=[[1, 1, 1, 1]] * 2)
    lines = problems(two)
    parts = [
        "sub-03/train.npy: its channels (2) differ from most",
        "sub-03/test.npy: its times (5) differ from most",
        f"sub-02/test.npy: no recordings of 1 image(s) that others have ({images[0]})",
        "sub-01/test.npy: no recordings of 1 image(s) that others have (test_images/00009_x/x_01b.jpg)",
        "sub-02/test.npy: no recordings of session 2, which others have",
        "image test_images/00009_x/x_01b.jpg is missing",
    ]
    check_each_once(lines, parts)
    assert len(lines) == 9


def test_arrays_that_are_cut_off_missing_or_of_another_type_are_reported(two):
    path = two / "sub-01" / "train.npy"
    path.write_bytes(path.read_bytes()[:-10])
    np.save(two / "sub-01" / "test.npy", np.load(two / "sub-01" / "test.npy").astype(np.float64))
    (two / "sub-02" / "test.npy").unlink()
    (two / "sub-03").mkdir()
    lines, other_type = problems(two), "test.npy: float64 (2, 4, 2, 5) where header.json"
    check_each_once(lines, ["train.npy: missing or damaged", other_type, "sub-02/test.npy: missing"])
    assert sum("sub-03" in line for line in lines) == 2


def test_a_data_set_of_a_published_name_must_have_its_shape(tmp_path, monkeypatch):
    make(tmp_path)
    (tmp_path / "dataset.json").write_text('{"name": "THINGS-EEG2", "modality": "EEG"}')
    lines = problems(tmp_path)
    check_each_once(lines, ["3 conditions, and THINGS-EEG2 has 16540", "2 conditions", "4 repetitions, and THINGS"])
    assert sum("THINGS-EEG2's channel(s) Fp1, Fp2" in line for line in lines) == 2
    assert sum("repetitions" in line for line in lines) == 1 and len(things_eeg.CHANNELS) == 63
    monkeypatch.setattr(things_eeg, "OCCIPITAL_CHANNELS", store.read_header(tmp_path / "sub-01").channels)
    assert not any("channel" in line for line in problems(tmp_path))
    (tmp_path / "dataset.json").write_text('{"name": ')
    with pytest.raises(
        UserError, match=r"dataset.json: damaged .*; it names the data set; fetch it or make the data again"
    ):
        check_dataset(tmp_path)


def test_images_and_recordings_are_compared_both_ways(two):
    images = sorted((two / "Image_set_Resize").rglob("*.jpg"))
    for i in range(7):
        shutil.copy(images[0], images[0].with_name(f"spare{i}.jpg"))
    images[1].write_bytes(images[1].read_bytes()[:300])
    report = check_dataset(two)
    assert len(report.problems) == 1 and f"{images[1]} cannot be read" in report.problems[0]
    spare = report.summary[-1]
    assert spare.startswith("7 images that no recording names: ") and spare.endswith("and 2 more")
    (two / "sub-01" / "test.npy").unlink()  # which may name them
    assert not any("no recording names" in line for line in check_dataset(two).summary)


def test_a_killed_conversion_is_reported(tmp_path, capsys):
    with SubjectWriter(tmp_path, "sub-02", RECIPE) as writer:
        writer.cached("session-1", lambda: np.zeros(3))
        with pytest.raises(Locked), lock(tmp_path, "sub-02"):
            pass
        with pytest.raises(UserError):  # nothing else is there
            check_dataset(tmp_path)
        make(tmp_path)
        assert "being made by another process" in "\n".join(check_dataset(tmp_path).summary)
        shutil.rmtree(tmp_path / "sub-01")
    (line,) = problems(tmp_path)
    again = "the same 'bvsa data eeg' or 'meg' command (it reads planted) resumes it"
    assert f".sub-02.partial: sub-02 is half converted; {again}" in line
    make(tmp_path)
    assert len(problems(tmp_path)) == 1
    assert main(["data", "check", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert (
        "wrong: " in printed.out and error_of(printed.err) == f"bvsa: error: {tmp_path}: 1 problem(s), listed above\n"
    )


def test_published_folders_are_checked_by_a_dry_run(tmp_path):
    planted = fake_eeg.plant(0)
    fake_eeg.osf(tmp_path / "osf", planted)
    report = check_dataset(tmp_path / "osf")
    assert report.problems == [] and "sub-01 train: 6 x 4 x 63 x 250, layout osf_preprocessed" in report.summary[0]
    fake_eeg.osf(tmp_path / "two", planted)
    fake_eeg.osf(tmp_path / "more", planted, folder="sub-2")
    shutil.move(tmp_path / "more" / "sub-2", tmp_path / "two" / "sub-2")
    for name in ("training", "test"):
        path = tmp_path / "two" / "sub-2" / f"preprocessed_eeg_{name}.npy"
        path.write_bytes(path.read_bytes()[:-1000])
    first, second = problems(tmp_path / "two")
    assert "sub-2/preprocessed_eeg_training.npy" in first and "sub-2/preprocessed_eeg_test.npy" in second
    (tmp_path / "osf" / "image_metadata.npy").rename(tmp_path / "elsewhere.npy")
    assert "the images shown are unknown" in problems(tmp_path / "osf")[0]
    assert check_dataset(tmp_path / "osf", images=tmp_path / "elsewhere.npy").problems == []


def test_bad_samples_of_published_folders_are_named(tmp_path):
    planted = fake_eeg.plant(0)
    planted.whole["test"][1, 2, 62, 100:] = np.nan
    planted.whole["train"][:, :, 0] = 3
    fake_eeg.things_eeg2_dataset(tmp_path / "source", planted)
    flat, bad = problems(tmp_path / "source")
    assert "sub-01 train: flat in channels Fp1 (24 of 24 trials)" in flat
    assert "sub-01 test: NaN, or too large for float16, in channels O2 (1 of 24 trials)" in bad
