"""From embeddings to scores: similarities, ranks, accuracies, and the protocol that stands beside every number."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

import fovblur
from bvsa_core.errors import UserError, unknown_name
from bvsa_core.retrieval import gates, rescoring
from bvsa_core.retrieval.gallery import first_invalid_row


@dataclass(frozen=True)
class Embeddings:
    """Unit-norm embeddings of a test set. Row i of `image` and `text` belongs to recording i."""

    brain_image: Tensor  # (N, D)
    image: Tensor  # (M, D)
    brain_text: Tensor  # (N, E)
    text: Tensor  # (M, E)


@dataclass(frozen=True)
class Protocol:
    """Conditions under which scores were computed; printed beside every score."""

    dataset: str  # "synthetic" for synthetic data
    selection: str  # of the weights: last, validation or oracle
    information: str  # that scoring uses; one of retrieval.gates
    gate: str
    gallery: int  # number of images
    threshold: str | None = None  # of the gate label_free, if it was given by hand
    rescoring: str | None = None  # its steps, such as "whitening,csls"
    texts: str | None = None  # "shuffled" in the control condition
    channels: int | None = None
    alpha: float | None = None  # significance level of the gate paper
    repetitions: int | None = None  # averaged into a test recording
    encoder: str | None = None  # of the images
    setting: str | None = None  # intra-subject, or inter-subject: the test subject is not trained on
    modality: str | None = None  # EEG or MEG
    sampling_rate: float | None = None  # Hz
    window: tuple[float, float] | None = None  # first and last sample, seconds after image onset
    source: str | None = None  # of the recordings: the layout they were first read from
    texts_of: str | None = None  # file of the texts of images; default: prompts with the names of concepts
    gallery_of: str | None = None  # what the gallery holds if not the test images, such as class centres
    repeated: int | None = None  # test conditions averaged into another of the same image
    leak: str | None = None  # what of the test set the training data have; a run must allow it
    training: str | None = None  # what the training knew of the test set, if anything
    brain: str | None = None  # pretrained brain encoder, and what it does to recordings

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.to_row().items())

    def to_row(self) -> dict[str, Any]:
        """Return the conditions that are known, each one value of a table."""
        return self.to_json() | ({"window": window_text(self.window)} if self.window else {})

    @property
    def knowledge(self) -> str:
        """What training and scoring knew of the test set, for tables."""
        if self.training is None:
            return self.information
        scoring = "" if self.information == gates.INDUCTIVE else f", {self.information}"
        return f"transductive ({self.training}){scoring}"

    def to_json(self) -> dict[str, Any]:
        """Return the conditions that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def scoring(self, reliability: gates.Reliability | None = None) -> Scoring:
        """Return the scoring that these conditions name; `reliability` belongs to the gate label_free."""
        alpha = gates.GATE_ALPHA if self.alpha is None else self.alpha
        return Scoring(self.gate, reliability, self.rescoring or "none", self.texts == "shuffled", alpha)


def window_text(window: tuple[float, float]) -> str:
    """Return a window as text.

    >>> window_text((0, 0.996))
    '0 to 0.996 s'
    """
    return f"{window[0]:g} to {window[1]:g} s"


@dataclass(frozen=True)
class Scores:
    """Scores of one ranking; accuracies are fractions."""

    top1: float
    top5: float
    map: float  # mean average precision; with one right image per query, the mean reciprocal rank
    median_rank: float
    n: int  # queries

    def to_json(self, protocol: Protocol) -> dict[str, Any]:
        """Return plain data for a JSON file: the scores and the protocol they belong to."""
        return {**asdict(self), "protocol": protocol.to_json()}


