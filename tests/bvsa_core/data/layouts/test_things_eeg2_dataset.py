"""Errors in the sessions of things_eeg2_dataset."""

import fake_eeg
import numpy as np
import pytest


def _edit(file, change):
    np.save(file, change(np.load(file)))


def _put(where, value):
    def change(values):
        values[where] = value
        return values

    return change


NUMBERS, DATA = "img_conditions_training_sub-01.npy", "preprocessed_eeg_training_sub-01.npy"
BADLY_SHOWN = r"image 4 \(training_images/00002_seen_1/.* is in 1 session.s. and others in 3"
WRONG = [
    (NUMBERS, lambda file: file.unlink(), f"sub-01 has no {NUMBERS}; fetch it"),
    ("meta_sub-01.json", lambda file: file.unlink(), "sub-01 has no meta_sub-01.json; fetch it"),
    ("meta_sub-01.json", lambda file: file.write_text('{"ch'), "meta_sub-01.json: damaged or incomplete"),
    ("preprocessed_eeg_test_sub-01.npy", lambda file: file.unlink(), "sub-01 has no preprocessed_eeg_test_sub-01.npy"),
    (NUMBERS, lambda file: _edit(file, lambda v: v[:3]), r"int64 \(3, 3\) where .* has \(4, 3\) sessions x conditions"),
    (NUMBERS, lambda file: _edit(file, lambda v: v + 0.5), "float64 .* where"),
    (NUMBERS, lambda file: _edit(file, lambda v: v - 1), "image numbers 0 to 5, and there are images 1 to 6"),
    (NUMBERS, lambda file: _edit(file, _put((0, 1), 2)), "image 2 is in session 1 twice"),
    (NUMBERS, lambda file: _edit(file, _put((0, 1), 1)), BADLY_SHOWN),
    (DATA, lambda file: _edit(file, lambda v: v[0]), r"it must be floats of shape \(sessions, conditions, repetitions"),
]


@pytest.mark.parametrize(("name", "damage", "message"), WRONG, ids=[message[-30:] for _, _, message in WRONG])
def test_missing_and_wrong_files_are_reported(name, damage, message, planted, tmp_path, refused):
    fake_eeg.things_eeg2_dataset(tmp_path / "source", planted)
    damage(tmp_path / "source" / "processed" / "sub-01" / name)
    refused(message)


def test_a_missing_session_is_reported(planted, tmp_path, refused):
    fake_eeg.things_eeg2_dataset(tmp_path / "source", planted)
    for name in (NUMBERS, DATA):
        _edit(tmp_path / "source" / "processed" / "sub-01" / name, lambda v: v[:3])
    refused("is in 1 session.s. and others in 2; a session is missing")
