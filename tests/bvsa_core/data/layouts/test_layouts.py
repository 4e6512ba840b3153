"""Every layout of the same recordings ends in the same store."""

from __future__ import annotations

import functools
import json

import fake_eeg
import numpy as np
import pytest

from bvsa_core.data.dataset import Dataset
from bvsa_core.data.layouts import recognise
from bvsa_core.data.layouts.convert import convert
from bvsa_core.data.layouts.source import ConversionOptions
from bvsa_core.data.store import read_header
from bvsa_core.data.things_eeg import CHANNELS
from bvsa_core.errors import UserError

LAYOUTS = {  # whether it tells the sessions
    "ubp": (fake_eeg.ubp, True),
    "osf whole": (fake_eeg.osf, False),
    "osf from onset, pickled": (functools.partial(fake_eeg.osf, whole=False, pickled=True, folder="sub-01"), False),
    "things_eeg2_dataset": (fake_eeg.things_eeg2_dataset, True),
    "arrays": (fake_eeg.arrays, False),
    "arrays of dicts": (functools.partial(fake_eeg.arrays, info=False, as_dict=True), False),
    "arrays that nothing describes": (functools.partial(fake_eeg.arrays, info=False, axes=4), False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_ends_in_the_same_store(layout, planted, tmp_path, converted):
    write, tells_sessions = LAYOUTS[layout]
    write(tmp_path / "source", planted)
    dataset = Dataset(converted())
    assert (dataset.name, dataset.modality, dataset.subjects) == ("THINGS-EEG2", "EEG", ["sub-01"])
    for split in fake_eeg.PARTS:
        found = dataset.load("sub-01", split)
        np.testing.assert_array_equal(found.data, planted.whole[split][..., fake_eeg.ONSET :])
        assert (found.images, found.concepts, found.channels) == (
            planted.images(split),
            planted.concepts(split),
            list(CHANNELS),
        )
        np.testing.assert_array_equal(found.times, np.round(fake_eeg.TIMES[fake_eeg.ONSET :], 6))
        assert found.sessions == (planted.sessions[split].tolist() if tells_sessions else None)
    header = read_header(dataset.recordings_folder / "sub-01")
    assert (header.sampling_rate, header.layout) == (250, layout.split()[0].replace("osf", "osf_preprocessed"))
    assert ("standard order" in " ".join(header.processing)) == ("nothing" in layout or "dicts" in layout)


def test_the_whole_epoch_is_kept_where_it_is_asked_for_and_there(planted, tmp_path, converted):
    fake_eeg.osf(tmp_path / "source", planted)
    found = Dataset(converted(whole_epoch=True)).load("sub-01", "test")
    np.testing.assert_array_equal(found.data, planted.whole["test"])
    assert found.times[0] == -0.2
    fake_eeg.arrays(tmp_path / "other", planted)
    with pytest.raises(UserError, match="train.npy: has no samples before image onset; leave --whole_epoch out"):
        convert(tmp_path / "other", tmp_path / "store2", "EEG", ConversionOptions(whole_epoch=True))


def test_what_is_there_stays_and_what_was_made_otherwise_is_refused(planted, tmp_path, converted):
    fake_eeg.osf(tmp_path / "source", planted)
    store = converted()
    written = [path.stat().st_mtime_ns for path in sorted(store.rglob("*"))]
    (tmp_path / "source").rename(tmp_path / "moved")
    fake_eeg.osf(tmp_path / "source", planted)  # the same files at another time
    told = convert(tmp_path / "source", store, "EEG", ConversionOptions())
    assert told == [f"sub-01: osf_preprocessed was there already, in {store / 'sub-01'}"]
    assert [path.stat().st_mtime_ns for path in sorted(store.rglob("*"))] == written
    with pytest.raises(
        UserError, match=r"sub-01 is there already, made otherwise \(whole_epoch\); delete it to make it again"
    ):
        converted(whole_epoch=True)
    file = tmp_path / "source" / "sub-1" / "preprocessed_eeg_test.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"made otherwise \(files\)"):
        converted()


def test_subjects_are_chosen_and_a_wrong_one_stops_before_anything_is_made(planted, tmp_path, converted):
    fake_eeg.osf(tmp_path / "source", planted)
    fake_eeg.osf(tmp_path / "source", planted, folder="sub-02")
    with pytest.raises(UserError, match="no subject sub-03; there are sub-01, sub-02"):
        converted(subjects=["sub-02", "sub-03"])
    assert not (tmp_path / "store").exists()
    store = converted(subjects=["sub-02"], name="mine")
    assert sorted(path.name for path in store.iterdir()) == ["dataset.json", "sub-02"]
    assert json.loads((store / "dataset.json").read_text()) == {"name": "mine", "modality": "EEG"}


def test_folders_that_are_none_or_several_layouts_are_told(planted, tmp_path, converted):
    with pytest.raises(UserError, match="source: no such folder"):
        converted()
    (tmp_path / "source").mkdir()
    with pytest.raises(
        UserError, match=r"none of the published EEG layouts \(arrays: sub-XX/train.npy .*ubp: sub-XX/train.pt"
    ):
        converted()
    fake_eeg.ubp(tmp_path / "source", planted)
    fake_eeg.arrays(tmp_path / "source", planted)
    with pytest.raises(
        UserError, match="sub-01: looks like one subject's folder; give its parent, and choose by --subjects"
    ):
        recognise(tmp_path / "source" / "preprocessed_eeg" / "sub-01", "EEG")
    with pytest.raises(UserError, match="several layouts at once .arrays, ubp.; give the folder of one of them"):
        converted()
    assert [found.layout for found in recognise(tmp_path / "source" / "preprocessed_eeg", "EEG")] == ["arrays"]
    fake_eeg.osf(tmp_path / "two" / "Preprocessed_data_100Hz", planted)
    fake_eeg.osf(tmp_path / "two" / "Preprocessed_data_250Hz", planted)
    with pytest.raises(UserError, match="sub-01 is there 2 times, in .*100Hz, .*250Hz; give one of these folders"):
        recognise(tmp_path / "two", "EEG")


def test_a_store_is_no_layout_and_not_its_own_source(planted, tmp_path, converted):
    fake_eeg.ubp(tmp_path / "source", planted)
    with pytest.raises(UserError, match="holds the files that are to be converted"):
        convert(tmp_path / "source", tmp_path / "source" / "Preprocessed_data_250Hz_whiten", "EEG", ConversionOptions())
    store = converted()
    with pytest.raises(UserError, match="none of the published EEG layouts"):
        convert(store, tmp_path / "again", "EEG", ConversionOptions())
    (store / "dataset.json").write_text('{"modality": "MEG"}')
    with pytest.raises(UserError, match="store: holds MEG recordings; give EEG ones another folder"):
        converted()
    (store / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="dataset.json: damaged"):
        converted()


def test_options_that_a_layout_has_settled_are_refused(planted, tmp_path, converted):
    fake_eeg.ubp(tmp_path / "source", planted)
    with pytest.raises(UserError, match="whitening is none, but fixed in the layout ubp; leave it out"):
        converted(whitening="none")
