"""Vanilla: the symmetric contrastive loss between recordings and sharp images.

The preset `code` is the baseline of UBP's released code, whose logits are made as those of UBP. `shallow` is Shallow
Alignment (arXiv 2601.21948): one layer of the image encoder instead of its output, and a linear map on each side.
"""

from torch import Tensor

from bvsa_core.methods.base import Batch, Contrastive, LogitOptions, Preset, symmetric_contrastive

# What the code of UBP, its baseline and BVSA share.
AS_RELEASED = {"unit_norm": False, "scale": "softplus"}
RELEASED_TRAINING = {"epochs": 50, "batch_size": 1024, "patience": 5}
SHALLOW_TRAINING = {"select_layer": True, "projector": "linear", "lr": 1e-4, "batch_size": 1024, "epochs": 50}
LAYER = "the layer is chosen on concepts held out of training, or given; the paper does not say which data chose it"
EARLY_STOP = (
    "inter-subject, the released code stops after 5 epochs without a better Top-1 on the test images as the training "
    "subjects saw them; patience watches the training loss, as the released code does intra-subject"
)


class Vanilla(Contrastive):
    """No blur, no state."""

    Options = LogitOptions
    PRESETS = {
        "corrected": Preset(),
        "code": Preset(AS_RELEASED, RELEASED_TRAINING),
        "shallow": Preset(training=SHALLOW_TRAINING, deviations=(LAYER,)),
    }
    DEVIATIONS = (EARLY_STOP,)
    uses_texts = False

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        brain = self.embed_for_loss(self.encoder, batch.recordings, batch.subjects)
        loss, _ = symmetric_contrastive(brain, batch.images, self.scale_of_logits())
        return loss


METHOD = Vanilla
