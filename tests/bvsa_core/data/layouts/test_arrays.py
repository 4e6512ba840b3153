"""Errors in plain arrays."""

import json

import fake_eeg
import numpy as np
import pytest


@pytest.fixture
def subject(planted, tmp_path):
    fake_eeg.arrays(tmp_path / "source", planted)
    return tmp_path / "source" / "preprocessed_eeg" / "sub-01"


def test_arrays_of_other_channels_need_their_names(subject, refused):
    info = subject.parent / "info.json"
    info.unlink()
    for split in fake_eeg.PARTS:
        np.save(subject / f"{split}.npy", np.load(subject / f"{split}.npy")[..., :17, :])
    unnamed = "train.npy: 17 channels and 250 samples that nothing names"
    refused(f"{unnamed}; put info.json with ch_names and times beside the subjects")
    info.write_text(json.dumps({"ch_names": list("abc"), "times": [0.0]}))
    refused("train.npy: 17 channels, and 3 names")
    for content, message in (("[]", "holds list"), ("{}", "damaged, or without lists ch_names and times; fetch")):
        info.write_text(content)
        refused(f"info.json: {message}")


WRONG = [
    (lambda data: data[..., 0, 0], "must be floats of shape .concepts, images, repetitions"),
    (lambda data: data.astype(np.int16), "int16 of shape"),
    (lambda data: data[:2], "has 2 test conditions and .* 3 test images"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:20] for _, message in WRONG])
def test_wrong_arrays_are_reported(change, message, subject, refused):
    np.save(subject / "test.npy", change(np.load(subject / "test.npy")))
    refused(message)


def test_a_missing_split_is_reported(subject, refused):
    (subject / "test.npy").unlink()
    refused("sub-01 has no test.npy; fetch it")
