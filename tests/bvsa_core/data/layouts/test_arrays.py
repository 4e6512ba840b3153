"""What can be wrong with plain arrays."""

from __future__ import annotations

import json

import fake_eeg
import numpy as np
import pytest

from bvsa_core.errors import UserError


def test_arrays_of_other_channels_need_their_names(planted, tmp_path, converted):
    fake_eeg.arrays(tmp_path / "source", planted, info=False)
    place = tmp_path / "source" / "preprocessed_eeg"
    for split in fake_eeg.PARTS:
        np.save(place / "sub-01" / f"{split}.npy", np.load(place / "sub-01" / f"{split}.npy")[..., :17, :])
    message = "train.npy: 17 channels and 250 samples that nothing names; put info.json with ch_names and times beside the subjects"
    with pytest.raises(UserError, match=message):
        converted()
    (place / "info.json").write_text(json.dumps({"ch_names": list("abc"), "times": [0.0]}))
    with pytest.raises(UserError, match="train.npy: 17 channels, and 3 names"):
        converted()
    for content, message in (
        ("[]", "holds list"),
        ("{}", "damaged, or without lists ch_names and times; fetch or make"),
    ):
        (place / "info.json").write_text(content)
        with pytest.raises(UserError, match=f"info.json: {message}"):
            converted()


WRONG = [
    (lambda data: data[..., 0, 0], "must be floats of shape .concepts, images, repetitions"),
    (lambda data: data.astype(np.int16), "int16 of shape"),
    (lambda data: data[:2], "has 2 test conditions and .* 3 test images"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:20] for _, message in WRONG])
def test_wrong_arrays_are_told(change, message, planted, tmp_path, converted):
    fake_eeg.arrays(tmp_path / "source", planted)
    file = tmp_path / "source" / "preprocessed_eeg" / "sub-01" / "test.npy"
    np.save(file, change(np.load(file)))
    with pytest.raises(UserError, match=message):
        converted()


def test_a_split_that_is_missing_is_told(planted, tmp_path, converted):
    fake_eeg.arrays(tmp_path / "source", planted)
    (tmp_path / "source" / "preprocessed_eeg" / "sub-01" / "test.npy").unlink()
    with pytest.raises(UserError, match="sub-01 has no test.npy; fetch it"):
        converted()
