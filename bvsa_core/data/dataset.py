"""A data set's folder: the store that `bvsa data` makes, or what UBP and BVSA publish; beside the recordings, the images.

ROOT/sub-01/{header.json,train.npy,test.npy}                              (the store, see data.store)
ROOT/Preprocessed_data_250Hz_whiten/sub-01/{train,test}.pt                (UBP and BVSA)
ROOT/Image_set_Resize/training_images/00001_aardvark/aardvark_01b.jpg     (or Image_set, or train_images)
ROOT/Image_set_Resize/test_images/00001_aircraft_carrier/aircraft_carrier_06s.jpg
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bvsa_core.data import store, things_meg
from bvsa_core.data.store import first_bad_condition
from bvsa_core.errors import UserError
from bvsa_core.io.safe_readers import read_arrays

RECORDINGS_FOLDER = "Preprocessed_data_250Hz_whiten"
DESCRIPTION = "dataset.json"
IMAGE_FOLDERS = ("Image_set_Resize", "Image_set")
_TRAINING_NAMES = ("training_images", "train_images")


@dataclass(frozen=True)
class Recordings:
    """One split of one subject. A condition is one image, shown repeatedly."""

    data: np.ndarray  # (conditions, repetitions, channels, time), float16 or float32
    images: list[str]  # (conditions,) image paths as the file gives them
    concepts: list[str]  # (conditions,) names of what they show, such as "aircraft_carrier"
    channels: list[str]  # (channels,)
    times: np.ndarray  # (time,) seconds after the image appears
    modality: str = "EEG"  # or MEG
    sessions: list[list[int]] | None = None  # (conditions, repetitions) from 1, where the file tells

    def __len__(self) -> int:
        return len(self.data)


class Dataset:
    """A folder in the published layout.

    Raises:
        UserError: the folder does not exist or holds no recordings.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"{root}: no such folder; make the synthetic data with 'bvsa data synthetic {root}'")
        candidates = [self.root, *sorted(self.root.glob("Preprocessed_data*"))]
        names = (store.HEADER, "train.pt", "test.pt")
        found = [folder for folder in candidates if any(any(folder.glob(f"sub-*/{name}")) for name in names)]
        if not found:
            wanted = f"{RECORDINGS_FOLDER}/sub-XX/train.pt as UBP and BVSA publish it, or sub-XX/{store.HEADER} as 'bvsa data' makes it"
            raise UserError(
                f"{root}: no recordings inside; expected {wanted}; convert other layouts by 'bvsa data eeg' or 'meg'"
            )
        self.recordings_folder = found[0]
        places = (
            [self.root] if found[0] != self.root else [self.root, self.root.parent]
        )  # in the store, or beside UBP's folder
        self.image_folders = [place / name for place in places for name in IMAGE_FOLDERS if (place / name).is_dir()]

    @property
    def name(self) -> str:
        """What tables call the data set: the name its maker wrote into dataset.json, else that of the folder."""
        return self.description.get("name", self.root.resolve().name)

    @functools.cached_property
    def description(self) -> dict:
        """What its maker wrote into dataset.json; empty where there is none, as in published folders."""
        path = self.root / DESCRIPTION
        try:
            content = json.loads(path.read_text()) if path.exists() else {}
            if {type(content), type(content.get("name", "")), type(content.get("modality", ""))} == {dict, str}:
                return content
            reason = "it must be an object with a name and a modality"
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            reason = str(error)
        raise UserError(f"{path}: damaged ({reason}); delete it, or write {{}} into it")

    @property
    def modality(self) -> str:
        """EEG or MEG: as its maker says, else as its first recordings look."""
        return self.description.get("modality") or self.load(self.subjects[0], "test").modality

    @property
    def subjects(self) -> list[str]:
        """Subject names such as "sub-01"."""
        return sorted(folder.name for folder in self.recordings_folder.glob("sub-*") if folder.is_dir())

    def in_store(self, subject: str) -> bool:
        """Whether a subject's recordings are in the store's format."""
        return (self.recordings_folder / subject / store.HEADER).exists()

    def path(self, subject: str, split: str) -> Path:
        return self.recordings_folder / subject / (f"{split}.npy" if self.in_store(subject) else f"{split}.pt")

    def load(self, subject: str, split: str) -> Recordings:
        """Read and check one file.

        Raises:
            UserError: naming the file, what is wrong with it and what to do.
        """
        self._check(subject)
        if self.in_store(subject):
            return read_stored(self.recordings_folder / subject, split)
        recordings = read_recordings(self.path(subject, split))
        return replace(recordings, modality=self.description.get("modality", recordings.modality))

    def others(self, subject: str) -> list[str]:
        """Every subject but one.

        Raises:
            UserError: that one is not there, or nobody else is.
        """
        self._check(subject)
        if len(self.subjects) == 1:
            raise UserError(
                f"{self.recordings_folder}: {subject} is the only subject, with nobody else to train on; use --setting intra"
            )
        return [name for name in self.subjects if name != subject]

    def _check(self, subject: str) -> None:
        if subject not in self.subjects:
            raise UserError(f"{self.recordings_folder}: no subject {subject!r}; there are {', '.join(self.subjects)}")

    def image_path(self, image: str) -> Path:
        """Where an image named in a recordings file lies.

        Raises:
            UserError: it is nowhere, or its name points outside the image folders.
        """
        parts = Path(image).parts
        if Path(image).is_absolute() or ".." in parts:
            raise UserError(f"{self.recordings_folder}: the image name {image!r} points outside the image folders")
        names = [image]
        if parts and parts[0] in _TRAINING_NAMES:
            names = [str(Path(training, *parts[1:])) for training in (parts[0], *_TRAINING_NAMES)]
        for folder in self.image_folders:
            for name in names:
                if (folder / name).is_file():
                    return folder / name
        looked = " and ".join(map(str, self.image_folders)) or f"{' or '.join(IMAGE_FOLDERS)}, which do not exist,"
        raise UserError(
            f"image {image} is missing: not in {looked} for {self.recordings_folder}; copy the image set there"
        )


