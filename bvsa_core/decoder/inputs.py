"""Recordings and images in the forms that people have them, by subject and by name.

Recordings of a subject are an array (N, channels, time), MNE epochs or a list of sessions of them, a
`torch.utils.data.Dataset` of (recording, image id), or `Recordings`; those of all subjects are a dict, a list or a
`bvsa_core.Dataset`. Images are a sequence, one for each recording, or a folder or mapping that has them by id.
"""

from __future__ import annotations

import functools
import hashlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bvsa_core.data.dataset import Dataset, Recordings, concept_of
from bvsa_core.data.from_arrays import from_arrays, from_torch, read_pairs
from bvsa_core.data.from_mne import from_mne, loaded, subject_of
from bvsa_core.data.store import first_bad_condition
from bvsa_core.errors import UserError, first_few
from bvsa_core.io.atomic import write_atomically
from bvsa_core.io.image_file import SUFFIXES

Source: TypeAlias = Path | int  # a file, or a row of given features


@dataclass
class Images:
    """Images by name: files, or rows of features.

    Args:
        rows: number of rows of the features; 0 if images are files.
        cache: folder for images that are given as arrays.
    """

    rows: int
    cache: Path
    sources: dict[str, Source] = field(default_factory=dict)
    pixels: set[str] = field(default_factory=set)  # names of those given as arrays, which say no concept

    def add(self, image: Any) -> str:
        """Add an image, and return its name: a path, pixels or a row of features."""
        if self.rows:
            return self._add_row(image)
        if isinstance(image, (str, Path)):
            return self._keep(str(image), Path(image))
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or 3 not in (pixels.shape[0], pixels.shape[2]):
            given = f"{type(image).__name__} {image}" if pixels.ndim == 0 else f"{pixels.dtype} of shape {pixels.shape}"
            raise UserError(f"images: {given}; give paths, or uint8 arrays (height, width, 3) or (3, height, width)")
        pixels = pixels if pixels.shape[2] == 3 else pixels.transpose(1, 2, 0)
        name = f"{hashlib.sha256(f'{pixels.shape}'.encode() + pixels.tobytes()).hexdigest()[:16]}.png"
        if not (self.cache / name).exists():
            content = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(pixels)).save(content, "PNG")
            write_atomically(self.cache / name, content.getvalue())
        self.pixels.add(name)
        return self._keep(name, self.cache / name)

    def find(self, identifier: str, images: str | Path | dict[str, Any] | None) -> str:
        """Add the image of an id, and return its name; without `images`, the id is a path or a row."""
        if isinstance(images, (str, Path)):
            return self._keep(identifier, Path(images) / identifier)
        if images is None:
            return self.add(int(identifier) if self.rows and identifier.isdigit() else identifier)
        return self.add(_of(images, identifier, "images"))

    def _add_row(self, image: Any) -> str:
        number = image.item() if hasattr(image, "item") else image
        if not isinstance(number, int) or not 0 <= number < self.rows:
            rows = f"target is an array of features, so images are its rows, 0 to {self.rows - 1}"
            raise UserError(f"images: {first_few([str(image)])!r}; {rows}")
        self.sources[str(number)] = number
        return str(number)

    def _keep(self, name: str, path: Path) -> str:
        if self.rows:
            raise UserError(f"images: {name!r}; target is an array of features, so images are its rows, by number")
        if self.sources.get(name, path) != path:
            raise UserError(f"images: {self.sources[name]} and {path} have one id; give paths in place of ids")
        if name not in self.sources and not path.is_file():
            raise UserError(f"images: no file {path}; give paths, or a folder or mapping with an image for each id")
        self.sources[name] = path
        return name


def gather(
    recordings: Any, images: Any, concepts: Any, found: Images, split: str, subjects: Sequence[str]
) -> dict[str, Recordings]:
    """Return the recordings of every subject, with the names under which `found` has their images.

    Args:
        recordings: see the module.
        images: a sequence with an image for each recording; a folder, or a mapping from ids, if recordings have ids;
            default: the ids are paths or rows of features. A dict by subject if each has its own.
        concepts: what images show, for each recording or by the name of the image; default: the name in its path.
        found: gets the images.
        split: train or test, of a data set.
        subjects: those of a data set to take.
    """
    if isinstance(recordings, Dataset):
        parts: dict[str, Any] = {name: recordings.load(name, split) for name in subjects}
        if images is None and not found.rows:
            for part in parts.values():
                found.sources |= {name: recordings.image_path(name) for name in part.images}
            return parts
    else:
        parts = by_subject(recordings, subjects[0])
    own = isinstance(images, Mapping) and images.keys() == parts.keys()
    return {
        name: _finite(_of_subject(part, images[name] if own else images, concepts, found))
        for name, part in parts.items()
    }


def by_subject(recordings: Any, subject: str) -> dict[str, Any]:
    """Return the recordings of every subject by its name; a list is of sub-01, sub-02 and so on.

    Epochs in a list are joined by subject_info["his_id"] of their info, if all have it.
    """
    if isinstance(recordings, Mapping):
        parts = dict(recordings)
    elif _is_sessions(recordings) and all(names := [subject_of(session) for session in recordings]):
        parts = {name: [] for name in names}
        for name, session in zip(names, recordings):
            parts[name].append(session)
    elif isinstance(recordings, (list, tuple)) and not _is_trials(recordings):
        parts = {f"sub-{number:02d}": part for number, part in enumerate(recordings, start=1)}
    else:
        parts = {subject: recordings}
    if not parts:
        raise UserError("recordings: there are none")
    return {str(name): part for name, part in parts.items()}


