"""Which epoch's weights a run keeps.

- last: the last epoch. Nothing is selected.
- validation: the epoch with the best Top-1 on concepts held out of the training data; of equal ones, the one with the
  smaller loss. Top-1 goes first because it is reported, and because the loss misleads: once the scale of the logits has
  grown, a few confident mistakes raise it while retrieval still improves, and in batches that hold a concept several
  times it calls images of one concept wrong for each other.
- oracle: the epoch with the best Top-1 on the test set; of equal ones, the one with the better mean average precision.
  An upper bound, out of reach without the answers.
"""

import math
from collections import Counter, defaultdict

import torch
from torch import Tensor, nn

from bvsa_core.data.split import Split
from bvsa_core.methods.base import Method
from bvsa_core.retrieval.scoring import Scoring, ranks, similarity
from bvsa_core.training.embedding import compute_embeddings
from bvsa_core.vision.views import Views

MIN_PROGRESS = 0.001  # of the training loss, as the code of UBP and BVSA has it


class Best:
    """The weights of the best epoch so far, in memory; `selection` is last, validation or oracle, as above.

    `stalled` counts the epochs since the training loss last fell by MIN_PROGRESS below its least value.
    """

    def __init__(self, selection: str):
        self.selection = selection
        self.least_loss, self.stalled = math.inf, 0
        self.score: tuple[float, ...] | None = None
        self.epoch = 0
        self.state: dict[str, Tensor] | None = None

    def update(self, module: nn.Module, metrics: dict) -> None:
        """Keep a copy of the module's state if its metrics are the best so far."""
        progress = metrics["loss"] < self.least_loss - MIN_PROGRESS
        self.least_loss, self.stalled = (metrics["loss"], 0) if progress else (self.least_loss, self.stalled + 1)
        if self.selection == "last":
            self.epoch = metrics["epoch"]
            return
        if self.selection == "validation":
            score = (metrics["validation_top1"], -metrics["validation_loss"])
        else:
            score = (metrics["test_top1"], metrics["test_map"])
        if self.score is None or score > self.score:
            state = {name: value.clone() for name, value in module.state_dict().items()}
            self.score, self.epoch, self.state = score, metrics["epoch"], state

    def restore(self, module: nn.Module) -> int:
        """Load the kept state, and return its epoch, from 1."""
        if self.state is not None:
            module.load_state_dict(self.state)
        return self.epoch


def validation_top1(method: Method, held_out: Split, views: Views, texts: Tensor, trained: list[str]) -> float:
    """Return the share of held-out samples that rank their image first, in galleries of one image a concept."""
    hits = []
    for samples in one_sample_per_concept_batches(held_out):
        embeddings = compute_embeddings(method, held_out.take(samples), views, texts, trained)
        hits.append(ranks(similarity(embeddings, Scoring())) == 1)
    return torch.cat(hits).double().mean().item()


def one_sample_per_concept_batches(split: Split) -> list[Tensor]:
    """Return batches of one sample a concept; each sample is in one batch, unless it would be alone there."""
    seen: Counter[str] = Counter()
    members: dict[int, list[int]] = defaultdict(list)
    for sample, image in enumerate(split.image_of.tolist()):
        concept = split.concepts[image]
        members[seen[concept]].append(sample)
        seen[concept] += 1
    return [torch.tensor(samples, device=split.image_of.device) for samples in members.values() if len(samples) > 1]
