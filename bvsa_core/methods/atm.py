"""ATM-S: adaptive thinking mapper, the retrieval part (Li et al., NeurIPS 2024).

The loss contrasts recordings with images and, with a small weight, with texts. The encoder of that name is
bvsa_core.encoders.atm; the published system trains on single trials. The preset `code` follows the released code: brain
embeddings are not normalised, the scale is the learnt number itself (2.66 at the start), the weight decay PyTorch's
0.01, and all channels are taken. Its batches hold 64 samples, as ours do; a public fork of it takes 1024.
"""

from dataclasses import dataclass

from torch import Tensor

from bvsa_core.methods.base import Batch, Contrastive, LogitOptions, Preset, symmetric_contrastive


@dataclass(frozen=True)
class ATMOptions(LogitOptions):
    """Options of ATM-S."""

    image_weight: float = 0.99
    """Weight of the contrast with images; texts have the rest."""


class ATM(Contrastive):
    """No blur, no state."""

    Options = ATMOptions
    TRAINING = {"encoder": "atm", "optimiser": "adamw", "lr": 3e-4, "batch_size": 64, "epochs": 40, "average": False}

    PRESETS = {
        "corrected": Preset(),
        "code": Preset(
            {"unit_norm": False, "scale": "identity"},
            {"weight_decay": 0.01, "channels": "all", "prompt": "This picture is {concept}"},
        ),
    }
    DEVIATIONS = (
        "the encoder atm keeps every channel; the released code loses the last one to the subject's token",
        "keeps the weights of one epoch; the released code writes the scores of every epoch, and notes the best on the "
        "test set",
    )

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        brain = self.embed_for_loss(self.encoder, batch.recordings, batch.subjects)
        scale = self.scale_of_logits()
        to_images, _ = symmetric_contrastive(brain, batch.images, scale)
        to_texts, _ = symmetric_contrastive(brain, batch.texts, scale)
        return self.options.image_weight * to_images + (1 - self.options.image_weight) * to_texts


METHOD = ATM