def unlabelled(recordings: Any) -> Recordings:
    """Return the recordings of one subject without images: one condition for each, named by its number."""
    if isinstance(recordings, torch.utils.data.Dataset):
        recordings = [recording for recording, _ in read_pairs(recordings)]  # type: ignore[arg-type]
    if _is_epochs(recordings):
        sessions = recordings if _is_sessions(recordings) else [recordings]
        recordings = [*map(loaded, sessions)]
    count = sum(map(len, recordings)) if _is_epochs(recordings) else len(recordings)
    return _finite(_with_images(recordings, [str(number) for number in range(count)], None))


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="bvsa_decoder_")


def temporary_folder() -> Path:
    """Return a folder of this process, removed when it ends: images that are given as arrays, and features."""
    (Path(_temporary().name) / "images").mkdir(exist_ok=True)
    return Path(_temporary().name)


def gallery_images(images: Any, rows: int) -> list[Any]:
    """Return the images of a gallery."""
    if images is None:
        if not rows:
            raise UserError("images: give the images to search, a list or a folder")
        return list(range(rows))
    if isinstance(images, (str, Path)):
        files = [path for path in sorted(Path(images).rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
        if not files:
            raise UserError(f"images: no image in {images} ({', '.join(SUFFIXES)}); name their folder, or give a list")
        return files
    return list(images.values()) if isinstance(images, dict) else list(images)


def _finite(recordings: Recordings) -> Recordings:
    """Return recordings without NaN and infinite samples."""
    if (where := first_bad_condition(recordings.data)) is not None:
        condition = f"condition {where} ({recordings.images[where]})"
        raise UserError(f"recordings: {condition} has NaN or infinite samples; mend it or leave it out")
    return recordings


def _of_subject(part: Any, images: Any, concepts: Any, found: Images) -> Recordings:
    has_ids = isinstance(part, (Recordings, torch.utils.data.Dataset)) or _is_epochs(part)
    one_each = images is not None and not isinstance(images, (str, Path, Mapping))
    if isinstance(part, torch.utils.data.Dataset):
        return _by_id(from_torch(part), images, concepts, found)  # type: ignore[arg-type]
    if one_each or (images is None and not has_ids and found.rows):
        listed = range(len(part)) if images is None else images
        names = [found.add(image) for image in listed]
        given = [_of(concepts, name, "concepts") for name in names] if isinstance(concepts, Mapping) else concepts
        return _with_images(part, names, given)
    if not has_ids:
        raise UserError("images: arrays of recordings need one for each; give a list of paths, or uint8 arrays")
    if isinstance(part, Recordings):
        return _by_id(part, images, concepts, found, part.concepts)
    return _by_id(from_mne(part), images, concepts, found)


def _by_id(
    part: Recordings, images: Any, concepts: Any, found: Images, own_concepts: list[str] | None = None
) -> Recordings:
    """Return recordings whose image names are ids with the names of the images themselves.

    What images show is told by `concepts`, else by `own_concepts`, else by their paths.
    """
    if not isinstance(images, (str, Path, type(None))):
        pairs = images.items() if isinstance(images, Mapping) else enumerate(images)
        images = {str(identifier): image for identifier, image in pairs}
    names = [found.find(identifier, images) for identifier in part.images]
    if isinstance(concepts, Mapping):
        named = [_of(concepts, name, "concepts") for name in names]
    elif concepts is not None:
        raise UserError("concepts: recordings have ids of images; give a mapping from the names of images")
    else:
        named = [*map(concept_of, names)] if own_concepts is None else own_concepts
    return replace(part, images=names, concepts=named)


def _with_images(part: Any, names: list[str], concepts: Sequence[str] | None) -> Recordings:
    """Return the recordings of one subject that show images of these names, one each."""
    if isinstance(part, Recordings):
        if len(names) != len(part):
            raise UserError(f"images: {len(names)} for {len(part)} conditions; give one each")
        return replace(part, images=names, concepts=part.concepts if concepts is None else list(concepts))
    if _is_epochs(part):
        return from_mne(part, names, concepts)
    if isinstance(part, Tensor):
        part = part.detach().cpu().numpy()
    array = np.asarray(part)
    if array.dtype.kind != "f" or array.ndim != 3:
        given = f"{array.dtype} of shape {array.shape}" if array.dtype != object else type(part).__name__
        kinds = "floats (N, channels, time), mne.Epochs, Recordings, or a data set of (recording, image id)"
        raise UserError(f"recordings: {given}; give {kinds}")
    return from_arrays(array, names, concepts)


def _of(values: Mapping[str, Any], name: str, what: str) -> Any:
    """Return the value of a name; `what` begins the error message."""
    if name not in values:
        raise UserError(f"{what}: none for {name!r}; there are {first_few(list(values)) or 'none'}")
    return values[name]


def _is_trials(recordings: Sequence) -> bool:
    """Return whether a list has single trials (channels, time)."""
    return bool(recordings) and isinstance(recordings[0], (np.ndarray, Tensor)) and recordings[0].ndim == 2


def _is_sessions(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and bool(part) and _is_epochs(part[0])


def _is_epochs(part: Any) -> bool:
    """Return whether recordings are MNE epochs, or a list of sessions of them; MNE need not be installed."""
    return _is_sessions(part) if isinstance(part, (list, tuple)) else hasattr(part, "event_id")
