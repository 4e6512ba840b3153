"""The result of one run, as Python objects and as result.json."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bvsa_core.data.dataset import RecordingAxes
from bvsa_core.encoders import InputSpec
from bvsa_core.errors import UserError, import_pandas
from bvsa_core.io.typed import build
from bvsa_core.retrieval.gates import GATE_ALPHA, KINDS, Reliability
from bvsa_core.retrieval.scoring import Embeddings, Protocol, Scores, Scoring, ranks, score, similarity
from bvsa_core.retrieval.statistics import CurvePoint, Statistics, statistics_of
from bvsa_core.vision.learnt_blur import LearntValues

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1  # of result.json; files of earlier releases have none and are read too
REMEDY = "delete it, and train the run again"
_ROUNDING = 1e-5  # of similarities, relative to the largest one; other devices sum in another order


@dataclass(frozen=True)
class LayerSelection:
    """Which layer of the image encoder a run took as target, and how well each was retrieved on held-out concepts."""

    chosen: str  # the best target; of equal ones, the first
    top1: dict[str, float]  # by target, from the first layer to the output
    concepts: int  # held out
    epochs: int  # of the training that tried a target

    @property
    def source(self) -> str:
        """What chose the layer, for the protocol."""
        return f"{self.concepts} held-out concepts"

    def problem(self) -> str | None:
        """Return what contradicts itself."""
        if not self.top1 or not all(0 <= each <= 1 for each in self.top1.values()):
            return "top1 of layers must be fractions"
        if self.top1.get(self.chosen) != max(self.top1.values()):
            return f"the layer chosen is {self.chosen}, which is not the best"
        return "concepts and epochs of layers must be at least 1" if min(self.concepts, self.epochs) < 1 else None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Ranks of the test images of one run, the protocol they were computed under, and the run they belong to."""

    method: str
    preset: str
    subject: str
    seed: int
    protocol: Protocol
    ranks: list[int]  # (N,) from 1, of the right image of every test recording
    note: str = ""  # about the method, for tables
    deviations: list[str] = field(default_factory=list)  # from the released code of the method, for tables
    epoch: int = 0  # whose weights are kept, from 1
    reliability: Reliability | None = None  # of the gate label_free
    alpha: float = GATE_ALPHA  # of the gate paper
    samples: int = 0  # trained on
    held_out: int = 0  # samples
    layers: LayerSelection | None = None  # of the target, if it was chosen among them
    shape: InputSpec | None = None
    axes: RecordingAxes | None = None  # channels and times trained on
    images: list[str] = field(default_factory=list)  # (N,) of the test set
    learnt_blur: dict[str, LearntValues] = field(default_factory=dict)  # by name, see LearntBlur.values
    features: dict[str, str] = field(default_factory=dict)  # SHA-256 of files given in place of an image encoder
    statistics: Statistics | None = None
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of the run's other files; none in earlier releases

    @property
    def scores(self) -> Scores:
        """Scores of the ranks."""
        return score(torch.tensor(self.ranks))

    def rescored(
        self, embeddings: Embeddings, scoring: Scoring, statistics: bool = True, curve: list[CurvePoint] | None = None
    ) -> RunResult:
        """Return the run's result with its `embeddings` scored in another way; statistics include the curve."""
        scores = similarity(embeddings, scoring)
        rank = ranks(scores)
        figures = statistics_of(scores, rank) if statistics else None
        if figures is not None and curve:
            figures["repetitions"] = curve
        return replace(
            self,
            protocol=replace(self.protocol, **scoring.protocol()),
            ranks=rank.tolist(),
            reliability=scoring.reliability,
            statistics=figures,
        )

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas.DataFrame with a row for each test image: its rank, the run, and the protocol.

        Frames of several runs can be concatenated; means of top1 and top5 over rows are accuracies.
        """
        pandas = import_pandas("frames")
        rank = np.array(self.ranks)
        about = {"method": self.method, "preset": self.preset, "subject": self.subject, "seed": self.seed}
        columns = {"image": self.images or None, "rank": rank, "top1": rank <= 1, "top5": rank <= 5}
        return pandas.DataFrame({**columns, **about, **self.protocol.to_row()})

    def check_ranks(self, embeddings: Embeddings, source: object) -> None:
        """Raise UserError unless the ranks are those that the run's embeddings give, but for rounding."""
        scores = similarity(embeddings, self.protocol.scoring(self.reliability))
        given, rounding = torch.tensor(self.ranks), _ROUNDING * scores.abs().max().clamp(min=1)
        if self.files and self.protocol.gallery != scores.shape[1]:
            gallery = f"a gallery of {self.protocol.gallery}, and embeddings of {scores.shape[1]} images"
            raise UserError(f"{source}: {gallery}; {REMEDY}")
        if len(given) != len(scores):
            raise UserError(f"{source}: {len(given)} ranks, and embeddings of {len(scores)} recordings; {REMEDY}")
        right = scores.diagonal()[:, None]
        lowest, highest = (scores > right + rounding).sum(1) + 1, (scores >= right - rounding).sum(1)
        wrong = int(((given < lowest) | (given > highest)).sum())
        if wrong > len(given) // 100:  # a recording at a gate's threshold may be let through on one device only
            raise UserError(f"{source}: {wrong} of {len(given)} ranks are not those of the run's embeddings; {REMEDY}")

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a JSON file; what is unknown is omitted."""
        own = {name: value for name, value in asdict(self).items() if value is not None and value not in ([], {})}
        content = json.loads(json.dumps({"version": VERSION, **own, **self.scores.to_json(self.protocol)}))
        return {**content, "checksum": _checksum(content)}

    @classmethod
    def from_json(cls, content: dict[str, Any], source: object = "result") -> RunResult:
        """Read what `to_json` returned, in this release or an earlier one; `source` begins the error messages.

        Raises:
            UserError: the content is not a result, is damaged or altered, or comes from a later release.
        """
        if (version := content.get("version", VERSION)) != VERSION:
            mismatch = f"version {version!r} of a result, where this release reads {VERSION}"
            raise UserError(f"{source}: {mismatch}; update fovblur, or delete it and train the run again")
        if "checksum" in content and content["checksum"] != _checksum(content):
            raise UserError(f"{source}: altered since it was written (its checksum differs); {REMEDY}")
        result: RunResult = build(cls, content, str(source), REMEDY)
        if problem := result._problem():
            raise UserError(f"{source}: {problem}; {REMEDY}")
        return result

    def _problem(self) -> str | None:
        """Return what in a result that was read contradicts itself."""
        if not self.ranks or min(self.ranks) < 1:
            return "ranks must be a list of whole numbers from 1"
        if self.images and len(self.images) != len(self.ranks):
            return f"{len(self.ranks)} ranks of {len(self.images)} images"
        if self.protocol.gallery < 1 or min(self.epoch, self.samples, self.held_out) < 0:
            return "gallery must be at least 1; epoch, samples and held_out at least 0"
        if self.layers and (problem := self.layers.problem()):
            return problem
        if not 0 < self.alpha < 1:
            return f"alpha is {self.alpha:g}; it must be above 0 and below 1"
        if self.axes is not None and (problem := self.axes.problem()):
            return f"axes have {problem.partition(';')[0]}"
        if self.axes and self.shape and (len(self.axes.channels), len(self.axes.times)) != astuple(self.shape)[:2]:
            return "axes are not of the shape"
        if self.reliability and (self.reliability.kind not in KINDS or not math.isfinite(self.reliability.threshold)):
            return f"reliability must be of a kind of {', '.join(KINDS)}, with a finite threshold"
        try:
            scoring = self.protocol.scoring(self.reliability)
        except UserError as error:
            return str(error)
        return (
            "the gate label_free has no reliability" if scoring.gate == "label_free" and not self.reliability else None
        )


@dataclass(frozen=True)
class RetrievalResult:
    """The best images of a gallery for every recording, best first."""

    gallery: list[str]  # (M,) names of its images
    rows: np.ndarray  # (N, k) int64, into the gallery
    similarity: np.ndarray  # (N, k) float32

    @property
    def images(self) -> list[list[str]]:
        """Names of the best images (N, k)."""
        return [[self.gallery[row] for row in rows] for rows in self.rows.tolist()]

    def __len__(self) -> int:
        return len(self.rows)

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas.DataFrame with a row for each recording and rank."""
        pandas = import_pandas("frames")
        recording, rank = (each.ravel() for each in np.indices(self.rows.shape))
        names = [self.gallery[row] for row in self.rows.ravel()]
        columns = {"recording": recording, "rank": rank + 1, "image": names, "row": self.rows.ravel()}
        return pandas.DataFrame({**columns, "similarity": self.similarity.ravel()})


def _checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of plain data without their own checksum."""
    text = json.dumps({name: value for name, value in content.items() if name != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def ranks_by_subject(results: Iterable[RunResult]) -> dict[str, np.ndarray]:
    """Return the ranks (seeds, images) of every subject; subjects and seeds are sorted."""
    ordered = sorted(results, key=lambda result: (result.subject, result.seed))
    groups = itertools.groupby(ordered, lambda result: result.subject)
    return {subject: np.array([result.ranks for result in group]) for subject, group in groups}
