"""Epochs of MNE as recordings: values, units, images by event or metadata, sessions, and errors."""

from functools import partial

import mne
import numpy as np
import pandas as pd
import pytest

from bvsa_core import from_mne, to_mne
from bvsa_core.data.dataset import Dataset, Recordings
from bvsa_core.data.from_arrays import write_subject
from bvsa_core.data.split import load_split
from bvsa_core.decoder.inputs import unlabelled
from bvsa_core.errors import UserError

EVENT_ID = {"cat/cat_01.png": 5, "dog/dog_01.png": 3}
MICROVOLT = 1e-6


@pytest.fixture
def make_epochs(seed):
    """Return a function that makes epochs of three EEG channels, EOG and a trigger channel, 100 Hz, from -0.1 s."""
    rng = np.random.default_rng(seed)

    def make(codes=(5, 3, 3, 5), kinds="eeg eog eeg eeg stim", scale=MICROVOLT, names=None, **info_changes):
        kinds = kinds.split()
        info = mne.create_info(names or ["Oz", "EOG", "Pz", "O1", "STI"], 100.0, kinds, verbose="ERROR")
        for name, value in info_changes.items():
            info[name] = value
        events = np.stack([np.arange(len(codes)) * 50, np.zeros(len(codes), int), codes], axis=1)
        data = rng.standard_normal((len(codes), len(kinds), 12)) * scale
        return mne.EpochsArray(data, info, events, -0.1, EVENT_ID, baseline=None, proj=False, verbose="ERROR")

    return make


def test_microvolts_of_eeg_channels_with_the_trials_of_an_image_as_repetitions(make_epochs):
    epochs = make_epochs()
    recordings = from_mne(epochs)
    assert recordings.images == list(EVENT_ID) and recordings.concepts == ["cat", "dog"]
    assert recordings.channels == ["Oz", "Pz", "O1"] and (recordings.units, recordings.modality) == ("µV", "EEG")
    expected = epochs.get_data(copy=True)[[[0, 3], [1, 2]]][:, :, [0, 2, 3]] / MICROVOLT
    np.testing.assert_allclose(recordings.data, expected, rtol=1e-6)
    np.testing.assert_allclose(recordings.times, np.arange(-10, 2) / 100, atol=1e-9)
    assert recordings.axes.sampling_rate == 100 and recordings.sessions == [[1, 1], [1, 1]]


def test_images_and_concepts_from_metadata_with_names_of_files(make_epochs):
    epochs = make_epochs()
    epochs.metadata = pd.DataFrame({"file": ["b", "a", "a", "c"], "what": ["bee", "ant", "ant", "cow"]})
    names = {each: f"{each}.png" for each in "abc"}
    recordings = from_mne(epochs, image="file", concept="what", images=names)
    assert recordings.images == ["b.png", "a.png", "a.png", "c.png"]  # not shown equally often: a condition a trial
    assert recordings.concepts == ["bee", "ant", "ant", "cow"] and recordings.data.shape[:2] == (4, 1)
    assert from_mne(epochs, image=["x.png"] * 4, concept=["box"] * 4).data.shape[:2] == (1, 4)


def test_sessions_are_joined_and_channels_taken_by_name(make_epochs):
    first, second = make_epochs((5, 3)), make_epochs((3, 5))
    turned = second.copy().reorder_channels(["O1", "Pz", "EOG", "Oz", "STI"])
    recordings, same = from_mne([first, second]), from_mne([first, turned])
    np.testing.assert_array_equal(recordings.data, same.data)
    assert recordings.sessions == [[1, 2], [1, 2]] and recordings.data.shape[:2] == (2, 2)
    np.testing.assert_allclose(recordings.data[0, 1, 0], second.get_data("Oz")[1, 0] / MICROVOLT, rtol=1e-6)


def test_bad_channels_are_left_out_and_meg_has_its_units(make_epochs):
    epochs = make_epochs()
    epochs.info["bads"] = ["Pz"]
    assert from_mne(epochs).channels == ["Oz", "O1"]
    meg = make_epochs(kinds="mag eog grad ref_meg stim", scale=1e-13)
    recordings = from_mne(meg)
    assert (recordings.modality, recordings.units) == ("MEG", "fT, fT/cm") and len(recordings.channels) == 2
    expected = meg.get_data(copy=True)[0, [0, 2]] * [[1e15], [1e13]]
    np.testing.assert_allclose(recordings.data[0, 0], expected, rtol=1e-6)


