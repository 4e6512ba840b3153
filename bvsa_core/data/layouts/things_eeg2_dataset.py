"""What the package things_eeg2_dataset keeps: processed/sub-01/preprocessed_eeg_training_sub-01.npy, session by session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bvsa_core.data.layouts import conversion, stimuli
from bvsa_core.data.layouts.conversion import Epochs
from bvsa_core.data.layouts.source import ConversionOptions, SubjectSource
from bvsa_core.data.store import SubjectWriter
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress

LAYOUT = "things_eeg2_dataset"
MODALITIES = ("EEG",)
LOOKS_LIKE = (
    "processed/sub-XX/preprocessed_eeg_training_sub-XX.npy with img_conditions_training_sub-XX.npy and meta_sub-XX.json"
)
_PARTS = {"train": "training", "test": "test"}
_SHAPE = "(sessions, conditions, repetitions, channels, time)"


def find(folder: Path) -> list[SubjectSource]:
    """Its subjects; none where this is another layout."""
    places = {
        path.parent
        for root in (folder, folder / "processed")
        for path in root.glob("sub-*/preprocessed_eeg_*_sub-*.npy")
    }
    return [
        SubjectSource(LAYOUT, place.name, place.parent, sorted(_wanted(place)), _read, ("sampling_rate", "whitening"))
        for place in sorted(places)
    ]


def _wanted(place: Path) -> list[Path]:
    kinds = [f"{kind}_{part}" for part in _PARTS.values() for kind in ("preprocessed_eeg", "img_conditions")]
    names = [f"meta_{place.name}.json", *(f"{kind}_{place.name}.npy" for kind in kinds)]
    return [place / name for name in names if (place / name).exists()]


def _read(source: SubjectSource, writer: SubjectWriter, options: ConversionOptions, progress: Progress) -> None:
    meta = conversion.read_json(conversion.file_of(source, f"meta_{source.subject}.json"))
    mvnn = "MVNN of every session with the covariance of its training data."
    processing = ["Low-pass, epochs and baseline by the package things_eeg2_dataset.", mvnn]
    conversion.convert(
        source, writer, options, progress, lambda split: _epochs(source, options, split, meta), "whitened", processing
    )


def _epochs(source: SubjectSource, options: ConversionOptions, split: str, meta: dict[str, Any]) -> Epochs:
    path = conversion.file_of(source, f"preprocessed_eeg_{_PARTS[split]}_{source.subject}.npy")
    data = conversion.check_array(path, conversion.open_file(path), _SHAPE)
    where = conversion.file_of(source, f"img_conditions_{_PARTS[split]}_{source.subject}.npy")
    numbers = conversion.open_file(where)
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind not in "iu" or numbers.shape != data.shape[:2]:
        told = f"{numbers.dtype} {numbers.shape}" if isinstance(numbers, np.ndarray) else type(numbers).__name__
        raise UserError(
            f"{where}: {told} where {path.name} has {data.shape[:2]} sessions x conditions; fetch both again"
        )
    images, concepts = stimuli.conditions(source, options, split)
    places = _places(where, np.asarray(numbers), images)
    sessions = np.repeat(places[..., 0] + 1, data.shape[2], axis=1)
    shape = (len(images), sessions.shape[1], *data.shape[3:])
    rows = lambda part: data[places[part][..., 0], places[part][..., 1]].reshape(-1, *shape[1:])  # noqa: E731
    names, times = meta["ch_names"], meta["times"]
    return Epochs(path, shape, data.dtype, rows, images, concepts, names, times, sessions.tolist(), behind=data)


def _places(where: Path, numbers: np.ndarray, images: list[str]) -> np.ndarray:
    """(images, times shown, 2): in which session and at which place of it each image's recordings are, in order of sessions.

    Raises:
        UserError: a number is no image's, appears twice in a session, or an image is in fewer sessions than another.
    """
    if numbers.min() < 1 or numbers.max() > len(images):
        raise UserError(
            f"{where}: image numbers {numbers.min()} to {numbers.max()}, and there are images 1 to {len(images)}"
        )
    for session, part in enumerate(numbers):
        values, counts = np.unique(part, return_counts=True)
        if counts.max() > 1:
            raise UserError(
                f"{where}: image {values[counts.argmax()]} is in session {session + 1} twice; fetch it again"
            )
    counts = np.bincount(numbers.ravel(), minlength=len(images) + 1)[1:]
    if counts.min() != counts.max():
        fewest = int(counts.argmin())
        told = f"image {fewest + 1} ({images[fewest]}) is in {counts.min()} session(s) and others in {counts.max()}"
        raise UserError(f"{where}: {told}; a session is missing, or the images given are not those shown")
    order = np.argsort(numbers.ravel(), kind="stable")
    return np.stack(np.unravel_index(order, numbers.shape), axis=-1).reshape(len(images), -1, 2)