@dataclass(frozen=True)
class Scoring:
    """How similarities are computed from embeddings.

    Raises:
        UserError: the gate or a step of the rescoring is unknown, or the order of steps makes no sense.
    """

    gate: str = "none"
    reliability: gates.Reliability | None = None  # of the gate label_free
    rescoring: str = "none"  # or a list of steps, such as "whitening,csls"
    shuffle_texts: bool = False  # control: every image gets the text of another one
    alpha: float = gates.GATE_ALPHA  # significance level of the gate paper

    def __post_init__(self) -> None:
        if self.gate not in gates.INFORMATION:
            raise UserError(unknown_name("gate", self.gate, gates.INFORMATION))
        rescoring.steps(self.rescoring)

    @property
    def information(self) -> str:
        """The most that the gate or a step of the rescoring uses."""
        known = [gates.INFORMATION[self.gate], gates.BY_HAND if self.threshold else gates.INDUCTIVE]
        known += [rescoring.INFORMATION[step] for step in rescoring.steps(self.rescoring)]
        order = (gates.INDUCTIVE, gates.BY_HAND, gates.TRANSDUCTIVE, gates.BIJECTION, gates.USES_LABELS)
        return max(known, key=order.index)

    @property
    def threshold(self) -> str | None:
        """Threshold of the gate label_free if it was given by hand."""
        given = self.reliability if self.gate == "label_free" else None
        return str(given) if given is not None and given.by_hand else None

    def protocol(self) -> dict[str, Any]:
        """Return the fields of a `Protocol` that belong to the scoring."""
        return {
            "information": self.information,
            "gate": self.gate,
            "threshold": self.threshold,
            "alpha": self.alpha if self.gate == "paper" and self.alpha != gates.GATE_ALPHA else None,
            "rescoring": ",".join(rescoring.steps(self.rescoring)) or None,
            "texts": "shuffled" if self.shuffle_texts else None,
        }


def similarity(embeddings: Embeddings, scoring: Scoring) -> Tensor:
    """Return similarities (N, M) of recordings and images, rescored; the gate reads embeddings as they were.

    Raises:
        UserError: as of `gates.gates`, or an embedding to rescore is NaN or infinite.
    """
    brain_image, image, brain_text, text = (each.float() for each in vars(embeddings).values())
    if scoring.shuffle_texts:
        text = text[rescoring.derangement(len(text)).to(text.device)]
    rows, columns = gates.gates(scoring.gate, brain_text, text, scoring.reliability, scoring.alpha)
    steps = rescoring.steps(scoring.rescoring)
    if steps:  # one NaN would spread to every score
        for name, part in zip(("recording", "image", "recording", "text"), (brain_image, image, brain_text, text)):
            if (row := first_invalid_row(part)) is not None:
                raise UserError(f"the embedding of {name} {row} is NaN or infinite; check the embeddings")
    for step in (name for name in steps if name in rescoring.EMBEDDING_STEPS):
        brain_image = rescoring.EMBEDDING_STEPS[step](brain_image, image)
    scores = fovblur.enhanced_similarity(brain_image, image, brain_text, text, row_gate=rows, column_gate=columns)
    for step in (name for name in steps if name in rescoring.SCORE_STEPS):
        scores = rescoring.SCORE_STEPS[step](scores)
    return scores


def ranks(scores: Tensor) -> Tensor:
    """Return the rank (N,), from 1, of the right image i in the scores (N, M) of query i.

    Ties count against the right image, so that a collapsed encoder scores nothing.

    Raises:
        UserError: a score is NaN, or there are fewer images than queries.
    """
    if scores.shape[0] > scores.shape[1]:
        raise UserError(f"{scores.shape[0]} queries and {scores.shape[1]} images; query i must find image i")
    if (invalid := scores.isnan().any(1)).any():
        raise UserError(f"the similarities of query {int(invalid.int().argmax())} are NaN; check the embeddings")
    return (scores >= scores.diagonal()[:, None]).sum(1)


def score(rank: Tensor) -> Scores:
    """Return the scores of a ranking, from the ranks (N,) of the right images."""
    rank = rank.double()
    return Scores(
        top1=(rank <= 1).double().mean().item(),
        top5=(rank <= 5).double().mean().item(),
        map=(1 / rank).mean().item(),
        median_rank=rank.quantile(0.5).item(),
        n=len(rank),
    )
