"""BVSA: blur-guided visual-semantic alignment (CVPR 2026). Three parts, each with a switch of its own.

1. Text-guided decoupling (`decouple`): the image of a sample whose similarity to its text is above the confidence
   interval gets a sharper centre in the next epoch, below it a uniform blur. Gain = 0.5 + c, 0.5 or 0.5 - c.
2. Dynamic alignment (`dynamic`): the image of a sample whose similarity to it is above the interval gets a smaller
   kernel in the next epoch, below it a larger one.
3. Similarity modulation (`enhancement`): retrieval by M_bv * (1 + gate * M_bt); for the gates see retrieval.gates.

Without the first two, images are sharp and BVSA is the vanilla method.

Beyond the paper: `continuous` moves gain and kernel size smoothly instead of in three steps, by tanh of the
similarity's position between the middle (0) and the ends (-1, 1) of the interval.

Presets. `paper`: one brain head, trained on brain-image pairs, normal fits of the current batch, gate m m^T. `code`:
two brain heads, one for images and one for texts, the mean of four cross-entropies of heads that are not normalised,
with scale softplus(s), UBP's smoothed similarities, a gate on rows, and a gallery of three views side by side.
`corrected`: the code's two heads and smoothing, unit-norm heads with scale exp(s), the paper's single gallery view, and
no gate, because both published gates read which text belongs to which test recording.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bvsa_core.encoders import InputSpec, encode
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Batch, Contrastive, LogitOptions, OutlierGate, Preset, symmetric_contrastive
from bvsa_core.methods.vanilla import AS_RELEASED, EARLY_STOP, RELEASED_TRAINING
from bvsa_core.vision.views import SHARP, Level


@dataclass(frozen=True)
class BVSAOptions(LogitOptions):
    """Options of BVSA."""

    decouple: bool = True
    """Let the gain of the blur follow the similarity to the text."""
    dynamic: bool = True
    """Let the kernel size follow the similarity to the image."""
    continuous: bool = False
    """Move gain and kernel size smoothly; a feature bank then holds a finer grid and is interpolated."""
    enhancement: str = "none"
    """Gate of the similarity modulation at retrieval: none, always, paper or code."""
    heads: int = 2
    """1: one brain head for images and texts, trained on images; 2: one for each, both trained."""
    c: float = 0.5
    """How far the gain moves from 0.5."""
    kernel_size: int = 51
    """Kernel size of a sample within the interval, in pixels."""
    shift: int = 6
    """How far the kernel size moves, in pixels."""
    alpha: float = 0.10
    """Significance level of the intervals, and of the gate paper."""
    gamma: float | None = 0.3
    """Weight of the newest similarity in the smoothed one; None fits the current batch."""
    gallery_views: int = 1
    """1: images to retrieve have gain 0.5; 3: gains 0.5 - c, 0.5 and 0.5 + c, side by side."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.c <= 0.5:
            raise UserError(f"c is {self.c}; it must be within [0, 0.5]")
        if self.kernel_size % 2 == 0 or self.shift % 2 or not 0 <= self.shift < self.kernel_size:
            sizes = f"kernel_size is {self.kernel_size} and shift {self.shift}"
            raise UserError(f"{sizes}; give an odd one and a smaller even one")


