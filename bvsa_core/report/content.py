"""What a page and its figures are made of: plain data, gathered by whoever knows where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bvsa_core.report.comparison_table import ComparisonRow
from bvsa_core.report.tables import MethodResult


@dataclass(frozen=True)
class RunSummary:
    """One training, scored in one way."""

    folder: str
    subject: str
    seed: int
    ranks: list[int]  # (queries,) of the right image, from 1
    metrics: list[dict]  # one an epoch
    settings: dict  # of run.yaml
    finished: str  # when, ISO 8601
    repetitions: list[dict] | None = None  # curve over test repetitions


@dataclass(frozen=True)
class ReportRow:
    """One line of the table and the runs it is made of: none where nobody runs it here."""

    label: str  # what figures call it; no two of the same data are called alike
    training: str  # what its training is called, which lines that only score it otherwise share
    entry: ComparisonRow
    runs: list[RunSummary]

    @property
    def row(self) -> MethodResult:
        """Our figures, of a line that has runs."""
        assert self.entry.row is not None
        return self.entry.row


@dataclass(frozen=True)
class GalleryImage:
    """One image of a gallery."""

    name: str
    concept: str
    thumbnail: bytes | None = None  # JPEG; None where it is out of reach


@dataclass(frozen=True)
class RetrievalExample:
    """What one run finds for every test recording."""

    label: str
    data: str
    subject: str
    seed: int
    right: list[int]  # (queries,) into Report.images
    ranks: list[int]  # (queries,) of the right image, from 1
    best: list[list[int]]  # (queries, 5) into Report.images, best first
    scores: list[list[float]]  # (queries, 5)
    similarity: np.ndarray  # (queries, images)


@dataclass(frozen=True)
class BlurExample:
    """Images under every blur level that one training asks for."""

    label: str
    levels: list[str]  # named as in metrics.jsonl
    shares: list[float | None]  # of training samples after the last epoch
    names: list[str]  # (images,)
    images: np.ndarray  # (images, 1 + levels, side, side, 3) uint8; the first is not blurred
    thumbnails: list[list[bytes]]  # the same, small, as JPEG
    falloff: str


@dataclass(frozen=True)
class Report:
    """Everything that is told."""

    title: str
    lines: Sequence[ReportRow]
    images: Sequence[GalleryImage] = ()
    retrievals: Sequence[RetrievalExample] = ()
    blurred: Sequence[BlurExample] = ()
    missing: dict[str, str] = field(default_factory=dict)  # for a part of the page, why something is not there
    made_by: dict[str, str] = field(default_factory=dict)  # command, versions, commit, date

    @property
    def data(self) -> dict[str, list[ReportRow]]:
        """The lines that have runs, by their data and setting."""
        found: dict[str, list[ReportRow]] = {}
        for line in self.lines:
            if line.runs:
                found.setdefault(line.entry.data, []).append(line)
        return found

    def trainings(self) -> dict[str, list[RunSummary]]:
        """The runs of every training, each once, however many ways it is scored in."""
        found: dict[str, list[RunSummary]] = {}
        for data, lines in self.data.items():
            for line in lines:
                name = line.training if len(self.data) == 1 else f"{line.training}, {data}"
                found.setdefault(name, line.runs)
        return found


def distinct(names: Sequence[Sequence[str]]) -> list[str]:
    """Short labels: the first part of each name, with those others in which it differs from names that begin alike.

    >>> distinct([("bvsa", "gate none", "tiny"), ("bvsa", "gate paper", "tiny"), ("ubp", "gate none", "tiny")])
    ['bvsa, gate none', 'bvsa, gate paper', 'ubp']
    """
    labels = []
    for name in names:
        alike = [other for other in names if other[0] == name[0]]
        differing = [part for place, part in enumerate(name) if place and len({other[place] for other in alike}) > 1]
        labels.append(", ".join([name[0], *(part for part in differing if part)]))
    return labels


def flat(values: dict, before: str = "") -> dict[str, Any]:
    """Nested settings as one dict.

    >>> flat({"epochs": 2, "encoder_options": {"dropout": 0.3}})
    {'epochs': 2, 'encoder_options.dropout': 0.3}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found
