"""How well recordings find their pictures: ranks, the figures made of them, and the protocol each figure carries."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

import fovblur
from bvsa_core.errors import UserError
from bvsa_core.retrieval.gates import gates


@dataclass(frozen=True)
class Embeddings:
    """What retrieval compares. Row i of brain_image and brain_text is recording i, row i of image and text its picture."""

    brain_image: Tensor  # (N, D)
    image: Tensor  # (M, D)
    brain_text: Tensor  # (N, E)
    text: Tensor  # (M, E)


@dataclass(frozen=True)
class Protocol:
    """Under which conditions a number came about; printed wherever the number is."""

    dataset: str  # "synthetic" wherever it is
    selection: str  # how the weights were chosen: last, validation or oracle
    information: str  # what scoring knew: inductive, label-free transductive, or uses labels
    gate: str
    gallery: int  # pictures to choose from
    channels: int | None = None
    repetitions: int | None = None  # averaged into a test recording
    encoder: str | None = None  # of the pictures


@dataclass(frozen=True)
class Scores:
    """Figures of one ranking; accuracies are fractions."""

    top1: float
    top5: float
    map: float  # mean average precision; with one right picture a query, the mean reciprocal rank
    median_rank: float
    n: int  # queries

    def to_json(self, protocol: Protocol) -> dict:
        return {**asdict(self), "protocol": {key: value for key, value in asdict(protocol).items() if value is not None}}


def similarity(embeddings: Embeddings, gate: str) -> Tensor:
    """Scores (N, M) of every picture for every recording."""
    compared = [x.float() for x in (embeddings.brain_image, embeddings.image, embeddings.brain_text, embeddings.text)]
    row_gate, column_gate = gates(gate, compared[2] @ compared[3].T)
    return fovblur.enhanced_similarity(*compared, row_gate=row_gate, column_gate=column_gate)


def ranks(scores: Tensor) -> Tensor:
    """Rank (N,), from 1, of the right picture i among the scores (N, M) of query i.

    A wrong picture that ties with the right one counts as ahead of it, so that a collapsed encoder earns nothing.

    Raises:
        UserError: a score is NaN, or there are fewer pictures than queries.
    """
    if scores.shape[0] > scores.shape[1]:
        raise UserError(f"{scores.shape[0]} queries and {scores.shape[1]} pictures; query i must find picture i")
    if scores.isnan().any():
        raise UserError(f"the similarities of query {int(scores.isnan().any(1).int().argmax())} are NaN; check the embeddings")
    return (scores >= scores.diagonal()[:, None]).sum(1)


def score(rank: Tensor) -> Scores:
    """Figures of a ranking, from the ranks (N,) of the right pictures."""
    rank = rank.double()
    return Scores(
        top1=(rank <= 1).double().mean().item(),
        top5=(rank <= 5).double().mean().item(),
        map=(1 / rank).mean().item(),
        median_rank=rank.quantile(0.5).item(),
        n=len(rank),
    )
