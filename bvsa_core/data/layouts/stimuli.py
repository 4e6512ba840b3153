"""The image of each condition: number i is image i of image_metadata.npy, or of the sorted image folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bvsa_core.data.dataset import concept_of
from bvsa_core.data.layouts.files import repeated
from bvsa_core.data.layouts.source import ConversionOptions, SubjectSource
from bvsa_core.errors import UserError
from bvsa_core.io.image_archive import SUFFIXES, archived_images, hidden, open_archive
from bvsa_core.io.safe_readers import read_arrays

METADATA = "image_metadata.npy"
FOLDERS = {"train": ("training_images", "train_images"), "test": ("test_images",)}
_BESIDE = ("", "Image_set_Resize", "Image_set", "image_set", "images_set", "images", "stimuli")


def conditions(
    source: SubjectSource, options: ConversionOptions, split: str, expected: int | None = None
) -> tuple[list[str], list[str]]:
    """Return image paths and concepts of a split in the order of their numbers.

    A path is like "training_images/00001_aardvark/aardvark_01b.jpg". `expected` is the number of conditions in the
    recordings, if known.
    """
    place = _find(source, options)
    names = _of_metadata(place, split) if place.suffix == ".npy" else _of_image_set(place, split)
    images = [f"{FOLDERS[split][0]}/{folder}/{file}" for folder, file in names]
    if twice := repeated(images):
        raise UserError(f"{place}: names {twice[0]} twice; fetch it again")
    if expected is not None and len(images) != expected:
        counts = f"{source.subject} has {expected} {split} conditions and {place} {len(images)} {split} images"
        raise UserError(f"{source.root}: {counts}; give the complete image set or {METADATA} by --images")
    return images, [concept_of(image) for image in images]


def canonical(image: str, split: str) -> str:
    """Return an image's path as the store has it: its last two parts, below the published name of its folder."""
    return "/".join((FOLDERS[split][0], *Path(image).parts[-2:]))


def texts(value: Any) -> list[str] | None:
    """Return the texts in a list, or in an array of one axis; None if it is anything else."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return [str(item) for item in value]
    return None


def _find(source: SubjectSource, options: ConversionOptions) -> Path:
    """Return the path of image_metadata.npy, or of what holds training_images and test_images: a folder or zip file."""
    if (given := options.images) is not None:
        if not given.exists():
            raise UserError(f"--images {given}: no such file or folder")
        if found := next(_candidates([given]), None):
            return found
        neither = f"neither {METADATA} nor a folder or zip file with training_images and test_images"
        raise UserError(f"--images {given}: {neither}")
    root = source.root.resolve()
    if found := next(_candidates([base / name for base in (root, root.parent) for name in _BESIDE]), None):
        return found
    needed = f"{METADATA} or the image set (training_images, test_images)"
    raise UserError(f"{source.root}: the images shown are unknown; put {needed} there or give it by --images")


def _candidates(places: list[Path]) -> Iterator[Path]:
    yield from (place for place in places if place.is_file() and place.suffix in (".npy", ".zip"))
    yield from (place / METADATA for place in places if (place / METADATA).is_file())
    for place in places:
        if all(_of_split(place, split) for split in FOLDERS):
            yield place


def _of_split(place: Path, split: str) -> Path | None:
    """Return the folder or zip file of a split's images in a folder."""
    folders = [place / name for name in FOLDERS[split]]
    zips = [place / f"{name}.zip" for name in FOLDERS[split]]
    return next((path for path in folders if path.is_dir()), next((path for path in zips if path.is_file()), None))


def _of_metadata(path: Path, split: str) -> list[tuple[str, str]]:
    """Read folder and file name of every image from image_metadata.npy."""
    content = read_arrays(path)
    keys = f"{split}_img_concepts", f"{split}_img_files"
    if not isinstance(content, dict) or not set(keys) <= content.keys():
        raise UserError(f"{path}: not the {METADATA} of THINGS-EEG2; it must hold {' and '.join(keys)}")
    folders, files = (texts(content[key]) for key in keys)
    if folders is None or files is None or len(folders) != len(files):
        raise UserError(f"{path}: {keys[0]} and {keys[1]} must be equally many names; fetch it again")
    names = list(zip(folders, files))
    for part in (part for name in names for part in name):
        if part in ("", ".", "..") or "/" in part or "\\" in part:
            raise UserError(f"{path}: {part!r} is not the name of an image or of its folder; fetch it again")
    return names


def _of_image_set(place: Path, split: str) -> list[tuple[str, str]]:
    """List folder and file name of every image, sorted."""
    if place.is_file():
        return sorted((path[-2], path[-1]) for path in _in_zip(place) if len(path) > 2 and path[-3] in FOLDERS[split])
    found = _of_split(place, split)
    assert found is not None  # see _candidates
    if found.is_file():
        return sorted((path[-2], path[-1]) for path in _in_zip(found) if len(path) > 1)
    files = sorted((path.parent.name, path.name) for path in found.glob("*/*") if path.suffix.lower() in SUFFIXES)
    return [names for names in files if not any(map(hidden, names))]


def _in_zip(path: Path) -> list[tuple[str, ...]]:
    """Return the parts of the path of every image in a zip file."""
    with open_archive(path) as archive:
        images = list(archived_images(archive))
    if problem := next((image.problem for image in images if image.problem), None):
        raise UserError(f"{path}: {problem}")
    return [image.parts for image in images]
