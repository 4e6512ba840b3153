"""UBP: an uncertainty-aware blur prior (Wu et al., CVPR 2025).

A sample whose similarity stands out upwards is seen sharper in the next epoch, one that stands out downwards blurrier.

Presets. `corrected` and `paper` follow the paper: kernel sizes 45, 51, 57, unit-norm embeddings. `code` follows the
released code, in which the shift accumulates (45, 45, 51) and the brain embedding enters the loss as LayerNorm leaves it,
with scale softplus(s). The code also updates the similarity state while it validates on the test set, which this package
never does before the final score; the state would be overwritten for as many training samples as there are test ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bvsa_core.encoders import InputSpec, encode
from bvsa_core.methods.base import Batch, Contrastive, Interval, positive_scale, symmetric_contrastive
from bvsa_core.vision.views import Level


@dataclass(frozen=True)
class UBPOptions:
    """Options of UBP."""

    kernel_sizes: tuple[int, int, int] = (45, 51, 57)
    """Kernel sizes of the levels low, medium and high, in pixels."""
    gain: float = 0.5
    """Weight of the sharp image at the fixation."""
    alpha: float = 0.05
    """Significance level of the interval."""
    gamma: float = 0.3
    """Weight of the newest similarity in the smoothed one."""
    unit_norm: bool = True
    """Whether the brain embedding is normalised in the loss."""
    scale: str = "exp"
    """exp or softplus: how the learnable scale is kept positive."""


class UBP(Contrastive):
    """One head; per sample a kernel size."""

    Options = UBPOptions
    PRESETS = {
        "corrected": {},
        "paper": {},
        "code": {"kernel_sizes": (45, 45, 51), "unit_norm": False, "scale": "softplus"},
    }
    kernel_size: Tensor  # (samples,)
    level_sizes: Tensor  # (3,)

    def __init__(self, options: UBPOptions, build_encoder, samples: int, shape: InputSpec):
        super().__init__(options, build_encoder, samples, shape)
        self.interval = Interval(samples, options.alpha, options.gamma)
        self.register_buffer("level_sizes", torch.tensor(options.kernel_sizes), persistent=False)
        self.register_buffer("kernel_size", torch.full((samples,), options.kernel_sizes[1]))

    def training_levels(self) -> list[Level]:
        return [Level(size, self.options.gain) for size in dict.fromkeys(self.options.kernel_sizes)]

    def gallery_levels(self) -> list[Level]:
        return [Level(self.options.kernel_sizes[1], self.options.gain)]

    def blur(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        kernel_size = self.kernel_size[samples]
        return torch.full_like(kernel_size, self.options.gain, dtype=torch.float32), kernel_size

    def forward(self, batch: Batch) -> Tensor:
        brain = encode(self.encoder, batch.recordings, batch.subjects)
        if self.options.unit_norm:
            brain = normalize(brain, dim=-1)
        loss, logits = symmetric_contrastive(brain, batch.images, positive_scale(self.logit_scale, self.options.scale))
        if self.training:
            stands_out = self.interval(batch.samples, logits.diagonal())
            self.kernel_size[batch.samples] = self.level_sizes[1 - stands_out]
        return loss


METHOD = UBP
