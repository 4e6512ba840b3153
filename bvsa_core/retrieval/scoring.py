"""How well recordings find their images: ranks, the figures made of them, and the protocol each figure carries."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import fovblur
from bvsa_core.errors import UserError, unknown_name
from bvsa_core.retrieval import gates, rescoring


@dataclass(frozen=True)
class Embeddings:
    """What retrieval compares. Row i of brain_image and brain_text is recording i, row i of image and text its image."""

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
    gallery: int  # images to choose from
    rescoring: str | None = None
    texts: str | None = None  # "shuffled" in the control
    channels: int | None = None
    repetitions: int | None = None  # averaged into a test recording
    encoder: str | None = None  # of the images
    setting: str | None = None  # intra-subject, or inter-subject: tested on someone not trained on
    modality: str | None = None  # EEG or MEG

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.to_json().items())

    def to_json(self) -> dict[str, Any]:
        """Return the conditions that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def scoring(self, reliability: gates.Reliability | None = None) -> Scoring:
        """Return the scoring that these conditions name; `reliability` belongs to the gate label_free."""
        return Scoring(self.gate, reliability, self.rescoring or "none", self.texts == "shuffled")


@dataclass(frozen=True)
class Scores:
    """Figures of one ranking; accuracies are fractions."""

    top1: float
    top5: float
    map: float  # mean average precision; with one right image a query, the mean reciprocal rank
    median_rank: float
    n: int  # queries

    def to_json(self, protocol: Protocol) -> dict[str, Any]:
        """Return plain data for a JSON file: the scores and the protocol they belong to."""
        return {**asdict(self), "protocol": protocol.to_json()}


@dataclass(frozen=True)
class Scoring:
    """How embeddings become scores.

    Raises:
        UserError: an unknown gate or rescoring.
    """

    gate: str = "none"
    reliability: gates.Reliability | None = None  # of the gate label_free
    rescoring: str = "none"
    shuffle_texts: bool = False  # control: what is left when every image has another's text

    def __post_init__(self) -> None:
        for kind, known in (("gate", gates.INFORMATION), ("rescoring", rescoring.INFORMATION)):
            if (name := getattr(self, kind)) not in known:
                raise UserError(unknown_name(kind, name, known))

    @property
    def information(self) -> str:
        """What the scores know: the most that gate or rescoring does."""
        known = (gates.INFORMATION[self.gate], rescoring.INFORMATION[self.rescoring])
        return max(known, key=(gates.INDUCTIVE, gates.TRANSDUCTIVE, gates.USES_LABELS).index)

    def protocol(self) -> dict[str, Any]:
        """Its part of a Protocol."""
        return {
            "information": self.information,
            "gate": self.gate,
            "rescoring": None if self.rescoring == "none" else self.rescoring,
            "texts": "shuffled" if self.shuffle_texts else None,
        }


def similarity(embeddings: Embeddings, scoring: Scoring) -> Tensor:
    """Scores (N, M) of every image for every recording."""
    brain_image, image, brain_text, text = (
        x.float() for x in (embeddings.brain_image, embeddings.image, embeddings.brain_text, embeddings.text)
    )
    if scoring.shuffle_texts:
        text = text[another_text(text)]
    row_gate, column_gate = gates.gates(scoring.gate, brain_text, text, scoring.reliability)
    scores = fovblur.enhanced_similarity(
        brain_image, image, brain_text, text, row_gate=row_gate, column_gate=column_gate
    )
    return rescoring.rescore(scoring.rescoring, scores)


def another_text(text: Tensor, seed: int = 0) -> Tensor:
    """For every row of texts (M, E) the number of another one, each used once: a random cycle through all."""
    order = torch.randperm(len(text), generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(order).scatter_(0, order, order.roll(1)).to(text.device)


def ranks(scores: Tensor) -> Tensor:
    """Rank (N,), from 1, of the right image i among the scores (N, M) of query i.

    A wrong image that ties with the right one counts as ahead of it, so that a collapsed encoder earns nothing.

    Raises:
        UserError: a score is NaN, or there are fewer images than queries.
    """
    if scores.shape[0] > scores.shape[1]:
        raise UserError(f"{scores.shape[0]} queries and {scores.shape[1]} images; query i must find image i")
    if scores.isnan().any():
        raise UserError(
            f"the similarities of query {int(scores.isnan().any(1).int().argmax())} are NaN; check the embeddings"
        )
    return (scores >= scores.diagonal()[:, None]).sum(1)


def score(rank: Tensor) -> Scores:
    """Figures of a ranking, from the ranks (N,) of the right images."""
    rank = rank.double()
    return Scores(
        top1=(rank <= 1).double().mean().item(),
        top5=(rank <= 5).double().mean().item(),
        map=(1 / rank).mean().item(),
        median_rank=rank.quantile(0.5).item(),
        n=len(rank),
    )