def read_stored(folder: Path, split: str) -> Recordings:
    """One split of a subject's folder in the store; its data stay on disk until they are asked for.

    Raises:
        UserError: it is missing or damaged.
    """
    header = store.read_header(folder)
    data = store.open_array(folder, header, split)
    about = header.splits[split]
    return Recordings(
        data, about.images, about.concepts, header.channels, np.array(header.times), header.modality, about.sessions
    )


def read_recordings(path: Path, finite: bool = True) -> Recordings:
    """One train.pt or test.pt.

    Args:
        finite: refuse samples that are not.

    Raises:
        UserError: it is missing, damaged, or its parts do not fit together.
    """
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
    concepts = (
        [concept_of(image) for image in images] if names is None else _per_condition(path, "text", names, conditions)
    )
    try:
        channel_names = [str(name) for name in content.get("ch_names", [])] or [
            f"channel {i + 1}" for i in range(channels)
        ]
        told = np.asarray(content["times"], dtype=np.float64) if "times" in content else None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: 'ch_names' or 'times' is no list ({error}); make the file again") from error
    if len(channel_names) != channels:
        raise UserError(f"{path}: 'ch_names' has {len(channel_names)} names for {channels} channels")
    modality = "MEG" if channels == things_meg.SENSORS else "EEG"
    known = np.arange(time) / (things_meg.SAMPLING_RATE if (modality, time) == ("MEG", things_meg.SAMPLES) else 1)
    times = known if told is None else told
    if times.ndim != 1 or len(times) < time:
        raise UserError(f"{path}: 'times' has shape {times.shape} for {time} time points")
    # The published files keep the times of the whole epoch beside its last second.
    sessions = _sessions(content.get("session"), data.shape[:2])
    recordings = Recordings(data, images, concepts, channel_names, times[-time:], modality, sessions)
    if finite and (where := first_bad_condition(data)) is not None:
        raise UserError(f"{path}: condition {where} ({images[where]}) has NaN or infinite samples; make the file again")
    return recordings


def write_recordings(path: Path, recordings: Recordings, labels: np.ndarray, sessions: np.ndarray | None) -> None:
    """Write one file as the published ones are: numpy arrays in a torch archive, float16.

    Args:
        labels: (conditions,) concept number of each condition.
        sessions: (conditions, repetitions) session number of each repetition, from 0; the file has none where it is None.
    """
    repetitions = recordings.data.shape[1]
    repeat = lambda values: np.repeat(np.asarray(values)[:, None], repetitions, axis=1)  # noqa: E731
    content = {
        "eeg": np.asarray(recordings.data).astype(np.float16, copy=False),  # a memory map would be pickled as one
        "label": repeat(labels),
        "img": repeat(recordings.images),
        "text": repeat(recordings.concepts),
        "ch_names": list(recordings.channels),
        "times": recordings.times,
    }
    if sessions is not None:
        content["session"] = sessions
    try:
        torch.save(content, path, pickle_protocol=5)
    except RuntimeError as error:  # PyTorch's word for a write that failed
        raise OSError("the disk is full, or fails") from error


def concept_of(image: str) -> str:
    """The concept an image path names: training_images/00001_aardvark/aardvark_01b.jpg shows an aardvark."""
    folder = Path(image).parent.name
    number, _, name = folder.partition("_")
    return name if number.isdigit() and name else Path(image).stem.rsplit("_", 1)[0]


def _sessions(values: object, trials: tuple[int, int]) -> list[list[int]] | None:
    """Session numbers from 1 (the published ones start at 0), or None: nothing but provenance depends on them."""
    values = np.asarray(values)
    if values.dtype.kind not in "iuf" or values.shape != trials or not np.isin(values, np.arange(100)).all():
        return None
    return (values.astype(int) + (values.min() == 0)).tolist()


def _per_condition(path: Path, key: str, values: object, conditions: int) -> list[str]:
    values = np.asarray(values)
    if values.dtype.kind != "U" or values.ndim not in (1, 2) or len(values) != conditions:
        raise UserError(
            f"{path}: {key!r} has shape {values.shape}; it must name something for each of {conditions} conditions"
        )
    return [str(value) for value in (values[:, 0] if values.ndim == 2 else values)]
