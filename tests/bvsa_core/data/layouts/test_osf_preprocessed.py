"""Errors in the authors' own preprocessed files."""

import fake_eeg
import numpy as np
import pytest


def of_data(data: np.ndarray) -> dict:
    return {"preprocessed_eeg_data": data, "ch_names": [], "times": []}


OTHER = "not a file of preprocessed THINGS-EEG2; it must hold preprocessed_eeg_data, ch_names"
WRONG = [
    (lambda file: file.unlink(), "sub-01 has no preprocessed_eeg_test.npy; fetch it"),
    (lambda file: file.write_bytes(file.read_bytes()[:5000]), "preprocessed_eeg_test.npy: damaged or incomplete"),
    (lambda file: np.save(file, {"ch_names": []}), OTHER),
    (lambda file: np.save(file, np.zeros(3)), OTHER),
    (lambda file: np.save(file, of_data(np.zeros((3, 8, 63)))), "it must be floats of shape"),
    (lambda file: np.save(file, of_data(np.ones((2, 8, 63, 300)))), "has 2 test conditions and"),
]


@pytest.mark.parametrize(("damage", "message"), WRONG)
def test_missing_and_wrong_files_are_reported_and_nothing_is_made(damage, message, planted, tmp_path, refused):
    fake_eeg.osf(tmp_path / "source", planted)
    damage(tmp_path / "source" / "sub-1" / "preprocessed_eeg_test.npy")
    refused(message)
    assert not (tmp_path / "store" / "sub-01").exists()


def test_seventeen_channels_at_100_hz_as_the_authors_publish_them(tmp_path, converted, planted, seed):
    place = tmp_path / "source" / "sub-10"
    place.mkdir(parents=True)
    data = np.random.default_rng(seed).standard_normal((6, 2, 17, 100))
    about = {"ch_names": list(fake_eeg.CHANNELS[-17:]), "times": np.arange(-20, 80) / 100}
    for split, part in fake_eeg.PARTS.items():
        content = {"preprocessed_eeg_data": data[: len(planted.images(split))], **about}
        np.save(place / f"preprocessed_eeg_{part}.npy", content)
    fake_eeg.metadata(tmp_path / "source", planted)
    stored = np.load(converted() / "sub-10" / "train.npy")
    np.testing.assert_array_equal(stored, data[..., 20:].astype(np.float16))
