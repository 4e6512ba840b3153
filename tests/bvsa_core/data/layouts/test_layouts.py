"""All layouts of the same recordings convert into the same store."""

import functools
import json

import fake_eeg
import numpy as np
import pytest

from bvsa_core.data.dataset import Dataset
from bvsa_core.data.layouts import recognise
from bvsa_core.data.layouts.convert import convert
from bvsa_core.data.layouts.destination import refuse_mixture
from bvsa_core.data.layouts.source import ConversionOptions
from bvsa_core.data.layouts.ubp import export
from bvsa_core.data.store import read_header
from bvsa_core.data.things_eeg import CHANNELS
from bvsa_core.errors import UserError

LAYOUTS = {  # a writer, and whether the layout has sessions
    "ubp": (fake_eeg.ubp, True),
    "osf whole": (fake_eeg.osf, False),
    "osf from onset, pickled": (functools.partial(fake_eeg.osf, whole=False, pickled=True, folder="sub-01"), False),
    "things_eeg2_dataset": (fake_eeg.things_eeg2_dataset, True),
    "arrays": (fake_eeg.arrays, False),
    "arrays of dicts": (functools.partial(fake_eeg.arrays, info=False, as_dict=True), False),
    "arrays without description": (functools.partial(fake_eeg.arrays, info=False, axes=4), False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_converts_into_the_same_store(layout, planted, tmp_path, converted):
    write, has_sessions = LAYOUTS[layout]
    write(tmp_path / "source", planted)
    dataset = Dataset(converted())
    assert (dataset.name, dataset.modality, dataset.subjects) == ("THINGS-EEG2", "EEG", ["sub-01"])
    for split in fake_eeg.PARTS:
        stored = dataset.load("sub-01", split)
        np.testing.assert_array_equal(stored.data, planted.whole[split][..., fake_eeg.ONSET :])
        assert (stored.images, stored.concepts) == (planted.images(split), planted.concepts(split))
        np.testing.assert_array_equal(stored.times, np.round(fake_eeg.TIMES[fake_eeg.ONSET :], 6))
        assert stored.channels == list(CHANNELS)
        assert stored.sessions == (planted.sessions[split].tolist() if has_sessions else None)
    header = read_header(dataset.recordings_folder / "sub-01")
    assert (header.sampling_rate, header.layout) == (250, layout.split()[0].replace("osf", "osf_preprocessed"))
    assert ("standard order" in " ".join(header.processing)) == ("without" in layout or "dicts" in layout)


def test_the_whole_epoch_can_be_kept(planted, tmp_path, converted, refused):
    fake_eeg.osf(tmp_path / "source", planted)
    stored = Dataset(converted(whole_epoch=True)).load("sub-01", "test")
    np.testing.assert_array_equal(stored.data, planted.whole["test"])
    assert stored.times[0] == -0.2
    fake_eeg.arrays(tmp_path / "other", planted)
    message = "train.npy: has no samples before image onset; leave --whole_epoch out"
    refused(message, source=tmp_path / "other", store="store2", whole_epoch=True)


def test_finished_subjects_stay_and_another_recipe_is_refused(planted, tmp_path, converted, refused):
    fake_eeg.osf(tmp_path / "source", planted)
    store = converted()
    written = [path.stat().st_mtime_ns for path in sorted(store.rglob("*"))]
    (tmp_path / "source").rename(tmp_path / "moved")
    fake_eeg.osf(tmp_path / "source", planted)  # the same files at another time
    messages = convert(tmp_path / "source", store, "EEG", ConversionOptions())
    assert messages == [f"sub-01: osf_preprocessed was there already, in {store / 'sub-01'}"]
    assert [path.stat().st_mtime_ns for path in sorted(store.rglob("*"))] == written
    otherwise = r"sub-01 is there already, made otherwise \(whole_epoch\); delete it to make it again"
    refused(otherwise, whole_epoch=True)
    file = tmp_path / "source" / "sub-1" / "preprocessed_eeg_test.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    refused(r"made otherwise \(files\)")


def test_subjects_are_chosen_and_unknown_ones_refused_before_anything_is_made(planted, tmp_path, converted, refused):
    fake_eeg.osf(tmp_path / "source", planted)
    fake_eeg.osf(tmp_path / "source", planted, folder="sub-02")
    refused("no subject sub-03; there are sub-01, sub-02", subjects=["sub-02", "sub-03"])
    assert not (tmp_path / "store").exists()
    store = converted(subjects=["sub-02"], name="mine")
    assert sorted(path.name for path in store.iterdir()) == ["dataset.json", "sub-02"]
    assert json.loads((store / "dataset.json").read_text()) == {"name": "mine", "modality": "EEG"}


def test_folders_of_no_or_several_layouts_are_reported(planted, tmp_path, refused):
    refused("source: no such folder")
    (tmp_path / "source").mkdir()
    refused(r"none of the published EEG layouts \(arrays: sub-XX/train.npy .*ubp: sub-XX/train.pt")
    fake_eeg.ubp(tmp_path / "source", planted)
    fake_eeg.arrays(tmp_path / "source", planted)
    with pytest.raises(UserError, match="sub-01: looks like one subject's folder; give its parent, and choose by"):
        recognise(tmp_path / "source" / "preprocessed_eeg" / "sub-01", "EEG")
    refused("several layouts at once .arrays, ubp.; give the folder of one of them")
    assert [source.layout for source in recognise(tmp_path / "source" / "preprocessed_eeg", "EEG")] == ["arrays"]
    fake_eeg.osf(tmp_path / "two" / "Preprocessed_data_100Hz", planted)
    fake_eeg.osf(tmp_path / "two" / "Preprocessed_data_250Hz", planted)
    with pytest.raises(UserError, match="sub-01 is there 2 times, in .*100Hz, .*250Hz; give one of these folders"):
        recognise(tmp_path / "two", "EEG")


def test_a_store_is_no_layout_and_not_its_own_source(planted, tmp_path, converted, refused):
    fake_eeg.ubp(tmp_path / "source", planted)
    inside = "is in .*source, whose recordings are only read; give a folder outside"
    (tmp_path / "link").symlink_to(tmp_path / "source")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "sub-01").symlink_to(tmp_path / "source" / "Preprocessed_data_250Hz_whiten" / "sub-01")
    before = sorted(tmp_path.rglob("*"))
    for store in ("source", "source/Preprocessed_data_250Hz_whiten", "source/new", "link", "link/new", "links"):
        refused(inside, store=store)
    holds = r"holds the recordings to be read \(.*train.pt\); give another folder"
    refused(holds, source=tmp_path / "source" / "Preprocessed_data_250Hz_whiten", store="source")
    refused(holds, store=".")
    refused(holds, source=tmp_path / "links", store="source")
    assert sorted(tmp_path.rglob("*")) == before
    store = converted()
    refused("none of the published EEG layouts", source=store, store="again")
    (store / "dataset.json").write_text('{"modality": "MEG"}')
    refused("store: holds MEG recordings; give EEG ones another folder")
    for content in ("{", '{"modality": 1}'):
        (store / "dataset.json").write_text(content)
        refused("dataset.json: damaged .*; it names the data set; fetch it or make the data again")


def test_the_name_of_a_data_set_is_kept_and_not_mixed_with_another(planted, tmp_path, converted, refused):
    fake_eeg.osf(tmp_path / "source", planted)
    store, out = converted(name="mine"), tmp_path / "out"
    assert Dataset(converted()).name == "mine"  # continued without the name
    refused("store: holds the data set mine; give yours another folder", name="yours")
    export(Dataset(store), out)
    again = Dataset(converted(source=out, store="again"))
    assert again.name == "mine" and again.load("sub-01", "test").source == "osf_preprocessed"
    assert Dataset(converted(source=out, store="renamed", name="yours")).name == "yours"
    with pytest.raises(UserError, match="again: holds the data set mine; give other another folder"):
        refuse_mixture(tmp_path / "again", "other", "EEG")


def test_synthetic_data_stay_synthetic(planted, tmp_path, converted, refused):
    fake_eeg.ubp(tmp_path / "source", planted)
    recordings = tmp_path / "source" / "Preprocessed_data_250Hz_whiten"
    real = converted(store="real")
    (tmp_path / "source" / "dataset.json").write_text('{"name": "synthetic", "modality": "EEG"}')
    refused("name is 'THINGS-EEG2': the recordings in .*source are synthetic, and keep that name", name="THINGS-EEG2")
    refused("real: holds the data set THINGS-EEG2; give synthetic another folder", store="real")
    for number, source in enumerate((tmp_path / "source", recordings)):
        assert Dataset(source).synthetic
        store = Dataset(converted(source=source, store=f"store{number}"))
        export(store, tmp_path / f"out{number}")
        for made in (store, Dataset(tmp_path / f"out{number}")):
            assert made.synthetic and made.load("sub-01", "train").source == "synthetic"
    again = Dataset(converted(source=tmp_path / "out0", store="again"))
    assert again.synthetic and read_header(again.root / "sub-01").source == "synthetic"
    (again.root / "dataset.json").write_text('{"name": "THINGS-EEG2", "modality": "EEG"}')
    assert Dataset(again.root).synthetic  # the recordings say so themselves
    fake_eeg.osf(tmp_path / "other", planted)
    refused(
        "store0: holds the data set synthetic; give recorded data another", source=tmp_path / "other", store="store0"
    )
    with pytest.raises(UserError, match="real: holds the data set THINGS-EEG2; give synthetic another folder"):
        export(store, real)


def test_options_that_a_layout_fixes_are_refused(planted, tmp_path, refused):
    fake_eeg.ubp(tmp_path / "source", planted)
    refused("whitening is none, but fixed in the layout ubp; leave it out", whitening="none")
