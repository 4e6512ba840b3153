"""Which image each condition is: number i of the recordings is image i of image_metadata.npy or of the sorted image folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bvsa_core.data.dataset import concept_of
from bvsa_core.data.layouts.source import ConversionOptions, SubjectSource
from bvsa_core.errors import UserError
from bvsa_core.io.safe_readers import read_arrays

METADATA = "image_metadata.npy"
FOLDERS = {"train": ("training_images", "train_images"), "test": ("test_images",)}
_BESIDE = ("", "Image_set_Resize", "Image_set", "image_set", "images_set", "images", "stimuli")
_SUFFIXES = (".jpg", ".jpeg", ".png")


def conditions(
    source: SubjectSource, options: ConversionOptions, split: str, expected: int | None = None
) -> tuple[list[str], list[str]]:
    """Image paths, such as "training_images/00001_aardvark/aardvark_01b.jpg", and concepts of a split in the order of their numbers.

    Args:
        expected: how many the recordings have, where they tell.

    Raises:
        UserError: no images are found, they are not as many as expected, or their list is damaged.
    """
    place = _find(source, options)
    names = _of_metadata(place, split) if place.is_file() else _of_folder(place, split)
    images = [f"{FOLDERS[split][0]}/{folder}/{file}" for folder, file in names]
    if len(set(images)) != len(images):
        twice = next(image for image in images if images.count(image) > 1)
        raise UserError(f"{place}: names {twice} twice; fetch it again")
    if expected is not None and len(images) != expected:
        raise UserError(
            f"{source.root}: {source.subject} has {expected} {split} conditions and {place} {len(images)} {split} images; "
            f"give the complete image set or {METADATA} by --images"
        )
    return images, [concept_of(image) for image in images]


def canonical(image: str, split: str) -> str:
    """An image's path as the store spells it: the last two parts, below the published name of the split's folder."""
    return "/".join((FOLDERS[split][0], *Path(image).parts[-2:]))


def texts(value: Any) -> list[str] | None:
    """The texts in a list, or in an array of one axis; None where it is anything else."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    return (
        [str(item) for item in value]
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
        else None
    )


def _find(source: SubjectSource, options: ConversionOptions) -> Path:
    """image_metadata.npy, or the folder that holds training_images and test_images."""
    if options.images is not None:
        if not options.images.exists():
            raise UserError(f"--images {options.images}: no such file or folder")
        if found := next(_candidates([options.images]), None):
            return found
        raise UserError(
            f"--images {options.images}: neither {METADATA} nor a folder with training_images and test_images"
        )
    root = source.root.resolve()
    bases = [base / name for base in (root, root.parent) for name in _BESIDE]
    if found := next(_candidates(bases), None):
        return found
    raise UserError(
        f"{source.root}: which images were shown is not told; put {METADATA} or the image set (training_images, test_images) "
        "there or give it by --images"
    )


def _candidates(places: list[Path]) -> Iterator[Path]:
    yield from (place for place in places if place.is_file())
    yield from (place / METADATA for place in places if (place / METADATA).is_file())
    yield from (
        place for place in places if all(any((place / name).is_dir() for name in names) for names in FOLDERS.values())
    )


def _of_metadata(path: Path, split: str) -> list[tuple[str, str]]:
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


def _of_folder(place: Path, split: str) -> list[tuple[str, str]]:
    folder = next(place / name for name in FOLDERS[split] if (place / name).is_dir())
    concepts = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    listed = ((path, sorted(file.name for file in path.iterdir())) for path in concepts)
    return [
        (path.name, file)
        for path, files in listed
        for file in files
        if Path(file).suffix.lower() in _SUFFIXES and file[0] != "."
    ]
