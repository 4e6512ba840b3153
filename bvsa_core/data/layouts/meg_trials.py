"""What each epoch of THINGS-MEG shows, from the tables that come with the recordings or with the images.

The attributes of the trials (sourcedata/sample_attributes_P1.csv of ds004212, which its epoch files carry as metadata) tell
everything. Without them there are the tables of the THINGS images, image_paths.csv and image_concept_index.csv, whose line n
is the image of event n. Where there are several, they have to agree.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bvsa_core.data import things_meg
from bvsa_core.errors import UserError

CATCH = 999999  # the event of trials that show no object, at which people press a button
FOLDERS = {"train": "training_images", "test": "test_images"}
_SPLIT_OF = {"exp": "train", "test": "test", "catch": None}  # by trial_type
_NEEDED = ("trial_type", "things_image_nr", "things_category_nr", "image_path", "session_nr")
_NAMED = 5  # images in a message


@dataclass(frozen=True)
class Trial:
    """One epoch that shows an object."""

    number: int  # of the image in THINGS, from 1; the epoch's event
    concept: int  # number of the concept in THINGS, from 1
    file: str  # name of the image, such as aardvark_01b.jpg
    split: str  # train or test
    session: int | None

    @property
    def name(self) -> str:
        """What they show, as THINGS calls it: the image's name without its number."""
        return self.file.rpartition("_")[0]

    @property
    def image(self) -> str:
        """The image's path, as UBP names it: by the concept's number in THINGS."""
        return f"{FOLDERS[self.split]}/{self.concept:05d}_{self.name}/{self.file}"


@dataclass(frozen=True)
class Conditions:
    """The images of a split, in the order of their folder, and the epochs that show them."""

    images: list[str]
    concepts: list[str]
    epochs: np.ndarray  # (conditions, repetitions) int64, into the file, in the order of presentation
    sessions: list[list[int]] | None  # (conditions, repetitions) from 1


def from_attributes(rows: Iterable[Mapping[str, Any]], events: np.ndarray, where: object) -> list[Trial | None]:
    """(epochs,) trials by their attributes, None where no object is shown.

    Args:
        rows: one of the table for each epoch, in the order of the epochs.
        events: (epochs,) the epochs' events, which have to be the numbers of the images.
        where: what to call the table in an error.

    Raises:
        UserError: a column or row is missing or makes no sense, or the table contradicts the events.
    """
    rows = list(rows)
    if len(rows) != len(events):
        raise UserError(
            f"{where}: {len(rows)} trials where there are {len(events)} epochs; fetch table and recordings of one version"
        )
    if missing := [name for name in _NEEDED if rows and name not in rows[0]]:
        raise UserError(f"{where}: no column {', '.join(missing)}; it must be a sample_attributes_P*.csv of ds004212")
    trials: list[Trial | None] = []
    for line, (row, event) in enumerate(zip(rows, events), start=1):
        kind = str(row["trial_type"])
        if kind not in _SPLIT_OF:
            raise UserError(
                f"{where}: trial {line} is of the type {kind!r}, not {', '.join(_SPLIT_OF)}; fetch the table again"
            )
        split = _SPLIT_OF[kind]
        names = () if split is None else ("things_image_nr", "things_category_nr", "session_nr")
        shown, concept, session = [_number(row[name], name, where, line) for name in names] or [CATCH, None, None]
        if shown != event:
            told = "no object" if split is None else f"image {shown}"
            raise UserError(
                f"{where}: trial {line} shows {told}, but the event of that epoch is {event}; fetch both of one version"
            )
        if split is None:
            trials.append(None)
        elif concept is None:
            raise UserError(f"{where}: trial {line} has no things_category_nr; fetch the table again")
        else:
            trials.append(Trial(int(event), concept, _file(row["image_path"], where, line), split, session))
    return trials


def from_images(paths: list[str], concepts: list[int], events: np.ndarray, where: object) -> list[Trial | None]:
    """(epochs,) trials by the tables of the THINGS images; as in UBP's script, an image shown 12 times is a test image.

    Args:
        paths: of every image of THINGS.
        concepts: of each, its concept's number from 1.

    Raises:
        UserError: an event that is not the number of an image.
    """
    shown = Counter(events.tolist())
    trials: list[Trial | None] = []
    for epoch, event in enumerate(events.tolist()):
        if event == CATCH:
            trials.append(None)
            continue
        if not 1 <= event <= len(paths):
            raise UserError(
                f"{where}: epoch {epoch + 1} has the event {event}, and there are {len(paths)} images; fetch the table again"
            )
        split = "test" if shown[event] == things_meg.TEST_REPETITIONS else "train"
        trials.append(Trial(event, concepts[event - 1], _file(paths[event - 1], where, event), split, None))
    return trials


