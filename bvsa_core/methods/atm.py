"""ATM-S: adaptive thinking mapper, the retrieval part (Li et al., NeurIPS 2024).

The loss contrasts recordings with images and, with a small weight, with texts. The encoder of that name is
bvsa_core.encoders.atm; the published system trains on single trials.
"""

from dataclasses import dataclass

from torch import Tensor

from bvsa_core.methods.base import Batch, Contrastive, symmetric_contrastive


@dataclass(frozen=True)
class ATMOptions:
    """Options of ATM-S."""

    image_weight: float = 0.99
    """Weight of the contrast with images; texts have the rest."""


class ATM(Contrastive):
    """No blur, no state."""

    Options = ATMOptions
    TRAINING = {"encoder": "atm", "optimiser": "adamw", "lr": 3e-4, "batch_size": 64, "epochs": 40, "average": False}

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        brain, _ = self.embed(batch.recordings, batch.subjects)
        scale = self.logit_scale.exp()
        to_images, _ = symmetric_contrastive(brain, batch.images, scale)
        to_texts, _ = symmetric_contrastive(brain, batch.texts, scale)
        return self.options.image_weight * to_images + (1 - self.options.image_weight) * to_texts


METHOD = ATM
