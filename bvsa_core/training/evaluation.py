"""A trained method on the test set: what retrieval compares, and the figures it makes, with their protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bvsa_core import encoders
from bvsa_core.data.split import Split
from bvsa_core.methods.base import Method
from bvsa_core.retrieval.gates import Reliability, learn_reliability, reliabilities
from bvsa_core.retrieval.scoring import Embeddings, Protocol, Scores, Scoring, ranks, score, similarity
from bvsa_core.training.config import SELECTIONS, SETTINGS, RunConfig
from bvsa_core.training.embedding import compute_embeddings, embed
from bvsa_core.training.run_data import RunData


@dataclass(frozen=True)
class Trained:
    """A trained method and what it is trained on."""

    method: Method
    epoch: int  # whose weights it has, from 1
    shape: encoders.InputSpec
    split: Split
    held_out: Split | None

    def learn_gate(self, run_data: RunData, test: Split, config: RunConfig) -> Reliability:
        """When the gate label_free opens, in galleries as large as that of the test set."""
        known = self.split if self.held_out is None else self.held_out
        return learn_gate(self.method, known, run_data, self.split.subjects, gallery=len(test.images), seed=config.seed)


@dataclass(frozen=True)
class Evaluation:
    """Figures of a trained method, and what they are made of."""

    scores: Scores
    protocol: Protocol
    ranks: Tensor  # (N,) from 1, of the right image of every test recording
    images: list[str]  # (N,) the test images
    embeddings: Embeddings  # row i of each belongs to test recording i
    reliability: (
        Reliability | None
    )  # what the gate label_free learnt on training recordings; None of a method that classifies


def evaluate(trained: Trained, config: RunConfig, run_data: RunData, scoring: Scoring | None = None) -> Evaluation:
    """Embed the test set of config.subject, rank all its images for every recording, and score the ranks.

    Args:
        trained: by `train`, with the same configuration and materials.
        scoring: gate and rescoring; the method's own gate where left out. A gate label_free without a reliability gets the
            one that is learnt here.

    Raises:
        UserError: data that are missing or do not fit the method.
    """
    method = trained.method
    test = run_data.split(config.subject, "test", config.repetitions)
    embeddings = embed(method, test, run_data, trained.split.subjects)
    reliability = None if method.transductive_classifier else trained.learn_gate(run_data, test, config)
    scoring = scoring or Scoring(method.default_gate)
    if scoring.reliability is None:
        scoring = replace(scoring, reliability=reliability)
    rank = ranks(similarity(embeddings, scoring))
    return Evaluation(
        score(rank), protocol_of(config, run_data, test, scoring), rank, test.images, embeddings, reliability
    )


def learn_gate(
    method: Method, known: Split, run_data: RunData, trained: list[str], gallery: int, seed: int
) -> Reliability:
    """When the gate label_free opens: learnt on recordings whose images are known, in galleries as large as the test one.

    A gallery has one image a concept, as the test set has; every known concept is in one of them.
    """
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    of_concept = {known.concepts[known.image_of[sample]]: sample for sample in order.tolist()}
    samples = torch.tensor(list(of_concept.values()), device=run_data.device)
    examples = []
    for part in samples.tensor_split(max(1, len(samples) // gallery)):
        embeddings = embed(method, known.take(part), run_data, trained)
        closed, opened = (ranks(similarity(embeddings, Scoring(gate))) for gate in ("none", "always"))
        examples.append((closed, opened, reliabilities(embeddings.brain_text, embeddings.text)))
    return learn_reliability(examples)


def protocol_of(config: RunConfig, run_data: RunData, test: Split, scoring: Scoring) -> Protocol:
    """The conditions of a run's figures."""
    return Protocol(
        dataset=run_data.dataset.name,
        selection=SELECTIONS[config.selection],
        gallery=len(test.images),
        channels=len(test.channels),
        repetitions=test.repetitions,
        encoder=run_data.clip.name,
        setting=SETTINGS[config.setting],
        modality=test.modality,
        **scoring.protocol(),
    )


def oracle(trained: Trained, run_data: RunData, config: RunConfig) -> Callable[[], dict[str, float]]:
    """What tells the figures of the test set after an epoch, as they would be reported."""
    method, test = trained.method, run_data.split(config.subject, "test", config.repetitions)
    views = run_data.views(test.images, method.gallery_feature_levels())
    texts = run_data.texts(test.images, test.concepts)

    def examine() -> dict[str, float]:
        embeddings = compute_embeddings(method, test, views, texts, trained.split.subjects)
        learnt = trained.learn_gate(run_data, test, config) if method.default_gate == "label_free" else None
        found = score(ranks(similarity(embeddings, Scoring(method.default_gate, learnt))))
        return {"test_top1": found.top1, "test_map": found.map}

    return examine