def compare(trials: list[Trial | None], others: list[Trial | None], where: object, other: object) -> None:
    """Two tables of the same epochs must tell the same of each, as far as both tell it.

    Raises:
        UserError: they do not.
    """
    for line, (one, two) in enumerate(zip(trials, others), start=1):
        shown = [trial.image if trial else "no object" for trial in (one, two)]
        if shown[0] != shown[1]:
            raise UserError(
                f"trial {line} shows {shown[0]} in {where} and {shown[1]} in {other}; fetch both of one version"
            )


def arrange(trials: list[Trial | None], where: object) -> dict[str, Conditions]:
    """The conditions of each split. Concepts of test images leave the training set.

    Raises:
        UserError: a split is empty, an image is not shown as often as in THINGS-MEG, or a concept lacks images.
    """
    tested = {trial.concept for trial in trials if trial and trial.split == "test"}
    found = {}
    for split, repetitions in (("train", things_meg.TRAIN_REPETITIONS), ("test", things_meg.TEST_REPETITIONS)):
        shown: dict[str, list[tuple[int, int, str]]] = {}  # of each image the sessions, epochs and what it shows
        for epoch, trial in enumerate(trials):
            if trial and trial.split == split and (split == "test" or trial.concept not in tested):
                shown.setdefault(trial.image, []).append((trial.session or 0, epoch, trial.name))
        if not shown:
            raise UserError(f"{where}: no {split} trials; fetch recordings and tables again")
        images = sorted(shown, key=lambda image: image.split("/"))
        times = {image: len(shown[image]) for image in images}
        _expect(times, repetitions, f"{where}: {split} images must be shown {repetitions} time(s)")
        concepts = [shown[image][0][2] for image in images]
        each = things_meg.IMAGES_PER_CONCEPT if split == "train" else 1
        _expect(Counter(concepts), each, f"{where}: {split} concepts must have {each} image(s)")
        order = np.array([[(session, epoch) for session, epoch, _ in sorted(shown[image])] for image in images])
        sessions = order[..., 0]
        found[split] = Conditions(images, concepts, order[..., 1], sessions.tolist() if (sessions > 0).all() else None)
    return found


def read_attributes(path: Path) -> list[dict[str, str]]:
    """The rows of a sample_attributes_P*.csv.

    Raises:
        UserError: it cannot be read.
    """
    return _read(path, csv.DictReader)


def read_images(paths: Path, index: Path) -> tuple[list[str], list[int]]:
    """Path and concept number of every image of THINGS, from image_paths.csv and image_concept_index.csv.

    Raises:
        UserError: one cannot be read, or they are not of one length.
    """
    names = [row[0].strip() for row in _read(paths, csv.reader) if row]
    numbers = [
        _number(row[0], "concept number", index, line)
        for line, row in enumerate(_read(index, csv.reader), start=1)
        if row
    ]
    known = [number for number in numbers if number is not None]
    if not len(names) == len(numbers) == len(known) or not names:
        raise UserError(
            f"{index}: {len(known)} concept numbers for the {len(names)} images of {paths}; fetch both again"
        )
    return names, known


def _expect(counts: Mapping[str, int], wanted: int, message: str) -> None:
    wrong = [f"{name} {count}" for name, count in counts.items() if count != wanted]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise UserError(
            f"{message}, but there are {', '.join(wrong[:_NAMED])}{more}; fetch all parts of the recordings again"
        )


def _file(path: Any, where: object, line: int) -> str:
    """The name of an image's file: of images_meg/aardvark/aardvark_01b.jpg as of images_test_meg/aardvark_14n.jpg."""
    file = PurePosixPath(str(path).replace("\\", "/")).name
    if not file.rpartition("_")[0] or "." not in file or file.startswith("."):
        raise UserError(
            f"{where}: line {line} names the image {path!r}, which should be like aardvark_01b.jpg; fetch the table again"
        )
    return file


def _number(value: Any, name: str, where: object, line: int) -> int | None:
    """A whole number, which tables write as 7, 7.0 or '7'; None where it is left out."""
    try:
        number = float(value) if value not in (None, "", "n/a") else math.nan
        if math.isnan(number):
            return None
        if number != int(number) or number < 0:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: line {line} has the {name} {value!r}, not a number; fetch the table again") from None
    return int(number)


def _read(path: Path, reader: Callable[[list[str]], Iterable[Any]]) -> list[Any]:
    try:
        return list(reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it again") from error
