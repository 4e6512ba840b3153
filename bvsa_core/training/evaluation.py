"""Evaluation of a trained method on the test set, with the protocol of its scores."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bvsa_core import encoders, methods
from bvsa_core.data.dataset import SYNTHETIC
from bvsa_core.data.split import Split
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Method
from bvsa_core.retrieval.gates import Reliability, learn_reliability, reliabilities
from bvsa_core.retrieval.result import LayerSelection
from bvsa_core.retrieval.scoring import Embeddings, Protocol, Scores, Scoring, ranks, score, similarity
from bvsa_core.training.config import LAYER_CHOSEN, SELECTIONS, SETTINGS, RunConfig
from bvsa_core.training.embedding import embed
from bvsa_core.training.run_data import RunData


@dataclass(frozen=True)
class Trained:
    """A trained method and the data it was trained on."""

    method: Method
    epoch: int  # of its weights, from 1
    shape: encoders.InputSpec
    split: Split
    held_out: Split | None
    layers: LayerSelection | None = None  # of the target, if config.select_layer chose it

    @property
    def learns_gate(self) -> bool:
        """Whether the gate label_free can be learnt: the method compares recordings with texts, and can search."""
        return self.method.compares_texts and not self.method.transductive_classifier

    def learn_gate(self, run_data: RunData, gallery: int, seed: int) -> Reliability:
        """Learn when the gate label_free opens, on recordings whose images are known.

        They are searched in galleries of about `gallery` images, one a concept as in the test set.
        """
        split = self.split if self.held_out is None else self.held_out
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
        of_concept = {split.concepts[split.image_of[sample]]: sample for sample in order.tolist()}
        samples = torch.tensor(list(of_concept.values()), device=run_data.device)
        examples = []
        for part in samples.tensor_split(max(1, len(samples) // gallery)):
            embeddings = embed(self.method, split.take(part), run_data, self.split.subjects)
            closed, opened = (ranks(similarity(embeddings, Scoring(gate))) for gate in ("none", "always"))
            examples.append((closed, opened, reliabilities(embeddings.brain_text, embeddings.text)))
        return learn_reliability(examples)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a trained method, and what they were computed from."""

    scores: Scores
    protocol: Protocol
    ranks: Tensor  # (N,) from 1, of the right image of every test recording
    images: list[str]  # (N,) the test images
    embeddings: Embeddings  # row i of each belongs to test recording i
    reliability: Reliability | None  # of the gate label_free; None for transductive classifiers


def check_gate(gate: str, method: str, embeddings: Embeddings) -> None:
    """Raise UserError for a gate that reads texts, of which a run has no embeddings to compare with recordings."""
    if gate == "none" or embeddings.text.any() or methods.method_class(method).transductive_classifier:
        return
    remedy = "choose none, or train a method or target with texts"
    raise UserError(f"gate {gate!r} reads texts, and the run's recordings are not aligned with any; {remedy}")


def evaluate(trained: Trained, config: RunConfig, run_data: RunData, scoring: Scoring | None = None) -> Evaluation:
    """Embed the test set of config.subject, rank all its images for every recording, and score the ranks.

    Args:
        trained: returned by `train`.
        config: as for `train`.
        run_data: as for `train`.
        scoring: gate and rescoring; default: the method's own gate. The reliability of a gate label_free is learnt
            here if it is missing.

    Raises:
        UserError: data are missing or do not fit the method.
    """
    method, layers = trained.method, trained.layers
    run_data = run_data.with_target(layers.chosen) if layers else run_data
    test, leak = run_data.test_split(config, trained.split, trained.held_out)
    embeddings = embed(method, test, run_data, trained.split.subjects)
    scoring = scoring or Scoring(method.default_gate, alpha=method.gate_alpha)
    if scoring.reliability is None and len(trained.split) and trained.learns_gate:
        reliability = trained.learn_gate(run_data, len(test.images), config.seed)
        scoring = replace(scoring, reliability=reliability)
    rank = ranks(similarity(embeddings, scoring))
    protocol = Protocol(
        dataset=SYNTHETIC if test.source == SYNTHETIC else run_data.dataset.name,
        selection=SELECTIONS[config.selection] + (f"{LAYER_CHOSEN}{layers.source}" if layers else ""),
        gallery=len(test.images),
        channels=len(test.channels),
        repetitions=test.repetitions,
        encoder=(run_data.encoder.name if layers else run_data.encoder_name) + _trained_on_images(config),
        setting=SETTINGS[config.setting],
        modality=test.modality,
        sampling_rate=test.axes.sampling_rate,
        window=test.axes.window,
        source=test.source,
        texts_of=run_data.stimulus_texts.source if run_data.stimulus_texts else None,
        repeated=test.repeated or None,
        leak="test data are trained on" if leak else None,
        training="trains on test features" if config.trains_on_test_features else None,
        brain=encoders.pretrained_note(method),
        **scoring.protocol(),
    )
    return Evaluation(score(rank), protocol, rank, test.images, embeddings, scoring.reliability)


def _trained_on_images(config: RunConfig) -> str:
    """Return what of the image side is trained, to follow the name of the encoder; empty if nothing is."""
    shared = " shared" if config.projector_shared else ""
    parts = {
        f"LoRA {config.vision_lora}": config.vision_lora,
        f"projector {config.projector} {config.projector_dim}{shared}": config.projector != "none",
    }
    named = " and ".join(name for name, is_trained in parts.items() if is_trained)
    return f" with {named}" if named else ""


def oracle(trained: Trained, run_data: RunData, config: RunConfig) -> Callable[[], dict[str, float]]:
    """Return a function that scores the test set, as the result would report it."""
    test = run_data.split(config.subject, "test", config.repetitions, trained.split.axes)
    gate = trained.method.default_gate

    def test_metrics() -> dict[str, float]:
        embeddings = embed(trained.method, test, run_data, trained.split.subjects)
        learns = gate == "label_free"
        reliability = trained.learn_gate(run_data, len(test.images), config.seed) if learns else None
        scoring = Scoring(gate, reliability, alpha=trained.method.gate_alpha)
        scores = score(ranks(similarity(embeddings, scoring)))
        return {"test_top1": scores.top1, "test_map": scores.map}

    return test_metrics
