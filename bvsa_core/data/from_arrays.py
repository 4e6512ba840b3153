"""Write a subject's recordings from arrays in memory into the store, the format that training reads.

    STORE/sub-01/{header.json,train.npy,test.npy}     by write_subject
    STORE/Image_set/...                               the images, by the user, under the names in the recordings

Published recordings are converted by `bvsa data eeg` and `bvsa data meg`.
"""

import hashlib
from pathlib import Path

import numpy as np

from bvsa_core.data.dataset import Recordings
from bvsa_core.data.layouts.files import check_array
from bvsa_core.data.store import Header, SplitHeader, SubjectWriter
from bvsa_core.errors import UserError

MIN_DEVIATION = 2.0**-4  # a thousandth of it is the smallest number that float16 holds to its full precision


def write_subject(
    store: str | Path, subject: str, train: Recordings, test: Recordings, units: str = "as given"
) -> Path:
    """Write one subject's recordings into a store, for `Dataset` and `bvsa train --data`. Returns the subject's folder.

    Train and test should show different concepts. Samples become float16, so they should be of size 1: whitened,
    standardised, or in microvolts or femtotesla. The images belong into STORE/Image_set, under the names in the
    recordings: "training_images/dog/dog_01.jpg" is STORE/Image_set/training_images/dog/dog_01.jpg. The same call again
    changes nothing.

    Args:
        store: folder of all subjects.
        subject: "sub-" and letters or digits, such as "sub-01".
        train: `data` is (conditions, repetitions, channels, time); every image is a condition.
        test: the same, with the same channels and times.
        units: of a sample, such as "whitened" or "µV".

    Raises:
        UserError: a name or arrays that do not fit, samples that are not finite or too small for float16, or other
            recordings of that subject are there already.
    """
    if not subject.startswith("sub-") or not subject.removeprefix("sub-").isalnum():
        raise UserError(f"subject {subject!r}: call it sub- and letters or digits, such as sub-01")
    recordings = {"train": train, "test": test}
    for split, each in recordings.items():
        _check(f"{subject} {split}", each)
    for name in ("channels", "times", "modality"):
        if list(getattr(train, name)) != list(getattr(test, name)):
            raise UserError(f"{subject} test: its {name} are not those of train; cut both in one way")
    checksums = {split: _sha256(each) for split, each in recordings.items()}
    recipe = {"layout": "own", "units": units, "sha256": checksums}
    with SubjectWriter(Path(store), subject, recipe) as writer:
        if writer.complete:
            return writer.target
        splits = {}
        for split, each in recordings.items():
            array = writer.create_array(split, each.data.shape)
            with np.errstate(over="ignore"):  # commit refuses what is too large, by condition
                array[:] = each.data
            array.flush()
            splits[split] = SplitHeader(list(each.data.shape), list(each.images), list(each.concepts), each.sessions)
        rate = 1 / float(np.diff(train.times).mean())
        channels, times = list(train.channels), np.asarray(train.times, dtype=float).tolist()
        processing = ["As they were given."]
        writer.commit(Header(subject, train.modality, units, rate, channels, times, "own", processing, splits))
    return writer.target


def _check(name: str, recordings: Recordings) -> None:
    """Check the parts of a split; `name` starts the message."""
    data = check_array(f"{name} data", np.asarray(recordings.data))
    conditions, _, channels, time = data.shape
    for part, length in (("images", conditions), ("concepts", conditions), ("channels", channels), ("times", time)):
        if (count := len(getattr(recordings, part))) != length:
            raise UserError(f"{name}: {count} {part} for data of shape {data.shape}; give {length}")
    for image in recordings.images:
        if Path(image).is_absolute() or ".." in Path(image).parts:
            outside = f"the image name {image!r} points outside the image folder"
            raise UserError(f"{name}: {outside}; give it relative to Image_set")
    if time < 2 or not (np.diff(recordings.times) > 0).all():
        raise UserError(f"{name}: times must be at least two, in seconds after image onset, ascending")
    if recordings.modality not in ("EEG", "MEG"):
        raise UserError(f"{name}: modality is {recordings.modality!r}; give 'EEG' or 'MEG'")
    deviation = float(data.std(dtype=np.float64))
    if deviation < MIN_DEVIATION:  # false for NaN, which commit finds
        small = f"samples deviate by {deviation:.2g}, too little for the store's float16"
        raise UserError(f"{name}: {small}; give µV or fT instead of V or T, or standardise them")


def _sha256(recordings: Recordings) -> str:
    """Return the checksum of samples, images, concepts, channels and times."""
    digest = hashlib.sha256(np.ascontiguousarray(recordings.data).tobytes())
    labels = (recordings.images, recordings.concepts, list(recordings.channels), list(recordings.times))
    digest.update(repr(labels).encode())
    return digest.hexdigest()
