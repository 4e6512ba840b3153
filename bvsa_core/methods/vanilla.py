"""Vanilla: the symmetric contrastive loss between recordings and sharp images."""

from torch import Tensor

from bvsa_core.encoders import NoOptions
from bvsa_core.methods.base import Batch, Contrastive, symmetric_contrastive


class Vanilla(Contrastive):
    """No blur, no state."""

    Options = NoOptions

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        brain, _ = self.embed(batch.recordings, batch.subjects)
        loss, _ = symmetric_contrastive(brain, batch.images, self.logit_scale.exp())
        return loss


METHOD = Vanilla
