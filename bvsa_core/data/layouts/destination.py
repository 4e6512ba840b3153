"""The folder that recordings are converted or exported into: outside their own, and of one data set."""

import json
from collections.abc import Iterable
from pathlib import Path

from bvsa_core.data.dataset import DESCRIPTION, SYNTHETIC, read_description
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import lock, write_atomically


def refuse_overlap(source: Path, inputs: Iterable[Path], target: Path) -> None:
    """Refuse to write into a folder that is inside the source, or has any of the inputs in it; links are followed.

    Args:
        source: folder that the user gave.
        inputs: files or folders that are read, most likely in it.
        target: folder to write; it may be missing.

    Raises:
        UserError: they overlap.
    """
    resolved = target.resolve()
    places = [resolved, *(child.resolve() for child in target.glob("sub-*"))]
    if any(place.is_relative_to(source.resolve()) for place in places):
        raise UserError(f"{target}: is in {source}, whose recordings are only read; give a folder outside")
    if inside := next((path for path in inputs if path.resolve().is_relative_to(resolved)), None):
        raise UserError(f"{target}: holds the recordings to be read ({inside}); give another folder")


def refuse_mixture(target: Path, name: str | None, modality: str) -> None:
    """Refuse a folder that holds recordings of another modality or data set.

    Args:
        target: folder to write; it may be missing.
        name: of the data set; None takes any that is not synthetic.
        modality: EEG or MEG.

    Raises:
        UserError: it does.
    """
    if not any(target.glob("sub-*")):  # an earlier conversion may have left nothing but dataset.json
        return
    there = read_description(target)
    if (holds := there.get("modality", modality)) != modality:
        raise UserError(f"{target}: holds {holds} recordings; give {modality} ones another folder")
    known = there.get("name", target.resolve().name)
    if name != known and (name is not None or known == SYNTHETIC):
        raise UserError(f"{target}: holds the data set {known}; give {name or 'recorded data'} another folder")


def write_description(target: Path, name: str, modality: str) -> None:
    """Write dataset.json, unless recordings that it describes are there."""
    path = target / DESCRIPTION
    if not path.exists() or not any(target.glob("sub-*")):
        with lock(target, DESCRIPTION, blocking=True):
            write_atomically(path, json.dumps({"name": name, "modality": modality}, indent=1).encode() + b"\n")