def test_samples_without_a_unit_are_not_scaled(make_epochs):
    epochs = make_epochs(scale=1.0)
    with pytest.raises(UserError, match=r"samples deviate by .* V, which is no EEG in volts; .*units='whitened'"):
        from_mne(epochs)
    recordings = from_mne(epochs, units="whitened")
    np.testing.assert_array_equal(recordings.data[0, 0, 0], epochs.get_data("Oz")[0, 0].astype(np.float32))
    assert recordings.units == "whitened"


@pytest.mark.parametrize("units", ["µV", "whitened"])
def test_a_store_goes_to_mne_and_back(tmp_path, seed, units):
    data = np.random.default_rng(seed).standard_normal((3, 2, 2, 10)).astype(np.float16)
    images = [f"training_images/0000{i}_thing{i}/thing{i}_01b.jpg" for i in range(3)]
    axes = ["Oz", "Cz"], (np.arange(10) - 2) / 250
    recordings = Recordings(data, images, ["thing0", "thing1", "thing2"], *axes, sessions=[[1, 2]] * 3, units=units)
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "dataset.json").write_text('{"name": "synthetic"}')
    write_subject(tmp_path / "first", "sub-01", recordings, recordings)
    epochs = to_mne(tmp_path / "first", "sub-01", "train")
    names = {name: images[code - 1] for name, code in epochs.event_id.items()}
    again = from_mne(epochs, images=names)
    write_subject(tmp_path / "second", "sub-01", again, again)
    stored = Dataset(tmp_path / "second").load("sub-01", "test")
    np.testing.assert_array_equal(stored.data, data)
    assert (stored.images, stored.channels, stored.units, stored.dataset) == (images, ["Oz", "Cz"], units, "synthetic")
    assert stored.source == again.source == "synthetic"
    np.testing.assert_allclose(stored.times, recordings.times, atol=1e-9)
    assert load_split(Dataset(tmp_path / "second"), ["sub-01"], "train", channels="all").axes.sampling_rate == 250


def test_epochs_that_are_not_loaded_lose_what_their_thresholds_reject(seed):
    data = np.random.default_rng(seed).standard_normal((2, 400)) * MICROVOLT
    data[:, 210] = 1e-3  # in the third epoch
    raw = mne.io.RawArray(data, mne.create_info(["Oz", "Pz"], 100.0, "eeg"), verbose="ERROR")
    events = np.array([[start, 0, code] for start, code in zip((0, 100, 200, 300), (5, 3, 5, 3))])
    epochs = mne.Epochs(raw, events, EVENT_ID, 0, 0.5, baseline=None, reject={"eeg": 1e-4}, verbose="ERROR")
    recordings = from_mne(epochs)
    assert recordings.images == ["cat/cat_01.png", "dog/dog_01.png", "dog/dog_01.png"] and not epochs.preload
    np.testing.assert_allclose(recordings.data[2, 0], data[:, 300:351] / MICROVOLT, rtol=1e-4)
    assert unlabelled(epochs).data.shape == (3, 1, 2, 51)


def test_epochs_that_do_not_fit_are_refused(make_epochs):
    epochs = make_epochs()
    others = make_epochs(names=["O2", "EOG", "Pz", "O1", "STI"])
    named = [make_epochs(subject_info={"his_id": name}) for name in ("anna", "ben")]
    mistakes = {
        r"epochs: session 1 is a str; give mne.Epochs, or a list of them": partial(from_mne, ["file.fif"]),
        r"epochs: there are none; give mne.Epochs": partial(from_mne, []),
        r"epochs: there are none; give": partial(from_mne, epochs[:0]),
        r"no good EEG or MEG channel among those of kind eog": partial(from_mne, epochs.copy().pick("eog")),
        r"session 2 has other good channels \(O2, Oz\); interpolate or drop": partial(from_mne, [epochs, others]),
        r"session 2 has other times than session 1; cut": partial(from_mne, [epochs, epochs.copy().crop(0, None)]),
        r"sessions of several subjects \(anna, ben\); .*give Decoder.fit a dict": partial(from_mne, named),
        r"image: no column 'file' in epochs.metadata; the epochs have none": partial(from_mne, epochs, image="file"),
        r"image: 1 names for 4 epochs; give one an epoch": partial(from_mne, epochs, image=["a"]),
        r"images: none for the id 'cat/cat_01.png'; give a mapping": partial(from_mne, epochs, images={"b": "b.png"}),
        r"concepts: the image x shows 'a' and 'b'": partial(from_mne, epochs, ["x"] * 4, ["a", "a", "b", "a"]),
    }
    for message, mistake in mistakes.items():
        with pytest.raises(UserError, match=message):
            mistake()
