"""What can be wrong with the sessions of things_eeg2_dataset."""

from __future__ import annotations

import fake_eeg
import numpy as np
import pytest

from bvsa_core.errors import UserError


def _edit(file, change):
    values = np.load(file)
    np.save(file, change(values))


def _put(where, value):
    def change(values):
        values[where] = value
        return values

    return change


NUMBERS, DATA = "img_conditions_training_sub-01.npy", "preprocessed_eeg_training_sub-01.npy"
WRONG = [
    (NUMBERS, lambda file: file.unlink(), f"sub-01 has no {NUMBERS}; fetch it"),
    ("meta_sub-01.json", lambda file: file.unlink(), "sub-01 has no meta_sub-01.json; fetch it"),
    (
        "meta_sub-01.json",
        lambda file: file.write_text('{"ch_names": []'),
        "meta_sub-01.json: damaged or incomplete",
    ),
    ("preprocessed_eeg_test_sub-01.npy", lambda file: file.unlink(), "sub-01 has no preprocessed_eeg_test_sub-01.npy"),
    (NUMBERS, lambda file: _edit(file, lambda v: v[:3]), r"int64 \(3, 3\) where .* has \(4, 3\) sessions x conditions"),
    (NUMBERS, lambda file: _edit(file, lambda v: v + 0.5), "float64 .* where"),
    (NUMBERS, lambda file: _edit(file, lambda v: v - 1), "image numbers 0 to 5, and there are images 1 to 6"),
    (NUMBERS, lambda file: _edit(file, _put((0, 1), 2)), "image 2 is in session 1 twice"),
    (
        NUMBERS,
        lambda file: _edit(file, _put((0, 1), 1)),
        r"image 4 \(training_images/00002_seen_1/.* is in 1 session.s. and others in 3",
    ),
    (DATA, lambda file: _edit(file, lambda v: v[0]), r"it must be floats of shape \(sessions, conditions, repetitions"),
]


@pytest.mark.parametrize(("name", "damage", "message"), WRONG, ids=[message[-30:] for _, _, message in WRONG])
def test_what_is_missing_or_wrong_is_told(name, damage, message, planted, tmp_path, converted):
    fake_eeg.things_eeg2_dataset(tmp_path / "source", planted)
    damage(tmp_path / "source" / "processed" / "sub-01" / name)
    with pytest.raises(UserError, match=message):
        converted()


def test_a_session_that_is_missing_altogether_is_told(planted, tmp_path, converted):
    fake_eeg.things_eeg2_dataset(tmp_path / "source", planted)
    for name in (NUMBERS, DATA):
        _edit(tmp_path / "source" / "processed" / "sub-01" / name, lambda v: v[:3])
    with pytest.raises(UserError, match="is in 1 session.s. and others in 2; a session is missing"):
        converted()
