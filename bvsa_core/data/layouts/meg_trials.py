"""The image of each epoch of THINGS-MEG, from the tables published with the recordings or with the images.

The attributes of the trials (sourcedata/sample_attributes_P1.csv of ds004212, also the metadata of its epoch files)
are complete. The other source is the tables of the THINGS images, image_paths.csv and image_concept_index.csv, whose
line n is the image of event n. If there are several, they must agree.
"""

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bvsa_core.data import things_meg
from bvsa_core.errors import UserError, first_few

CATCH = 999999  # event of catch trials, which show no object and ask for a button press
FOLDERS = {"train": "training_images", "test": "test_images"}
_SPLIT_OF = {"exp": "train", "test": "test", "catch": None}  # by trial_type
_NEEDED = ("trial_type", "things_image_nr", "things_category_nr", "image_path", "session_nr")


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
        """Name of the concept in THINGS: the image's name without its number."""
        return self.file.rpartition("_")[0]

    @property
    def image(self) -> str:
        """Path of the image as UBP names it, by the concept's number in THINGS."""
        return f"{FOLDERS[self.split]}/{self.concept:05d}_{self.name}/{self.file}"


@dataclass(frozen=True)
class Conditions:
    """Images of a split in the order of their folder, and the epochs that show them."""

    images: list[str]
    concepts: list[str]
    epochs: np.ndarray  # (conditions, repetitions) int64, number in the file, in the order of presentation
    sessions: list[list[int]] | None  # (conditions, repetitions) from 1


def from_attributes(rows: Iterable[Mapping[str, Any]], events: np.ndarray, where: object) -> list[Trial | None]:
    """Return the trial of each epoch by its attributes; None if it shows no object.

    `rows` are in the order of the epochs, whose `events` (epochs,) must be the numbers of their images. `where` is the
    table's name in errors.
    """
    rows = list(rows)
    if len(rows) != len(events):
        counts = f"{len(rows)} trials where there are {len(events)} epochs"
        raise UserError(f"{where}: {counts}; fetch table and recordings of one version")
    if missing := [name for name in _NEEDED if rows and name not in rows[0]]:
        raise UserError(f"{where}: no column {', '.join(missing)}; it must be a sample_attributes_P*.csv of ds004212")
    trials: list[Trial | None] = []
    for line, (row, event) in enumerate(zip(rows, events), start=1):
        kind = str(row["trial_type"])
        if kind not in _SPLIT_OF:
            known = ", ".join(_SPLIT_OF)
            raise UserError(f"{where}: trial {line} is of the type {kind!r}, not {known}; fetch the table again")
        split = _SPLIT_OF[kind]
        names = () if split is None else ("things_image_nr", "things_category_nr", "session_nr")
        shown, concept, session = [_number(row[name], name, where, line) for name in names] or [CATCH, None, None]
        if shown != event:
            differs = f"trial {line} shows {'no object' if split is None else f'image {shown}'}"
            raise UserError(f"{where}: {differs}, but the event of that epoch is {event}; fetch both of one version")
        if split is None:
            trials.append(None)
        elif concept is None:
            raise UserError(f"{where}: trial {line} has no things_category_nr; fetch the table again")
        else:
            trials.append(Trial(int(event), concept, _file(row["image_path"], where, line), split, session))
    return trials


def from_images(paths: list[str], concepts: list[int], events: np.ndarray, where: object) -> list[Trial | None]:
    """Return the trial of each epoch by the tables of the THINGS images; None if it shows no object.

    `paths` and `concepts` (numbers from 1) are of every image of THINGS, `events` (epochs,) are numbers of images. As
    in UBP's script, an image shown 12 times is a test image. `where` is the table's name in errors.
    """
    shown = Counter(events.tolist())
    trials: list[Trial | None] = []
    for epoch, event in enumerate(events.tolist()):
        if event == CATCH:
            trials.append(None)
            continue
        if not 1 <= event <= len(paths):
            unknown = f"epoch {epoch + 1} has the event {event}, and there are {len(paths)} images"
            raise UserError(f"{where}: {unknown}; fetch the table again")
        split = "test" if shown[event] == things_meg.TEST_REPETITIONS else "train"
        trials.append(Trial(event, concepts[event - 1], _file(paths[event - 1], where, event), split, None))
    return trials


def compare(trials: list[Trial | None], others: list[Trial | None], where: object, other: object) -> None:
    """Check that two tables have the same image for each epoch."""
    for line, (one, two) in enumerate(zip(trials, others), start=1):
        shown = [trial.image if trial else "no object" for trial in (one, two)]
        if shown[0] != shown[1]:
            differs = f"trial {line} shows {shown[0]} in {where} and {shown[1]} in {other}"
            raise UserError(f"{differs}; fetch both of one version")


def arrange(trials: list[Trial | None], where: object) -> dict[str, Conditions]:
    """Return the conditions of each split, as many as in THINGS-MEG; test concepts are not trained on."""
    tested = {trial.concept for trial in trials if trial and trial.split == "test"}
    conditions = {}
    for split, repetitions in (("train", things_meg.TRAIN_REPETITIONS), ("test", things_meg.TEST_REPETITIONS)):
        shown: dict[str, list[tuple[int, int, str]]] = {}  # session, epoch, concept of each presentation
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
        known = sessions.tolist() if (sessions > 0).all() else None
        conditions[split] = Conditions(images, concepts, order[..., 1], known)
    return conditions


def read_attributes(path: Path) -> list[dict[str, str]]:
    """Read the rows of a sample_attributes_P*.csv."""
    return _read(path, csv.DictReader)


def read_images(paths: Path, index: Path) -> tuple[list[str], list[int]]:
    """Read path and concept number of every image of THINGS, from image_paths.csv and image_concept_index.csv."""
    names = [row[0].strip() for row in _read(paths, csv.reader) if row]
    lines = [(line, row) for line, row in enumerate(_read(index, csv.reader), start=1) if row]
    numbers = [_number(row[0], "concept number", index, line) for line, row in lines]
    known = [number for number in numbers if number is not None]
    if not len(names) == len(numbers) == len(known) or not names:
        counts = f"{len(known)} concept numbers for the {len(names)} images of {paths}"
        raise UserError(f"{index}: {counts}; fetch both again")
    return names, known


def _expect(counts: Mapping[str, int], expected: int, message: str) -> None:
    if wrong := [f"{name} {count}" for name, count in counts.items() if count != expected]:
        raise UserError(f"{message}, but there are {first_few(wrong)}; fetch all parts of the recordings again")


def _file(path: Any, where: object, line: int) -> str:
    """Return the file name of images_meg/aardvark/aardvark_01b.jpg or images_test_meg/aardvark_14n.jpg."""
    file = PurePosixPath(str(path).replace("\\", "/")).name
    if not file.rpartition("_")[0] or "." not in file or file.startswith("."):
        named = f"line {line} names the image {path!r}, which should be like aardvark_01b.jpg"
        raise UserError(f"{where}: {named}; fetch the table again")
    return file


def _number(value: Any, name: str, where: object, line: int) -> int | None:
    """Return a whole number, which tables write as 7, 7.0 or '7'; None if the cell is empty."""
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
