"""Recordings of one's own, as arrays in memory, into the store that training reads.

    STORE/sub-01/{header.json,train.npy,test.npy}     by write_subject
    STORE/Image_set/...                               the images, by whoever has them, under the names that recordings give

Published recordings come by `bvsa data eeg` and `bvsa data meg`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from bvsa_core.data.dataset import Recordings
from bvsa_core.data.store import Header, SplitHeader, SubjectWriter
from bvsa_core.errors import UserError

LEAST_DEVIATION = 2.0**-4  # a thousandth of it is the smallest number that float16 holds to its full precision


def write_subject(
    store: str | Path, subject: str, train: Recordings, test: Recordings, units: str = "as given"
) -> Path:
    """Put one subject's recordings into a store, which `Dataset` and `bvsa train --data` read. Returns the subject's folder.

    What is trained on and what is tested should show different concepts. Samples become float16, so they are to be of the
    size of 1: whitened, standardised, or in microvolts or femtotesla. The images belong into STORE/Image_set, under the
    names that the recordings give: "training_images/dog/dog_01.jpg" is STORE/Image_set/training_images/dog/dog_01.jpg.
    The same call again changes nothing.

    Args:
        subject: its name, sub- and whatever tells it from others, such as "sub-01".
        train: of Recordings.data (conditions, repetitions, channels, time) every image is a condition.
        test: the same channels and times.
        units: of a sample, such as "whitened" or "µV".

    Raises:
        UserError: a name or arrays that do not fit, samples that are not finite or too small for float16, or a subject that
            is there already with other recordings.
    """
    if not subject.startswith("sub-") or not subject.removeprefix("sub-").isalnum():
        raise UserError(f"subject {subject!r}: call it sub- and letters or digits, such as sub-01")
    splits = {"train": train, "test": test}
    for split, recordings in splits.items():
        _check(f"{subject} {split}", recordings)
    for name in ("channels", "times", "modality"):
        if list(getattr(train, name)) != list(getattr(test, name)):
            raise UserError(f"{subject} test: its {name} are not those of train; cut both in one way")
    made_of = {split: _digest(recordings) for split, recordings in splits.items()}
    with SubjectWriter(Path(store), subject, {"layout": "own", "units": units, "sha256": made_of}) as writer:
        if writer.complete:
            return writer.target
        for split, recordings in splits.items():
            array = writer.array(split, recordings.data.shape)
            with np.errstate(over="ignore"):  # what is too large is told by its condition at the end
                array[:] = recordings.data
            array.flush()
        rate = 1 / float(np.diff(train.times).mean())
        times = np.asarray(train.times, dtype=float).tolist()
        about = {
            split: SplitHeader(list(each.data.shape), list(each.images), list(each.concepts), each.sessions)
            for split, each in splits.items()
        }
        writer.finish(
            Header(
                subject, train.modality, units, rate, list(train.channels), times, "own", ["As they were given."], about
            )
        )
    return writer.target


def _check(what: str, recordings: Recordings) -> None:
    data = np.asarray(recordings.data)
    if data.ndim != 4 or data.dtype.kind != "f" or data.size == 0:
        shape = "conditions, repetitions, channels, time"
        raise UserError(f"{what}: data is {data.dtype} of shape {data.shape}; it must be floats of shape ({shape})")
    conditions, _, channels, time = data.shape
    for name, length in (("images", conditions), ("concepts", conditions), ("channels", channels), ("times", time)):
        if len(getattr(recordings, name)) != length:
            raise UserError(
                f"{what}: {len(getattr(recordings, name))} {name} for data of shape {data.shape}; give {length}"
            )
    for image in recordings.images:
        if Path(image).is_absolute() or ".." in Path(image).parts:
            raise UserError(
                f"{what}: the image name {image!r} points outside the image folder; give it relative to Image_set"
            )
    steps = np.diff(recordings.times)
    if time < 2 or not (steps > 0).all():
        raise UserError(f"{what}: times must be at least two, in seconds after the image appears, ascending")
    if recordings.modality not in ("EEG", "MEG"):
        raise UserError(f"{what}: modality is {recordings.modality!r}; give 'EEG' or 'MEG'")
    deviation = float(data.std(dtype=np.float64))
    if deviation < LEAST_DEVIATION:  # false of NaN, which the writer finds
        told = f"samples deviate by {deviation:.2g}, too little for the store's float16"
        raise UserError(f"{what}: {told}; give µV or fT instead of V or T, or standardise them")


def _digest(recordings: Recordings) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(recordings.data).tobytes())
    digest.update(
        repr((recordings.images, recordings.concepts, list(recordings.channels), list(recordings.times))).encode()
    )
    return digest.hexdigest()
