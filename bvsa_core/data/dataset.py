"""A data set on disk, recordings and images: the store that `bvsa data` makes, or the layout of UBP and BVSA.

ROOT/sub-01/{header.json,train.npy,test.npy}                              (the store, see data.store)
ROOT/Preprocessed_data_250Hz_whiten/sub-01/{train,test}.pt                (UBP and BVSA)
ROOT/Image_set_Resize/training_images/00001_aardvark/aardvark_01b.jpg     (or Image_set, or train_images)
ROOT/Image_set_Resize/test_images/00001_aircraft_carrier/aircraft_carrier_06s.jpg
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bvsa_core.data import store, things_meg
from bvsa_core.data.store import first_bad_condition
from bvsa_core.errors import UserError
from bvsa_core.io.safe_readers import read_arrays
from bvsa_core.io.text_files import read_json

RECORDINGS_FOLDER = "Preprocessed_data_250Hz_whiten"
DEMO_FOLDER = Path("bvsa_data/demo")  # of `bvsa demo`, and the default of other commands
DESCRIPTION = "dataset.json"
SYNTHETIC = "synthetic"  # name of data that a forward model made; they keep it
_RECORDINGS_FOLDERS = "Preprocessed_data*"
IMAGE_FOLDERS = ("Image_set_Resize", "Image_set")
_TRAINING_NAMES = ("training_images", "train_images")


@dataclass(frozen=True)
class RecordingAxes:
    """Channels and times of recordings. Recordings that a method is tested on need those it was trained on."""

    channels: tuple[str, ...]
    times: tuple[float, ...]  # seconds after image onset

    def __str__(self) -> str:
        return f"{len(self.times)} samples from {self.times[0]:g} to {self.times[-1]:g} s"

    @property
    def step(self) -> float:
        """Seconds from one sample to the next; 0 if there is only one."""
        return (self.times[-1] - self.times[0]) / max(1, len(self.times) - 1)

    @property
    def sampling_rate(self) -> float | None:
        """Samples per second, to 0.1; None if unknown, as in files that only number their samples."""
        return round(1 / self.step, 1) if 0 < self.step < 1 else None

    @property
    def window(self) -> tuple[float, float] | None:
        """Times of the first and last sample; None if unknown."""
        return (self.times[0], self.times[-1]) if self.sampling_rate else None

    def problem(self) -> str | None:
        """Return what is wrong with channels or times, with the remedy; None if nothing is."""
        if twice := sorted({name for name in self.channels if self.channels.count(name) > 1}):
            return f"channels named twice: {', '.join(twice)}; make the file again"
        if not (np.isfinite(self.times).all() and (np.diff(self.times) > 0).all()):
            return "times that do not increase, or are not finite; make the file again"
        return None

    def same_times(self, other: RecordingAxes) -> bool:
        """Return whether the times are the same, to a tenth of a sample."""
        return len(self.times) == len(other.times) and np.allclose(self.times, other.times, rtol=0, atol=self.step / 10)


@dataclass(frozen=True)
class Recordings:
    """One split of one subject. A condition is one image, shown repeatedly."""

    data: np.ndarray  # (conditions, repetitions, channels, time), float16 or float32
    images: list[str]  # (conditions,) image paths as in the file
    concepts: list[str]  # (conditions,) such as "aircraft_carrier"
    channels: list[str]  # (channels,)
    times: np.ndarray  # (time,) seconds after image onset
    modality: str = "EEG"  # or MEG
    sessions: list[list[int]] | None = None  # (conditions, repetitions) from 1, if the file has them
    units: str = "as given"  # of a sample, such as "whitened" or "µV"
    dataset: str = ""  # name of the data set, if it is known
    source: str | None = None  # "synthetic", or the layout they were first read from; None: in memory, or unknown

    @property
    def axes(self) -> RecordingAxes:
        """Channels and times."""
        return RecordingAxes(tuple(self.channels), tuple(np.asarray(self.times, float).tolist()))

    def __len__(self) -> int:
        return len(self.data)


class Dataset:
    """A data set's folder: a store, or the layout of UBP and BVSA.

    Raises:
        UserError: the folder does not exist or holds no recordings.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not self.root.is_dir():
            make = ", or make synthetic data there with 'bvsa demo'" if self.root == DEMO_FOLDER else ""
            raise UserError(f"{root}: no such folder; give the folder of your recordings{make}")
        candidates = [self.root, *sorted(self.root.glob(_RECORDINGS_FOLDERS))]
        names = (store.HEADER, "train.pt", "test.pt")
        folders = [folder for folder in candidates if any(any(folder.glob(f"sub-*/{name}")) for name in names)]
        if not folders:
            published = f"{RECORDINGS_FOLDER}/sub-XX/train.pt as UBP and BVSA publish it"
            expected = f"{published}, or sub-XX/{store.HEADER} as 'bvsa data' makes it"
            remedy = "convert other layouts by 'bvsa data eeg' or 'meg'"
            raise UserError(f"{root}: no recordings inside; expected {expected}; {remedy}")
        self.recordings_folder = folders[0]
        parents = [self.root, self.root.parent] if folders[0] == self.root else [self.root]  # UBP has images beside it
        self.image_folders = [folder / name for folder in parents for name in IMAGE_FOLDERS if (folder / name).is_dir()]

    @property
    def name(self) -> str:
        """Name in tables: "synthetic" if the recordings say so, else from dataset.json, else the folder's name."""
        return SYNTHETIC if self._stored_synthetic else self.description.get("name", self.root.resolve().name)

    @functools.cached_property
    def _stored_synthetic(self) -> bool:
        """Whether the first header of a store says that its recordings are synthetic."""
        with contextlib.suppress(UserError):  # a damaged header is reported by whoever reads the recordings
            folders = (self.recordings_folder / subject for subject in self.subjects if self.in_store(subject))
            return any(store.read_header(folder).source == SYNTHETIC for folder in itertools.islice(folders, 1))
        return False

    @property
    def synthetic(self) -> bool:
        """Whether a forward model made the recordings."""
        return self.name == SYNTHETIC

    @functools.cached_property
    def description(self) -> dict:
        """Content of dataset.json; empty if there is none, as in published folders."""
        return read_description(self.root)

    @property
    def modality(self) -> str:
        """EEG or MEG: from dataset.json, else from the first recordings."""
        return self.description.get("modality") or self.load(self.subjects[0], "test").modality

    @property
    def subjects(self) -> list[str]:
        """Subject names such as "sub-01"."""
        return sorted(folder.name for folder in self.recordings_folder.glob("sub-*") if folder.is_dir())

    def in_store(self, subject: str) -> bool:
        """Return whether a subject's recordings are in the store's format."""
        return (self.recordings_folder / subject / store.HEADER).exists()

    def path(self, subject: str, split: str) -> Path:
        """Return the file of a subject's split."""
        return self.recordings_folder / subject / (f"{split}.npy" if self.in_store(subject) else f"{split}.pt")

    def load(self, subject: str, split: str) -> Recordings:
        """Read and check the recordings of one split of a subject."""
        self._check(subject)
        if self.in_store(subject):
            recordings = read_stored(self.recordings_folder / subject, split)
        else:
            recordings = read_recordings(self.path(subject, split))
            recordings = replace(recordings, modality=self.description.get("modality", recordings.modality))
        source = SYNTHETIC if self.synthetic else recordings.source
        return replace(recordings, dataset=self.name, source=source)

    def others(self, subject: str) -> list[str]:
        """Return all other subjects; having none is a UserError."""
        self._check(subject)
        others = [name for name in self.subjects if name != subject]
        if not others:
            reason = f"{subject} is the only subject, with nobody else to train on; use --setting intra"
            raise UserError(f"{self.recordings_folder}: {reason}")
        return others

    def _check(self, subject: str) -> None:
        if subject not in self.subjects:
            raise UserError(f"{self.recordings_folder}: no subject {subject!r}; there are {', '.join(self.subjects)}")

    def image_path(self, image: str) -> Path:
        """Return the path of an image that a recordings file names.

        Raises:
            UserError: the image is missing, or its name points outside the image folders.
        """
        parts = Path(image).parts
        if Path(image).is_absolute() or ".." in parts:
            raise UserError(f"{self.recordings_folder}: the image name {image!r} points outside the image folders")
        names = [image]
        if parts and parts[0] in _TRAINING_NAMES:
            names += [str(Path(training, *parts[1:])) for training in _TRAINING_NAMES]
        for path in (folder / name for folder in self.image_folders for name in names):
            if path.is_file():
                return path
        folders = " and ".join(map(str, self.image_folders)) or f"{' or '.join(IMAGE_FOLDERS)}, which do not exist,"
        where = f"not in {folders} for {self.recordings_folder}"
        raise UserError(f"image {image} is missing: {where}; copy the image set there")


