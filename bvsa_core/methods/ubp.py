"""UBP: an uncertainty-aware blur prior (Wu et al., CVPR 2025).

An image whose similarity is above the confidence interval is sharper in the next epoch, one below it blurrier.

Presets. `paper` follows the paper: kernel sizes 45, 51, 57, unit-norm embeddings, an image that is sharp at its centre
(gain 1) and scale softplus(s). `code` follows the released code: the shift accumulates (45, 45, 51), gain 0.5, and the
brain embedding enters the loss without normalisation. `corrected`: the paper's kernel sizes and unit-norm embeddings,
the code's gain and scale exp(s), which CLIP uses for unit-norm embeddings.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bvsa_core.encoders import InputSpec
from bvsa_core.methods.base import Batch, Contrastive, LogitOptions, OutlierGate, Preset, symmetric_contrastive
from bvsa_core.methods.vanilla import AS_RELEASED, EARLY_STOP, RELEASED_TRAINING
from bvsa_core.vision.views import Level


@dataclass(frozen=True)
class UBPOptions(LogitOptions):
    """Options of UBP."""

    kernel_sizes: tuple[int, int, int] = (45, 51, 57)
    """Kernel sizes of the levels low, medium and high, in pixels."""
    gain: float = 0.5
    """Weight of the sharp image at the fixation."""
    alpha: float = 0.05
    """Significance level of the confidence interval."""
    gamma: float = 0.3
    """Weight of the newest similarity in the smoothed one."""


class UBP(Contrastive):
    """One head; per sample a kernel size."""

    Options = UBPOptions
    PRESETS = {
        "corrected": Preset(),
        "paper": Preset({"gain": 1.0, "scale": "softplus"}),
        "code": Preset({"kernel_sizes": (45, 45, 51), **AS_RELEASED}, RELEASED_TRAINING),
    }
    DEVIATIONS = (
        EARLY_STOP,
        "smooths similarities of training samples; the released code also enters those of the test images, on which it "
        "validates, as if they were of the first training samples",
    )
    uses_texts = False
    kernel_size: Tensor  # (samples,)
    level_sizes: Tensor  # (3,)

    def __init__(self, options: UBPOptions, build_encoder, samples: int, shape: InputSpec):
        super().__init__(options, build_encoder, samples, shape)
        self.interval = OutlierGate(samples, options.alpha, options.gamma)
        self.register_buffer("level_sizes", torch.tensor(options.kernel_sizes), persistent=False)
        self.register_buffer("kernel_size", torch.full((samples,), options.kernel_sizes[1]))

    def training_levels(self) -> list[Level]:
        """Return the levels of the three kernel sizes."""
        return [Level(size, self.options.gain) for size in dict.fromkeys(self.options.kernel_sizes)]

    def gallery_levels(self) -> list[Level]:
        """Return the medium level."""
        return [Level(self.options.kernel_sizes[1], self.options.gain)]

    def blur(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return gain and kernel size (B,) of samples."""
        kernel_size = self.kernel_size[samples]
        return torch.full_like(kernel_size, self.options.gain, dtype=torch.float32), kernel_size

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        brain = self.embed_for_loss(self.encoder, batch.recordings, batch.subjects)
        loss, logits = symmetric_contrastive(brain, batch.images, self.scale_of_logits())
        if self.training:
            outlier_sign = self.interval(batch.samples, logits.diagonal())
            self.kernel_size[batch.samples] = self.level_sizes[1 - outlier_sign]
        return loss


METHOD = UBP
