"""What can be wrong with the authors' own preprocessed files."""

from __future__ import annotations

import fake_eeg
import numpy as np
import pytest

from bvsa_core.errors import UserError

WRONG = [
    (lambda file: file.unlink(), "sub-01 has no preprocessed_eeg_test.npy; fetch it"),
    (lambda file: file.write_bytes(file.read_bytes()[:5000]), "preprocessed_eeg_test.npy: damaged or incomplete"),
    (
        lambda file: np.save(file, {"ch_names": []}),
        "not a file of preprocessed THINGS-EEG2; it must hold preprocessed_eeg_data, ch_names",
    ),
    (lambda file: np.save(file, np.zeros(3)), "not a file of preprocessed THINGS-EEG2"),
    (
        lambda file: np.save(file, dict(preprocessed_eeg_data=np.zeros((3, 8, 63)), ch_names=[], times=[])),
        "it must be floats of shape",
    ),
    (
        lambda file: np.save(file, dict(preprocessed_eeg_data=np.ones((2, 8, 63, 300)), ch_names=[], times=[])),
        "has 2 test conditions and",
    ),
]


@pytest.mark.parametrize(("damage", "message"), WRONG, ids=[message[-30:] for _, message in WRONG])
def test_what_is_missing_or_wrong_is_told_and_nothing_is_made(damage, message, planted, tmp_path, converted):
    fake_eeg.osf(tmp_path / "source", planted)
    damage(tmp_path / "source" / "sub-1" / "preprocessed_eeg_test.npy")
    with pytest.raises(UserError, match=message):
        converted()
    assert not (tmp_path / "store" / "sub-01").exists()


def test_seventeen_channels_at_100_hz_as_the_authors_publish_them(tmp_path, converted, planted, seed):
    place = tmp_path / "source" / "sub-10"
    place.mkdir(parents=True)
    data = np.random.default_rng(seed).standard_normal((6, 2, 17, 100))
    for split, part in fake_eeg.PARTS.items():
        content = {
            "preprocessed_eeg_data": data[: len(planted.images(split))],
            "ch_names": list(fake_eeg.CHANNELS[-17:]),
        }
        np.save(place / f"preprocessed_eeg_{part}.npy", content | {"times": np.arange(-20, 80) / 100})
    fake_eeg.metadata(tmp_path / "source", planted)
    stored = np.load(converted() / "sub-10" / "train.npy")
    np.testing.assert_array_equal(stored, data[..., 20:].astype(np.float16))
