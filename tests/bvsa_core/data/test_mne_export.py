"""Recordings as MNE epochs: values, units, positions, and selection by concept and image."""

import sys

import mne
import numpy as np
import pytest
import torch

from bvsa_core.data import to_mne
from bvsa_core.data.dataset import Dataset, Recordings
from bvsa_core.data.from_arrays import write_subject
from bvsa_core.errors import UserError

CONCEPTS = ["aardvark", "aardvark", "abacus"]
IMAGES = [f"training_images/0000{i}_{name}/{name}_0{i}b.jpg" for i, name in enumerate(CONCEPTS, 1)]


@pytest.fixture
def store(tmp_path, seed):
    """Return a function that makes a store of three conditions in two repetitions, and returns it and its samples."""

    def make(units: str = "µV", modality: str = "EEG", channels: tuple[str, ...] = ("Oz", "Cz")):
        data = np.random.standard_normal((3, 2, len(channels), 60)).astype(np.float16)
        times, sessions = (np.arange(60) - 10) / 250, [[1, 3], [2, 4], [1, 3]]
        recordings = Recordings(data, IMAGES, CONCEPTS, list(channels), times, modality, sessions)
        write_subject(tmp_path, "sub-01", recordings, recordings, units)
        return tmp_path, data.astype(np.float64)

    return make


def test_volts_times_positions_and_events(store):
    folder, data = store()
    epochs = to_mne(folder, "sub-01", "train")
    np.testing.assert_array_equal(epochs.get_data(copy=False), data.reshape(6, 2, 60) * 1e-6)
    np.testing.assert_allclose(epochs.times, (np.arange(60) - 10) / 250, rtol=0, atol=1e-12)
    assert epochs.get_channel_types() == ["eeg", "eeg"] and "units: µV" in epochs.info["description"]
    montages = mne.channels.make_standard_montage("easycap-M1"), epochs.get_montage()
    positions = [montage.get_positions()["ch_pos"] for montage in montages]
    distances = [np.linalg.norm(each["Oz"] - each["Cz"]) for each in positions]
    assert distances[0] == pytest.approx(distances[1], rel=1e-5)  # MNE transforms to its own frame, in float32
    assert epochs.events[:, 1:].tolist() == [[1, 1], [3, 1], [2, 2], [4, 2], [1, 3], [3, 3]]
    assert len(epochs["aardvark"]) == 4 and len(epochs["abacus_03b"]) == 2
    np.testing.assert_array_equal(epochs["abacus/abacus_03b"].get_data(copy=False), data[2] * 1e-6)


def test_some_conditions_of_an_open_data_set(store):
    folder, data = store("whitened")
    epochs = to_mne(Dataset(folder), "sub-01", "train", conditions=[2, 0])
    np.testing.assert_array_equal(epochs.get_data(copy=False), data[[2, 0]].reshape(4, 2, 60))
    assert epochs.events[:, 2].tolist() == [3, 3, 1, 1] and "units: whitened" in epochs.info["description"]
    with pytest.raises(UserError, match=r"train.npy: no condition 3; there are 0 to 2"):
        to_mne(folder, "sub-01", "train", conditions=[1, 3])


def test_meg_is_magnetometers_in_tesla(store):
    folder, data = store("fT", "MEG", ("MLO11", "MRO11", "MZO01"))
    epochs = to_mne(folder, "sub-01", "train")
    assert epochs.get_channel_types() == ["mag"] * 3
    np.testing.assert_array_equal(epochs.get_data(copy=False), data.reshape(6, 3, 60) * 1e-15)


def test_files_of_ubp_have_neither_units_nor_sessions(tmp_path):
    content = {"eeg": np.ones((3, 2, 2, 60), np.float16), "img": np.array([IMAGES[0], *IMAGES[:2]])}
    content |= {"ch_names": ["Oz", "elsewhere"], "times": np.arange(60) / 250}
    (tmp_path / "sub-01").mkdir()
    torch.save(content, tmp_path / "sub-01" / "train.pt")
    epochs = to_mne(tmp_path, "sub-01", "train")
    assert epochs.info["sfreq"] == pytest.approx(250) and "units: unknown" in epochs.info["description"]
    assert len(epochs) == 6 and len(epochs["aardvark_01b"]) == 4  # one image under two conditions
    assert not epochs.events[:, 1].any() and (epochs.get_data(copy=False) == 1).all()


def test_without_mne_the_extra_is_reported(store, monkeypatch):
    folder, _ = store()
    monkeypatch.setitem(sys.modules, "mne", None)
    message = r"MNE cannot be imported .*; MNE epochs need: pip install 'fovblur\[preprocess\]'"
    with pytest.raises(UserError, match=message):
        to_mne(folder, "sub-01", "train")
