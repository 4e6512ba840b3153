"""Arrays in memory become a subject of the store."""

from dataclasses import replace

import numpy as np
import pytest

from bvsa_core.data.dataset import Dataset, Recordings
from bvsa_core.data.from_arrays import write_subject
from bvsa_core.data.split import load_split
from bvsa_core.errors import UserError


@pytest.fixture
def recordings(seed) -> Recordings:
    images = [f"training_images/thing{i}/thing{i}_01.png" for i in range(4)]
    data = np.random.default_rng(seed).standard_normal((4, 3, 2, 5))
    return Recordings(data, images, ["a", "b", "c", "d"], ["Oz", "Pz"], np.arange(5) / 100)


def test_recordings_are_read_back_and_written_once(recordings, tmp_path):
    folder = write_subject(tmp_path, "sub-07", recordings, recordings, "whitened")
    stored = Dataset(tmp_path).load("sub-07", "test")
    np.testing.assert_array_equal(stored.data, recordings.data.astype(np.float16))
    assert (stored.images, stored.concepts) == (recordings.images, recordings.concepts)
    assert stored.channels == recordings.channels
    np.testing.assert_array_equal(stored.times, recordings.times)
    split = load_split(Dataset(tmp_path), ["sub-07"], "train", channels=["Pz"], window=(0.01, 0.03))
    assert split.recordings.shape == (4, 1, 3)
    header = (folder / "header.json").read_bytes()
    assert b'"sampling_rate": 100.0' in header and b"whitened" in header
    assert write_subject(tmp_path, "sub-07", recordings, recordings, "whitened") == folder
    assert (folder / "header.json").read_bytes() == header
    with pytest.raises(UserError, match="sub-07 is there already, made otherwise"):
        write_subject(tmp_path, "sub-07", recordings, replace(recordings, data=recordings.data + 1), "whitened")
    assert [path.name for path in tmp_path.iterdir()] == ["sub-07"]


SMALL = np.random.default_rng(0).standard_normal((4, 3, 2, 5)) * 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((4, 2, 5))}, r"sub-01 train data: float64 of shape \(4, 2, 5\); it must be floats"),
        ({"data": np.zeros((4, 3, 2, 5), int)}, "data: int64"),
        ({"images": ["a.png"]}, "1 images for data of shape"),
        ({"images": ["../a.png"] * 4}, "image name '../a.png' points outside"),
        ({"channels": ["Oz"]}, "1 channels for data .* give 2"),
        ({"times": np.zeros(5)}, "times must be at least two, .* ascending"),
        ({"modality": "fMRI"}, "modality is 'fMRI'; give 'EEG' or 'MEG'"),
        ({"data": SMALL}, "samples deviate by .*give µV or fT instead of V or T"),
        ({"data": np.full((4, 3, 2, 5), np.nan)}, "condition 0 .* not finite in float16"),
        ({"data": np.linspace(0, 1e6, 120).reshape(4, 3, 2, 5)}, "not finite in float16"),
    ],
)
def test_errors_are_reported_and_nothing_is_written(recordings, tmp_path, changes, message):
    wrong = replace(recordings, **changes)
    with pytest.raises(UserError, match=message):
        write_subject(tmp_path, "sub-01", wrong, wrong)
    assert not (tmp_path / "sub-01").exists()


def test_wrong_names_and_splits_that_differ_are_refused(recordings, tmp_path):
    with pytest.raises(UserError, match="subject 'anna': call it sub-"):
        write_subject(tmp_path, "anna", recordings, recordings)
    with pytest.raises(UserError, match="sub-01 test: its channels are not those of train"):
        write_subject(tmp_path, "sub-01", recordings, replace(recordings, channels=["Oz", "O1"]))
