"""Vanilla: the symmetric contrastive loss between recordings and sharp images.

The preset `code` is the baseline of UBP's released code, whose logits are made as those of UBP.
"""

from torch import Tensor

from bvsa_core.methods.base import (
    AS_RELEASED,
    EARLY_STOP,
    RELEASED_TRAINING,
    Batch,
    Contrastive,
    LogitOptions,
    Preset,
    symmetric_contrastive,
)


class Vanilla(Contrastive):
    """No blur, no state."""

    Options = LogitOptions
    PRESETS = {"corrected": Preset(), "code": Preset(AS_RELEASED, RELEASED_TRAINING)}
    DEVIATIONS = (EARLY_STOP,)

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        brain = self.embed_for_loss(self.encoder, batch.recordings, batch.subjects)
        loss, _ = symmetric_contrastive(brain, batch.images, self.scale_of_logits())
        return loss


METHOD = Vanilla
