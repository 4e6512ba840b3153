"""The result of one run, as Python objects and as result.json."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import torch

from bvsa_core.encoders import InputSpec
from bvsa_core.errors import UserError
from bvsa_core.retrieval.gates import GATE_ALPHA, Reliability
from bvsa_core.retrieval.scoring import Embeddings, Protocol, Scores, Scoring, ranks, score, similarity
from bvsa_core.retrieval.statistics import statistics_of

VERSION = 1  # of result.json; files of earlier releases have none and are read too
_KINDS = {
    str: "text", int: "a whole number", float: "a number",
    list[int]: "a list of whole numbers from 1", list[str]: "a list of names",
}  # fmt: skip
Built = TypeVar("Built")


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
    shape: InputSpec | None = None
    images: list[str] = field(default_factory=list)  # (N,) of the test set
    statistics: dict[str, Any] | None = None  # see retrieval.statistics.statistics_of; "repetitions" is a curve

    @property
    def scores(self) -> Scores:
        """Scores of the ranks."""
        return score(torch.tensor(self.ranks))

    def rescored(
        self, embeddings: Embeddings, scoring: Scoring, statistics: bool = True, curve: list[dict] | None = None
    ) -> RunResult:
        """Return the run's result with its `embeddings` scored in another way; statistics include the curve."""
        scores = similarity(embeddings, scoring)
        rank = ranks(scores)
        return replace(
            self,
            protocol=replace(self.protocol, **scoring.protocol()),
            ranks=rank.tolist(),
            reliability=scoring.reliability,
            statistics=statistics_of(scores, rank) | ({"repetitions": curve} if curve else {}) if statistics else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a JSON file; what is unknown is omitted."""
        own = {name: value for name, value in asdict(self).items() if value is not None and value != []}
        return {"version": VERSION, **own, **self.scores.to_json(self.protocol)}

    @classmethod
    def from_json(cls, content: dict[str, Any], source: object = "result") -> RunResult:
        """Read what `to_json` returned, in this release or an earlier one; `source` begins the error messages.

        Raises:
            UserError: the content is not a result, is damaged, or comes from a later release.
        """
        if (version := content.get("version", VERSION)) != VERSION:
            mismatch = f"version {version!r} of a result, where this release reads {VERSION}"
            raise UserError(f"{source}: {mismatch}; update fovblur, or delete it and train the run again")
        result = _build(cls, content, source)
        if not result.ranks or min(result.ranks) < 1:
            raise UserError(f"{source}: ranks must be {_KINDS[list[int]]}; delete it, and train the run again")
        return result


def ranks_by_subject(results: Iterable[RunResult]) -> dict[str, np.ndarray]:
    """Return the ranks (seeds, images) of every subject; subjects and seeds are sorted."""
    ordered = sorted(results, key=lambda result: (result.subject, result.seed))
    groups = itertools.groupby(ordered, lambda result: result.subject)
    return {subject: np.array([result.ranks for result in group]) for subject, group in groups}


def _build(kind: type[Built], content: dict[str, Any], source: object) -> Built:
    """Build a dataclass from plain data, checking names and types; unknown names are ignored."""
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    required = [name for name, each in known.items() if each.default is each.default_factory is MISSING]
    if missing := [name for name in required if name not in content]:
        raise UserError(f"{source}: {', '.join(missing)} missing; a run of an earlier version, train it again")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], content[name], f"{source}: {name}") for name in known if name in content})


def _value(hint: Any, value: Any, source: str) -> Any:
    """Check one value of a dataclass against the annotation of its field."""
    if isinstance(hint, UnionType):  # always X | None here
        if value is None:
            return None
        hint = get_args(hint)[0]
    nested = isinstance(hint, type) and is_dataclass(hint)
    plain = dict if nested else get_origin(hint) or hint
    fits = isinstance(value, (int, float) if plain is float else plain)
    if not fits or (plain is list and not all(isinstance(each, get_args(hint)) for each in value)):
        raise UserError(f"{source} must be {_KINDS.get(hint, 'an object')}; delete it, and train the run again")
    return _build(hint, value, source) if nested else value
