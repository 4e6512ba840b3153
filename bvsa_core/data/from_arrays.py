"""Recordings from arrays in memory and from PyTorch data sets, and the store that training reads, written from them.

    STORE/sub-01/{header.json,train.npy,test.npy}     by write_subject
    STORE/Image_set/...                               the images, under the names in the recordings
    STORE/dataset.json                                the name of the data set, if the recordings have one

Published recordings are converted by `bvsa data eeg` and `bvsa data meg`.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bvsa_core.data.dataset import DESCRIPTION, IMAGE_FOLDERS, SYNTHETIC, Recordings, concept_of
from bvsa_core.data.layouts.files import check_array
from bvsa_core.data.store import Header, SplitHeader, SubjectWriter
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import open_atomically, refuse_links, write_atomically

MIN_DEVIATION = 2.0**-4  # a thousandth of it is the smallest number that float16 holds to its full precision


def from_arrays(
    data: ArrayLike,
    images: Sequence[str],
    concepts: Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    times: ArrayLike | None = None,
    modality: str = "EEG",
    units: str = "as given",
    sessions: Sequence[int] | None = None,
    dataset: str = "",
) -> Recordings:
    """Return the recordings of one subject from single trials, those of an image as its repetitions.

    If images are shown equally often, the result has a condition for each image; otherwise one for each trial, and
    training and scoring average the conditions of an image.

    Args:
        data: (trials, channels, time) floats.
        images: (trials,) name or path of the image of each trial.
        concepts: (trials,) what the image shows; default: the name in its path, aardvark for 00001_aardvark/....jpg.
        channels: names; default: channel 1, channel 2 and so on.
        times: (time,) seconds after image onset; default: the numbers of the samples, for an unknown rate.
        modality: EEG or MEG.
        units: of a sample, such as "whitened" or "µV".
        sessions: (trials,) numbers from 1.
        dataset: name of the data set, for tables; "synthetic" if the recordings are.

    Raises:
        UserError: the parts do not fit together.

    Examples:
        >>> recordings = from_arrays(np.zeros((4, 2, 5), np.float32), ["cat.png", "dog.png", "cat.png", "dog.png"])
        >>> recordings.data.shape, recordings.images
        ((2, 2, 2, 5), ['cat.png', 'dog.png'])
    """
    trials = check_array("data", np.asarray(data), "(trials, channels, time)")
    names = [str(name) for name in images]
    shown = [*map(concept_of, names)] if concepts is None else [str(name) for name in concepts]
    labels: dict[str, list] = {
        "images": names,
        "concepts": shown,
        **({} if sessions is None else {"sessions": list(sessions)}),
    }
    for name, given in labels.items():
        if len(given) != len(trials):
            raise UserError(f"{name}: {len(given)} for {len(trials)} trials; give one a trial")
    order = _by_image(names)
    part = lambda values: np.asarray(values)[order]  # noqa: E731  (conditions, repetitions, ...)
    recordings = Recordings(
        data=part(trials),
        images=[names[row] for row in order[:, 0]],
        concepts=[shown[row] for row in order[:, 0]],
        channels=[f"channel {i + 1}" for i in range(trials.shape[1])] if channels is None else list(channels),
        times=np.arange(trials.shape[2], dtype=float) if times is None else np.asarray(times, dtype=float),
        modality=modality,
        sessions=None if sessions is None else part(sessions).astype(int).tolist(),
        units=units,
        dataset=dataset,
        source=SYNTHETIC if dataset == SYNTHETIC else None,
    )
    check("data", recordings)
    for row, other in zip(order[:, 0], order[:, 1:]):
        if differing := [shown[trial] for trial in other if shown[trial] != shown[row]]:
            both = f"{shown[row]!r} and {differing[0]!r}"
            raise UserError(f"concepts: the image {names[row]} shows {both}; give it one concept")
    return recordings


def from_torch(
    samples: Iterable[Any], images: Mapping[Any, str] | Sequence[str] | None = None, **about: Any
) -> Recordings:
    """Return the recordings of one subject from a `torch.utils.data.Dataset` of (recording, image id).

    Args:
        samples: the data set, or anything else that yields pairs of a recording (channels, time) and an image id, a
            number or a name.
        images: names or paths of the images by id; default: the ids themselves.
        **about: concepts, channels, times and so on, as of `from_arrays`.

    Raises:
        UserError: a sample is no such pair, an id is unknown, or the parts do not fit together.
    """
    pairs = list(read_pairs(samples))
    if not pairs:
        raise UserError("samples: empty; give pairs of a recording (channels, time) and an image id")
    shapes = {recording.shape for recording, _ in pairs}
    if len(shapes) > 1 or len(pairs[0][0].shape) != 2:
        raise UserError(
            f"samples: recordings of shape {', '.join(map(str, sorted(shapes)))}; all must be (channels, time)"
        )
    return from_arrays(np.stack([each for each, _ in pairs]), [name_of(i, images) for _, i in pairs], **about)


def name_of(identifier: Any, images: Mapping[Any, str] | Sequence[str] | None) -> str:
    """Return the name or path of an image by its id; without `images`, the id is the name."""
    if images is None:
        return str(identifier)
    try:
        return str(images[identifier])
    except (LookupError, TypeError) as error:
        raise UserError(f"images: none for the id {identifier!r}; give a mapping or list that has all ids") from error


def read_pairs(samples: Iterable[Any]) -> Iterable[tuple[np.ndarray, Any]]:
    """Yield recordings and ids; a data set with a length is read by number, as its contract is."""
    numbered = hasattr(samples, "__getitem__") and hasattr(samples, "__len__")
    for number, sample in enumerate((samples[i] for i in range(len(samples))) if numbered else samples):  # type: ignore
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            problem = f"sample {number} is a {type(sample).__name__}"
            raise UserError(f"samples: {problem}; each must be a pair of a recording (channels, time) and an image id")
        recording, identifier = sample
        yield np.asarray(recording), identifier.item() if hasattr(identifier, "item") else identifier


def _by_image(names: Sequence[str]) -> np.ndarray:
    """Return the numbers of trials as (conditions, repetitions): a row for each image, or for each trial."""
    trials: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        trials.setdefault(name, []).append(number)
    equal = len({len(numbers) for numbers in trials.values()}) == 1
    return np.array(list(trials.values())) if equal else np.arange(len(names))[:, None]


def write_subject(
    store: str | Path,
    subject: str,
    train: Recordings,
    test: Recordings,
    units: str | None = None,
    image_folder: str | Path | None = None,
) -> Path:
    """Write one subject's recordings into a store, for `Dataset` and `bvsa train --data`. Returns the subject's folder.

    Train and test should show different concepts. Samples become float16, so they should be of size 1: whitened,
    standardised, or in microvolts or femtotesla. The images belong into STORE/Image_set, under the names in the
    recordings: "training_images/dog/dog_01.jpg" is STORE/Image_set/training_images/dog/dog_01.jpg; with `image_folder`
    they are copied there. The same call again changes nothing.

    Args:
        store: folder of all subjects.
        subject: "sub-" and letters or digits, such as "sub-01".
        train: `data` is (conditions, repetitions, channels, time); every image is a condition.
        test: the same, with the same channels and times.
        units: of a sample, such as "whitened" or "µV"; default: those of the training recordings.
        image_folder: folder in which the images have the names in the recordings; default: nothing is copied.

    Raises:
        UserError: a name or arrays that do not fit, samples that are not finite or too small for float16, an image is
            missing, or other recordings of that subject are there already.
    """
    units = train.units if units is None else units
    if not subject.startswith("sub-") or not subject.removeprefix("sub-").isalnum():
        raise UserError(f"subject {subject!r}: call it sub- and letters or digits, such as sub-01")
    recordings = {"train": train, "test": test}
    for split, each in recordings.items():
        check(f"{subject} {split}", each)
        _check_for_store(f"{subject} {split}", each)
    for name in ("channels", "times", "modality"):
        if list(getattr(train, name)) != list(getattr(test, name)):
            raise UserError(f"{subject} test: its {name} are not those of train; cut both in one way")
    if image_folder is not None:
        _copy_images([*train.images, *test.images], Path(image_folder), Path(store) / IMAGE_FOLDERS[1])
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
        own = Header(subject, train.modality, units, rate, channels, times, "own", processing, splits)
        writer.commit(replace(own, source=train.source or ""))
    description = Path(store) / DESCRIPTION
    if train.dataset and not description.exists():
        content = {"name": train.dataset, "modality": train.modality}
        write_atomically(description, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
    return writer.target


def _copy_images(names: Iterable[str], source: Path, target: Path) -> None:
    """Copy images that are not there yet, by name."""
    for name in dict.fromkeys(names):
        if not (source / name).is_file():
            raise UserError(f"image_folder {source}: no image {name}; name the folder that has it")
    for name in dict.fromkeys(names):
        if not (target / name).exists():
            refuse_links(target / name, below=target.parent)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with (source / name).open("rb") as original, open_atomically(target / name) as copy:
                shutil.copyfileobj(original, copy)


def check(name: str, recordings: Recordings) -> None:
    """Check the parts of a split; `name` starts the message."""
    data = check_array(f"{name} data", np.asarray(recordings.data))
    conditions, _, channels, time = data.shape
    for part, length in (("images", conditions), ("concepts", conditions), ("channels", channels), ("times", time)):
        if (count := len(getattr(recordings, part))) != length:
            raise UserError(f"{name}: {count} {part} for data of shape {data.shape}; give {length}")
    if time < 2 or not (np.diff(recordings.times) > 0).all():
        raise UserError(f"{name}: times must be at least two, in seconds after image onset, ascending")
    if recordings.modality not in ("EEG", "MEG"):
        raise UserError(f"{name}: modality is {recordings.modality!r}; give 'EEG' or 'MEG'")


def _check_for_store(name: str, recordings: Recordings) -> None:
    """Check what the store needs besides: image names inside its folder, and samples that float16 can hold."""
    for image in recordings.images:
        if Path(image).is_absolute() or ".." in Path(image).parts:
            outside = f"the image name {image!r} points outside the image folder"
            raise UserError(f"{name}: {outside}; give it relative to Image_set")
    deviation = float(np.asarray(recordings.data).std(dtype=np.float64))
    if deviation < MIN_DEVIATION:  # false for NaN, which commit finds
        small = f"samples deviate by {deviation:.2g}, too little for the store's float16"
        raise UserError(f"{name}: {small}; give µV or fT instead of V or T, or standardise them")


def _sha256(recordings: Recordings) -> str:
    """Return the checksum of samples, images, concepts, channels and times."""
    digest = hashlib.sha256(np.ascontiguousarray(recordings.data).tobytes())
    labels = (recordings.images, recordings.concepts, list(recordings.channels), list(recordings.times))
    digest.update(repr(labels).encode())
    return digest.hexdigest()
