"""What `bvsa data check` finds: everything that is missing or wrong, not only the first of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from bvsa_core.data.layout import Dataset
from bvsa_core.data.store import SPLITS
from bvsa_core.errors import UserError


@dataclass
class Report:
    """Lines about what is there, and one for each problem."""

    found: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_dataset(folder: Path, progress: Callable[[str, int, int], None] = lambda *_: None) -> Report:
    """Read every recordings file and open every picture that one of them names.

    Raises:
        UserError: the folder is no data set at all.
    """
    dataset = Dataset(folder)
    report = Report()
    pictures: dict[str, None] = {}
    concepts: dict[str, set[str]] = {split: set() for split in SPLITS}
    for done, subject in enumerate(dataset.subjects):
        for split in SPLITS:
            progress("recordings", done, len(dataset.subjects))
            try:
                recordings = dataset.load(subject, split)
            except UserError as error:
                report.problems.append(str(error))
                continue
            conditions, repetitions, channels, samples = recordings.data.shape
            shape = f"{conditions} conditions x {repetitions} repetitions x {channels} channels x {samples} samples"
            report.found.append(f"{dataset.path(subject, split)}: {shape}, {recordings.times[0]:g} to {recordings.times[-1]:g} s")
            pictures |= dict.fromkeys(recordings.images)
            concepts[split].update(recordings.concepts)
    progress("recordings", len(dataset.subjects), len(dataset.subjects))
    for done, picture in enumerate(pictures):
        progress("pictures", done, len(pictures))
        try:
            check_picture(dataset.image_path(picture))
        except UserError as error:
            report.problems.append(str(error))
    progress("pictures", len(pictures), len(pictures))
    report.found.append(f"{len(pictures)} pictures named")
    if shared := concepts["train"] & concepts["test"]:
        some = ", ".join(sorted(shared)[:5])
        report.problems.append(f"{folder}: {len(shared)} test concept(s) are trained on too ({some}); retrieval is not zero-shot")
    return report


def check_picture(path: Path) -> None:
    """Decode a picture.

    Raises:
        UserError: it is damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(f"picture {path} cannot be read ({error}); fetch or make it again") from error
