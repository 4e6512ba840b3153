"""UBP's files: errors, MEG, and export."""

from pathlib import Path

import fake_eeg
import numpy as np
import pytest
import torch

from bvsa_core.data.dataset import Dataset
from bvsa_core.data.layouts.convert import convert
from bvsa_core.data.layouts.source import ConversionOptions
from bvsa_core.data.layouts.ubp import export
from bvsa_core.data.store import read_header
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import lock, temporary_path
from bvsa_core.io.safe_readers import read_arrays

SUBJECT = Path("Preprocessed_data_250Hz_whiten", "sub-01")
WRONG = [
    ({"times": None}, "train.pt: has no times of its samples; add 'times'"),
    ({"ch_names": ["stim", *fake_eeg.CHANNELS[1:]]}, "channel stim is the trigger"),
    ({"img": np.array([["a/b/c.jpg"] * 4] * 6)}, "image training_images/b/c.jpg is in two conditions"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[next(iter(changes)) for changes, _ in WRONG])
def test_errors_are_reported(changes, message, planted, tmp_path, refused):
    fake_eeg.ubp(tmp_path / "source", planted, **changes)
    refused(message)


def test_the_other_modality_and_a_missing_split_are_reported(planted, tmp_path, refused):
    fake_eeg.ubp(tmp_path / "source", planted)
    refused("train.pt: these are EEG recordings; convert them by 'bvsa data eeg'", "MEG")
    (tmp_path / "source" / SUBJECT / "test.pt").unlink()
    refused("sub-01 has no test.pt; fetch it")


def test_meg_files_without_times_and_sensor_names(tmp_path, converted, refused, seed):
    place = tmp_path / "source" / "Preprocessed_data" / "sub-02"
    place.mkdir(parents=True)
    data = np.random.default_rng(seed).standard_normal((2, 1, 271, 201)).astype(np.float16)
    for split, part in fake_eeg.PARTS.items():
        images = [f"{part}_images/00002_b/b_01b.jpg", f"{part}_images/00001_a/a_01b.jpg"]
        torch.save({"eeg": data, "img": images}, place / f"{split}.pt", pickle_protocol=5)
    refused("these are MEG recordings; convert them by 'bvsa data meg'")
    stored = Dataset(converted("MEG")).load("sub-02", "train")
    np.testing.assert_array_equal(stored.data, data[::-1])  # in the order of the images
    assert stored.images[0] == "training_images/00001_a/a_01b.jpg" and stored.concepts == ["a", "b"]
    assert (stored.modality, stored.times[1], stored.times[-1], stored.sessions) == ("MEG", 0.005, 1.0, None)


@pytest.mark.parametrize("layout", [fake_eeg.things_eeg2_dataset, fake_eeg.osf])
def test_exported_files_convert_back_into_the_same_store(layout, planted, tmp_path, converted):
    layout(tmp_path / "source", planted)
    store = converted(whole_epoch=True, name="mine")
    out = tmp_path / "out"
    assert export(Dataset(store), out) == [f"sub-01: written, in {out / 'sub-01'}"]
    assert export(Dataset(store), out) == [f"sub-01: was there already, in {out / 'sub-01'}"]
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    assert written == ["dataset.json", "sub-01", "sub-01/test.pt", "sub-01/train.pt"]
    convert(out, tmp_path / "again", "EEG", ConversionOptions(whole_epoch=True))
    assert Dataset(tmp_path / "again").name == "mine"
    again = tmp_path / "again" / "sub-01"
    first, second = read_header(store / "sub-01"), read_header(again)
    assert (first.splits, first.channels, first.times) == (second.splits, second.channels, second.times)
    for split in fake_eeg.PARTS:
        assert (store / "sub-01" / f"{split}.npy").read_bytes() == (again / f"{split}.npy").read_bytes()
    opened = torch.load(out / "sub-01" / "test.pt", weights_only=False)
    assert opened.keys() == read_arrays(out / "sub-01" / "test.pt").keys()
    assert opened["eeg"].dtype == np.float16 and type(opened["eeg"]) is np.ndarray
    assert opened["label"][:, 0].tolist() == [0, 1, 2]
    if first.splits["test"].sessions:
        np.testing.assert_array_equal(opened["session"], planted.sessions["test"] - 1.0)  # published ones start at 0
    dataset = Dataset(out)
    assert dataset.name == "mine" and dataset.load("sub-01", "test").sessions == first.splits["test"].sessions


def test_two_exports_into_one_folder_are_refused(planted, tmp_path, converted):
    fake_eeg.osf(tmp_path / "source", planted)
    dataset = Dataset(converted())
    with pytest.raises(UserError, match="store: is in .*store, whose recordings are only read"):
        export(dataset, tmp_path / "store")
    with lock(tmp_path / "out"), pytest.raises(UserError, match="out: an export is going on there .*; wait for"):
        export(dataset, tmp_path / "out")


def test_leftovers_of_a_killed_export_are_deleted(planted, tmp_path, converted):
    fake_eeg.osf(tmp_path / "source", planted)
    left = temporary_path(tmp_path / "out" / "sub-01")
    left.mkdir(parents=True)
    (left / "train.pt").write_bytes(b"half")
    export(Dataset(converted()), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dataset.json", "sub-01"]
