"""Which epoch's weights a run keeps.

- last: those of the last epoch. Nothing is chosen.
- validation: those of the epoch that is best on concepts held out whole from the training data, by Top-1 among them; of
  equal ones the epoch of the smaller loss. Top-1 goes first because it is what is reported: once the scale of the logits
  has grown, a few confident mistakes raise the loss while retrieval still improves; and the loss, taken in batches that
  hold a concept several times, calls images of one concept wrong for each other.
- oracle: those of the epoch that is best on the test set, by Top-1, of equal ones by mean average precision. An upper
  bound, which no one who does not know the answers can reach.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import torch
from torch import Tensor, nn

from bvsa_core.data.split import Split
from bvsa_core.methods.base import Method
from bvsa_core.retrieval.scoring import Scoring, ranks, similarity
from bvsa_core.training.embedding import compute_embeddings
from bvsa_core.vision.views import Views


class Best:
    """The state of the best epoch so far, in memory.

    Args:
        selection: last, validation or oracle, as above.
    """

    def __init__(self, selection: str):
        self.selection = selection
        self.score: tuple[float, ...] | None = None
        self.epoch = 0
        self.state: dict[str, Tensor] | None = None

    def update(self, module: nn.Module, metrics: dict) -> None:
        """Keep a copy of the module's state if these metrics of its are better than all before."""
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
        """Put the kept state back. Returns the epoch, from 1, that it is of."""
        if self.state is not None:
            module.load_state_dict(self.state)
        return self.epoch


def validation_top1(method: Method, held_out: Split, views: Views, texts: Tensor, trained: list[str]) -> float:
    """Share of held-out samples that find their image by image similarity, in galleries of one image a concept."""
    found = []
    for samples in one_sample_per_concept_batches(held_out):
        embeddings = compute_embeddings(method, held_out.take(samples), views, texts, trained)
        found.append(ranks(similarity(embeddings, Scoring())) == 1)
    return torch.cat(found).double().mean().item()


def one_sample_per_concept_batches(split: Split) -> list[Tensor]:
    """Numbers of the samples, each once, in rounds of one sample a concept; one that would be alone in its round is left out."""
    seen: Counter[str] = Counter()
    members: dict[int, list[int]] = defaultdict(list)
    for sample, image in enumerate(split.image_of.tolist()):
        concept = split.concepts[image]
        members[seen[concept]].append(sample)
        seen[concept] += 1
    return [torch.tensor(samples, device=split.image_of.device) for samples in members.values() if len(samples) > 1]