def read_description(folder: Path) -> dict[str, Any]:
    """Read the dataset.json of a data set, or of the one whose recordings folder this is; empty if there is none."""
    place = folder.resolve()
    folders = [folder, place.parent] if place.match(_RECORDINGS_FOLDERS) else [folder]
    path = next((path for each in folders if (path := each / DESCRIPTION).exists()), None)
    remedy = "it names the data set; fetch it or make the data again"
    content = read_json(path, remedy) if path else {}
    if not all(isinstance(content.get(key, ""), str) for key in ("name", "modality")):
        raise UserError(f"{path}: damaged (name and modality must be text); {remedy}")
    return content


def read_stored(folder: Path, split: str) -> Recordings:
    """Open one split in a subject's folder of the store; its data are memory-mapped."""
    header = store.read_header(folder)
    data, info = store.open_array(folder, header, split), header.splits[split]
    return Recordings(
        data,
        info.images,
        info.concepts,
        header.channels,
        np.array(header.times),
        header.modality,
        info.sessions,
        header.units,
        source=header.source or header.layout,
    )


def read_recordings(path: Path, finite: bool = True) -> Recordings:
    """Read a train.pt or test.pt, whose parts must fit together; with `finite`, refuse NaN and infinite samples."""
    content = read_arrays(path)
    if not isinstance(content, dict) or not {"eeg", "img"} <= content.keys():
        raise UserError(f"{path}: not a recordings file; it must hold at least 'eeg' and 'img'")
    data = np.asarray(content["eeg"])
    if data.ndim != 4 or data.dtype.kind != "f" or data.size == 0:
        shape = "conditions, repetitions, channels, time"
        raise UserError(f"{path}: 'eeg' is {data.dtype} of shape {data.shape}; it must be floats of shape ({shape})")
    conditions, _, channels, time = data.shape
    images = _per_condition(path, "img", content["img"], conditions)
    names = content.get("text")
    concepts = [*map(concept_of, images)] if names is None else _per_condition(path, "text", names, conditions)
    modality = "MEG" if channels == things_meg.SENSORS else "EEG"
    published_meg = modality == "MEG" and time == things_meg.SAMPLES
    default_times = np.arange(time) / (things_meg.SAMPLING_RATE if published_meg else 1)
    try:
        channel_names = [*map(str, content.get("ch_names", []))] or [f"channel {i + 1}" for i in range(channels)]
        times = np.asarray(content.get("times", default_times), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: 'ch_names' or 'times' is no list ({error}); make the file again") from error
    if len(channel_names) != channels:
        raise UserError(f"{path}: 'ch_names' has {len(channel_names)} names for {channels} channels")
    if times.ndim != 1 or len(times) < time:
        raise UserError(f"{path}: 'times' has shape {times.shape} for {time} time points")
    sessions = _sessions(content.get("session"), data.shape[:2])
    if not isinstance(source := content.get("source", "ubp"), str):
        raise UserError(f"{path}: 'source' is no text; make the file again")
    # Published files have the last second of an epoch, and the times of all of it.
    recordings = Recordings(data, images, concepts, channel_names, times[-time:], modality, sessions, source=source)
    if finite and (where := first_bad_condition(data)) is not None:
        raise UserError(f"{path}: condition {where} ({images[where]}) has NaN or infinite samples; make the file again")
    return recordings


def write_recordings(path: Path, recordings: Recordings, labels: np.ndarray, sessions: np.ndarray | None) -> None:
    """Write a file like the published ones: numpy arrays in a torch archive, float16.

    Args:
        path: the file.
        recordings: what it will hold.
        labels: (conditions,) concept numbers.
        sessions: (conditions, repetitions) session numbers from 0, or None to leave them out of the file.
    """
    data = np.asarray(recordings.data).astype(np.float16, copy=False)  # a memory map would be pickled as one
    content: dict[str, Any] = {"eeg": data}
    for key, values in (("label", labels), ("img", recordings.images), ("text", recordings.concepts)):
        content[key] = np.repeat(np.asarray(values)[:, None], data.shape[1], axis=1)
    content |= {"ch_names": list(recordings.channels), "times": recordings.times}
    if sessions is not None:
        content["session"] = sessions
    if recordings.source is not None:
        content["source"] = recordings.source
    try:
        torch.save(content, path, pickle_protocol=5)
    except RuntimeError as error:  # which PyTorch raises if a write fails
        raise OSError("the disk is full, or fails") from error


def concept_of(image: str) -> str:
    """Return the concept in an image path: aardvark for training_images/00001_aardvark/aardvark_01b.jpg."""
    folder = Path(image).parent.name
    number, _, name = folder.partition("_")
    return name if number.isdigit() and name else Path(image).stem.rsplit("_", 1)[0]


def _sessions(values: object, trials: tuple[int, int]) -> list[list[int]] | None:
    """Return session numbers from 1 (the published ones start at 0), or None: only provenance depends on them."""
    values = np.asarray(values)
    if values.dtype.kind not in "iuf" or values.shape != trials or not np.isin(values, np.arange(100)).all():
        return None
    return (values.astype(int) + (values.min() == 0)).tolist()


def _per_condition(path: Path, key: str, values: object, conditions: int) -> list[str]:
    values = np.asarray(values)
    expected = f"it must have a name for each of {conditions} conditions"
    if values.dtype.kind != "U" or values.ndim not in (1, 2) or len(values) != conditions or not values.size:
        raise UserError(f"{path}: {key!r} has shape {values.shape}; {expected}")
    columns = values.reshape(conditions, -1)
    if (changes := (columns != columns[:, :1]).any(axis=1)).any():
        where = int(changes.argmax())
        names = ", ".join(dict.fromkeys(columns[where].tolist()))
        raise UserError(f"{path}: {key!r} changes over the repetitions of condition {where} ({names}); {expected}")
    return columns[:, 0].tolist()
