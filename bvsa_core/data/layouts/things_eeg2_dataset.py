"""Output of the package things_eeg2_dataset, by session: processed/sub-01/preprocessed_eeg_training_sub-01.npy."""

from pathlib import Path

import numpy as np

from bvsa_core.data.layouts import stimuli
from bvsa_core.data.layouts.files import blocks_of, check_array, existing, open_file, read_description
from bvsa_core.data.layouts.source import Epochs, ReadContext, SubjectSource
from bvsa_core.errors import UserError

LAYOUT = "things_eeg2_dataset"
MODALITIES = ("EEG",)
LOOKS_LIKE = (
    "processed/sub-XX/preprocessed_eeg_training_sub-XX.npy with img_conditions_training_sub-XX.npy and meta_sub-XX.json"
)
_PARTS = {"train": "training", "test": "test"}
_SHAPE = "(sessions, conditions, repetitions, channels, time)"
_PROCESSING = [
    "Low-pass, epochs and baseline by the package things_eeg2_dataset.",
    "MVNN of every session with the covariance of its training data.",
]


def find(folder: Path) -> list[SubjectSource]:
    """Return the subjects of this layout in a folder."""
    roots = (folder, folder / "processed")
    places = {path.parent for root in roots for path in root.glob("sub-*/preprocessed_eeg_*_sub-*.npy")}
    arrays = [f"{kind}_{part}" for part in _PARTS.values() for kind in ("preprocessed_eeg", "img_conditions")]
    sources = []
    for place in sorted(places):
        names = [f"meta_{place.name}.json", *(f"{array}_{place.name}.npy" for array in arrays)]
        files = sorted(existing(place / name for name in names))
        sources.append(SubjectSource(LAYOUT, place.name, place.parent, files))
    return sources


def read(source: SubjectSource, split: str, context: ReadContext) -> Epochs:
    """Open one split of a subject."""
    meta = read_description(source.file(f"meta_{source.subject}.json"))
    path = source.file(f"preprocessed_eeg_{_PARTS[split]}_{source.subject}.npy")
    data = check_array(path, open_file(path), _SHAPE)
    order = source.file(f"img_conditions_{_PARTS[split]}_{source.subject}.npy")
    numbers = open_file(order)
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind not in "iu" or numbers.shape != data.shape[:2]:
        kind = f"{numbers.dtype} {numbers.shape}" if isinstance(numbers, np.ndarray) else type(numbers).__name__
        sides = f"{data.shape[:2]} sessions x conditions"
        raise UserError(f"{order}: {kind} where {path.name} has {sides}; fetch both again")
    images, concepts = stimuli.conditions(source, context.options, split)
    places = _places(order, np.asarray(numbers), images)
    sessions = np.repeat(places[..., 0] + 1, data.shape[2], axis=1)
    shape = (len(images), sessions.shape[1], *data.shape[3:])
    rows = lambda part: data[places[part][..., 0], places[part][..., 1]].reshape(-1, *shape[1:])  # noqa: E731
    blocks, times = blocks_of(rows, shape, data.itemsize, data), meta["times"]
    channels, seen = meta["ch_names"], sessions.tolist()
    return Epochs(path, shape, blocks, images, concepts, channels, times, "whitened", _PROCESSING, seen)


def _places(path: Path, numbers: np.ndarray, images: list[str]) -> np.ndarray:
    """Return session and position in it of every presentation, (images, presentations, 2), in order of sessions."""
    if numbers.min() < 1 or numbers.max() > len(images):
        span = f"image numbers {numbers.min()} to {numbers.max()}"
        raise UserError(f"{path}: {span}, and there are images 1 to {len(images)}; fetch it and the images again")
    for session, part in enumerate(numbers, start=1):
        values, counts = np.unique(part, return_counts=True)
        if counts.max() > 1:
            raise UserError(f"{path}: image {values[counts.argmax()]} is in session {session} twice; fetch it again")
    counts = np.bincount(numbers.ravel(), minlength=len(images) + 1)[1:]
    if counts.min() != counts.max():
        fewest = int(counts.argmin())
        which = f"image {fewest + 1} ({images[fewest]}) is in {counts.min()} session(s) and others in {counts.max()}"
        raise UserError(f"{path}: {which}; a session is missing, or the images given are not those shown")
    order = np.argsort(numbers.ravel(), kind="stable")
    return np.stack(np.unravel_index(order, numbers.shape), axis=-1).reshape(len(images), -1, 2)
