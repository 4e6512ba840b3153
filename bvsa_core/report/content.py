"""The content of a report as plain data: what its page and figures are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bvsa_core.report.comparison_table import ComparisonRow
from bvsa_core.report.tables import MethodResult
from bvsa_core.retrieval.result import RunResult
from bvsa_core.retrieval.statistics import Comparison, CurvePoint


@dataclass(frozen=True)
class RunSummary:
    """One training run, scored in one way."""

    folder: str
    result: RunResult
    metrics: list[dict]  # one per epoch
    settings: dict  # from run.yaml
    finished: str  # ISO 8601
    repetition_curve: list[CurvePoint] | None = None  # accuracy by the number of test repetitions averaged


@dataclass(frozen=True)
class ReportRow:
    """One row of the results table and its runs; there are none where only the paper's result is listed."""

    label: str  # in figures; unique within its data
    training_label: str  # of the training run; shared by rows that only score it differently
    comparison: ComparisonRow
    runs: list[RunSummary]
    number: int = 0  # place in the table, from 0; figures mark the parts of a row with it

    @property
    def result(self) -> MethodResult:
        """The result of a row that has runs."""
        assert self.comparison.result is not None
        return self.comparison.result


@dataclass(frozen=True)
class GalleryImage:
    """One image of a gallery."""

    name: str
    concept: str
    thumbnail: bytes | None = None  # JPEG; None where it is not shown


@dataclass(frozen=True)
class RecordingExamples:
    """Test recordings of one subject as the page shows them: means over repetitions, at a few channels and times."""

    subject: str
    values: np.ndarray  # (shown queries, channels, time) float32
    times: Sequence[float]  # (time,) seconds after image onset
    channels: Sequence[str]
    recorded_channels: int  # how many the recordings have
    units: str  # empty where unknown


@dataclass(frozen=True)
class RetrievalExample:
    """What one run retrieves for every test recording; the first recordings are shown."""

    label: str
    data: str
    subject: str
    seed: int
    targets: list[int]  # (queries,) correct image, as an index into Report.images
    ranks: list[int]  # (queries,) rank of the correct image, from 1
    top: list[list[int]]  # (shown queries, 5) indices into Report.images, best first
    scores: list[list[float]]  # (shown queries, 5)
    similarity: np.ndarray  # (queries, images)
    row: int = 0  # number of its row in the table
    views: list[int] = field(default_factory=list)  # (shown queries,) correct images as the run sees them, blurred
    view_level: str = ""  # of the blur of `views`
    recordings: int | None = None  # index into Report.recordings


@dataclass(frozen=True)
class BlurExample:
    """Images under every blur level that one training uses."""

    label: str
    levels: list[str]  # names as in metrics.jsonl
    shares: list[float | None]  # of training samples after the last epoch
    concepts: list[str]  # (images,)
    images: np.ndarray  # (images, 1 + levels, side, side, 3) uint8; the first is not blurred
    thumbnails: list[list[bytes]]  # the same images, small, as JPEG
    falloff: str


class Accuracy(NamedTuple):
    """Top-1 accuracy with its 95 % bootstrap interval over test images, fractions."""

    top1: float
    low: float
    high: float


@dataclass(frozen=True)
class LinearDecoding:
    """What ridge regression finds in parts of one subject's recordings."""

    data: str  # as in the results table
    subject: str
    images: int  # in the gallery
    target: str  # the features that are predicted
    window: float  # seconds
    everything: Accuracy  # from all channels and times
    windows: Mapping[float, Accuracy]  # by the window's middle, seconds after image onset
    regions: Mapping[str, Accuracy]  # by the part of the head; empty if all channels are of one part
    channels: Mapping[str, Accuracy]  # by channel, from it and its neighbours; empty without positions
    layers: Mapping[str, Accuracy]  # by the layer of the image encoder; empty if features are of one


@dataclass(frozen=True)
class Report:
    """Everything that a report shows."""

    title: str
    rows: Sequence[ReportRow]
    images: Sequence[GalleryImage] = ()
    retrievals: Sequence[RetrievalExample] = ()
    recordings: Sequence[RecordingExamples] = ()
    blur_examples: Sequence[BlurExample] = ()
    missing: dict[str, str] = field(default_factory=dict)  # section of the page: why something is not shown
    provenance: dict[str, str] = field(default_factory=dict)  # command, versions, commit, date
    decodings: Sequence[LinearDecoding] = ()
    comparisons: Mapping[str, list[Comparison] | str] = field(default_factory=dict)  # paired tests, by data

    @property
    def rows_by_data(self) -> dict[str, list[ReportRow]]:
        """The rows that have runs, by their data and setting."""
        rows: dict[str, list[ReportRow]] = {}
        for row in self.rows:
            if row.runs:
                rows.setdefault(row.comparison.data, []).append(row)
        return rows

    def trainings(self) -> dict[str, list[RunSummary]]:
        """Return the runs of every training by its label, each once however many ways it is scored."""
        runs: dict[str, list[RunSummary]] = {}
        for data, rows in self.rows_by_data.items():
            for row in rows:
                label = row.training_label if len(self.rows_by_data) == 1 else f"{row.training_label}, {data}"
                runs.setdefault(label, row.runs)
        return runs

    def rows_of_training(self, runs: list[RunSummary]) -> list[int]:
        """Return the numbers of the rows that score these runs of a training."""
        folders = [run.folder for run in runs]
        return [row.number for row in self.rows if [run.folder for run in row.runs] == folders]


def distinct(names: Sequence[Sequence[str]]) -> list[str]:
    """Return short unique labels: the first part of each name, and the parts in which it differs from its namesakes.

    >>> distinct([("bvsa", "gate none", "tiny"), ("bvsa", "gate paper", "tiny"), ("ubp", "gate none", "tiny")])
    ['bvsa, gate none', 'bvsa, gate paper', 'ubp']
    """
    labels = []
    for name in names:
        namesakes = [other for other in names if other[0] == name[0]]
        differing = [part for i, part in enumerate(name) if i and len({other[i] for other in namesakes}) > 1]
        labels.append(", ".join([name[0], *filter(None, differing)]))
    return labels