class BVSA(Contrastive):
    """One or two heads; per sample a gain and a kernel size."""

    Options = BVSAOptions
    PRESETS = {
        "corrected": Preset(),
        "paper": Preset({"heads": 1, "gamma": None, "enhancement": "paper"}),
        "code": Preset(
            {"gallery_views": 3, "enhancement": "code", **AS_RELEASED},
            {**RELEASED_TRAINING, "lr": 1e-4, "prompt": "A photo of a {concept}."},  # lr in both settings
        ),
    }
    DEVIATIONS = (
        EARLY_STOP,
        "keeps the weights of one epoch; the released code keeps those best on the test set, inter-subject on the test "
        "images as the training subjects saw them, for Top-1 and for Top-5",
        "MEG: prompts have the concept's name; the released code cuts its first word off (aardvark is empty, aircraft "
        "carrier is carrier)",
    )
    gain: Tensor  # (samples,)
    kernel_size: Tensor  # (samples,)

    def __init__(self, options: BVSAOptions, build_encoder, samples: int, shape: InputSpec):
        super().__init__(options, build_encoder, samples, shape)
        of_texts = replace(shape, embedding=shape.text_width)
        self.text_encoder = build_encoder(of_texts) if options.heads == 2 else None
        self.default_gate, self.gate_alpha = options.enhancement, options.alpha
        self.text_interval = OutlierGate(samples, options.alpha, options.gamma)
        self.image_interval = OutlierGate(samples, options.alpha, options.gamma)
        self.register_buffer("gain", torch.full((samples,), 0.5))
        kernel_size = torch.full((samples,), options.kernel_size if self._blurs else SHARP.kernel_size)
        self.register_buffer("kernel_size", kernel_size.float() if self._blurs and options.continuous else kernel_size)

    @staticmethod
    def one_embedding(options: BVSAOptions) -> bool:
        """Return whether there is one head."""
        return options.heads == 1

    @staticmethod
    def trains_texts(options: BVSAOptions) -> bool:
        """Return whether there is a head for texts: a single one is trained on images."""
        return options.heads == 2

    @property
    def _blurs(self) -> bool:
        return self.options.decouple or self.options.dynamic

    def training_levels(self) -> list[Level]:
        """Return the grid of kernel sizes and gains."""
        if not self._blurs:
            return [SHARP]
        c, size, shift = self.options.c, self.options.kernel_size, self.options.shift
        gains, sizes = [0.5 - c, 0.5, 0.5 + c], [size - shift, size, size + shift]
        if self.options.continuous:
            gains = [0.5 + c * part / 2 for part in range(-2, 3)]
            sizes = [*range(size - shift, size + shift + 1, 2)]
        gains = gains if self.options.decouple else [0.5]
        sizes = sizes if self.options.dynamic else [size]
        return [Level(k, gain) for k in sizes for gain in gains]

    def gallery_levels(self) -> list[Level]:
        """Return one level, or three gains."""
        if not self._blurs:
            return [SHARP]
        c = self.options.c
        gains = (0.5 - c, 0.5, 0.5 + c) if self.options.gallery_views == 3 else (0.5,)
        return [Level(self.options.kernel_size, gain) for gain in gains]

    def blur(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return gain and kernel size (B,) of samples."""
        return self.gain[samples], self.kernel_size[samples]

    def embed(self, recordings: Tensor, subjects: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return unit-norm embeddings (B, D) of the heads for images and for texts."""
        for_images = normalize(encode(self.encoder, recordings, subjects), dim=-1)
        if self.text_encoder is None:
            return for_images, for_images
        return for_images, normalize(encode(self.text_encoder, recordings, subjects), dim=-1)

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        for_images = for_texts = self.embed_for_loss(self.encoder, batch.recordings, batch.subjects)
        if self.text_encoder is not None:
            for_texts = self.embed_for_loss(self.text_encoder, batch.recordings, batch.subjects)
        scale = self.scale_of_logits()
        loss, image_logits = symmetric_contrastive(for_images, batch.images, scale)
        text_loss, text_logits = symmetric_contrastive(for_texts, batch.texts, scale)
        if self.text_encoder is not None:
            loss = (loss + text_loss) / 2
        if self.training:
            self._choose_blur(batch.samples, text_logits.diagonal(), image_logits.diagonal())
        return loss

    def _choose_blur(self, samples: Tensor, to_text: Tensor, to_image: Tensor) -> None:
        """Set the blur of the next epoch from similarities (B,)."""
        if self.options.decouple:
            self.gain[samples] = 0.5 + self.options.c * self._change(self.text_interval, samples, to_text)
        if self.options.dynamic:
            change = self.options.shift * self._change(self.image_interval, samples, to_image)
            self.kernel_size[samples] = self.options.kernel_size - change

    def _change(self, gate: OutlierGate, samples: Tensor, similarity: Tensor) -> Tensor:
        """Return the change (B,) in [-1, 1] of a level."""
        return gate.position(samples, similarity).tanh() if self.options.continuous else gate(samples, similarity)


METHOD = BVSA
