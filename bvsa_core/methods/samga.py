"""SAMGA: subject-aware multi-granularity alignment (arXiv 2604.17782).

Images: features of several layers, not normalised, go through a linear map (shared by layers of one width), then
through one for each layer. A router weights the layers, and their sum goes through a last map, which is shared with
recordings: their encoder is followed by a linear map of its own and by this one.

The router learns global weights, and in training adds a bias of the subject, which is dropped for some samples; images
are retrieved by the global weights. The first stage of a training mixes the contrastive loss with the maximum mean
discrepancy (MMD) of the two sets of embeddings. In the second the shared map is frozen, the optimiser starts afresh
with a smaller learning rate, and the loss is the contrastive one alone. Its scale is fixed.

The preset `code` follows the released code: in the contrastive loss images are normalised and recordings are not, and
the scale is softplus(ln(1 / 0.07)). `corrected` normalises both, at the scale 1 / 0.07.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import Optimizer

from bvsa_core.encoders import InputSpec, encode
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Batch, Contrastive, LogitOptions, Preset, symmetric_contrastive
from bvsa_core.methods.vanilla import AS_RELEASED

SIGMAS = (0.1, 0.2, 0.5, 1.0, 2.0)  # of the kernels of the MMD


@dataclass(frozen=True)
class SAMGAOptions(LogitOptions):
    """Options of SAMGA."""

    hidden: int = 1024
    """Width of the brain encoder's output, and of images after the first map."""
    width: int = 512
    """Width of the embeddings."""
    subject_dropout: float = 0.3
    """Share of training samples whose layers are weighted without the bias of their subject."""
    coarse_epochs: int = 20
    """Epochs of the first stage, at most half of all."""
    mmd_weights: tuple[float, float] = (0.9, 0.5)
    """Weight of the MMD in the first and in the last epoch of the first stage; the contrastive loss has the rest."""
    fine_lr: float = 5e-5
    """Learning rate of the second stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("subject_dropout", "mmd_weights"):
            value = getattr(self, name)
            if not all(0 <= each <= 1 for each in (value if isinstance(value, tuple) else (value,))):
                raise UserError(f"{name} is {value}; it must be between 0 and 1")
        for name, least in (("hidden", 1), ("width", 1), ("coarse_epochs", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not self.fine_lr > 0:
            raise UserError(f"fine_lr is {self.fine_lr}; it must be positive")


class Router(nn.Module):
    """Weights of layers: a softmax of global logits, and in training of the subject's bias.

    The logits start at minus the distance to the middle layer, in units of the smallest distance of two layers.

    Args:
        layers: numbers of the layers.
        subjects: how many are trained on.
        dropout: probability that a sample's weights are drawn without its subject's bias, in training.
    """

    def __init__(self, layers: Sequence[int], subjects: int, dropout: float):
        super().__init__()
        ordered = sorted({*layers})
        step = min((after - before for before, after in pairwise(ordered)), default=1)
        distance = torch.tensor([*layers]) - (ordered[0] + ordered[-1]) / 2
        self.logits = nn.Parameter(-distance.abs() / step)
        self.bias = nn.Parameter(torch.zeros(subjects, len(layers)))
        self.dropout = dropout

    def forward(self, subjects: Tensor | None) -> Tensor:
        """Return weights (B, layers) for subjects (B,), -1 for unknown ones; in evaluation, (1, layers) for all."""
        if not self.training or subjects is None:
            return self.logits.softmax(0)[None]
        kept = (torch.rand(len(subjects), device=subjects.device) >= self.dropout) & (subjects >= 0)
        return (self.logits + self.bias[subjects.clamp(min=0)] * kept[:, None]).softmax(1)


class SAMGA(Contrastive):
    """No blur, no state; the target is several layers."""

    Options = SAMGAOptions
    TRAINING = {"target": "learned", "batch_size": 512, "epochs": 60, "augment": ["smooth"], "augment_once": True}
    INTER_TRAINING = {"encoder": "tsconv", "channels": "all", "batch_size": 1024, "epochs": 50, "lr": 1e-4}
    PRESETS = {"corrected": Preset(), "code": Preset(AS_RELEASED)}
    DEVIATIONS = (
        "takes every layer of the run's image encoder and its output, unless target names layers; the released code "
        "takes blocks 20, 24, 28, 32 and 36 of InternViT-6B",
        "keeps the weights of the last epoch; the released code keeps those with the best Top-1 on the test images, "
        "and stops after 10 epochs without a better one",
        "layers of one width share their first map; in the released code all layers have one width",
    )
    uses_texts = False
    takes_parts = True
    compares_texts = False

    def __init__(self, options: SAMGAOptions, build_encoder, samples: int, shape: InputSpec):
        super().__init__(options, build_encoder, samples, replace(shape, embedding=options.hidden))
        self.logit_scale.requires_grad_(False)
        self.widths = list(shape.parts) or [shape.embedding]
        hidden, width = options.hidden, options.width
        self.first_maps = nn.ModuleDict({str(each): nn.Linear(each, hidden) for each in dict.fromkeys(self.widths)})
        self.layer_maps = nn.ModuleList(nn.Linear(hidden, width) for _ in self.widths)
        self.brain_map, self.shared_map = nn.Linear(hidden, width), nn.Linear(width, width)
        layers = shape.layers or range(len(self.widths))
        self.router = Router(layers, shape.subjects, options.subject_dropout)

    @property
    def coarse_epochs(self) -> int:
        """Epochs of the first stage."""
        return min(self.options.coarse_epochs, self.epochs // 2)

    def parameter_groups(self) -> list[dict]:
        """Return the parameters of the optimiser: all others, and the shared map."""
        shared = list(self.shared_map.parameters())
        others = [each for each in self.parameters() if each.requires_grad and not any(each is one for one in shared)]
        return [{"params": others}, {"params": shared}]

    def start_epoch(self, optimiser: Optimizer) -> None:
        """Begin the second stage when it is time: forget the optimiser's moments, and freeze the shared map."""
        if self.epoch == self.coarse_epochs:
            optimiser.state.clear()
            for group, lr in zip(optimiser.param_groups, (self.options.fine_lr, 0.0)):
                # At a rate of 0 the map stays part of the graph, which DDP takes to be the same all along.
                group["lr"] = group["initial_lr"] = lr  # the second one is what a schedule starts from

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        brain = self._map_brain(batch.recordings, batch.subjects)
        images = self._map_images(batch.images, batch.subjects)
        compared = normalize(brain, dim=-1) if self.options.unit_norm else brain
        contrast, _ = symmetric_contrastive(compared, normalize(images, dim=-1), self.scale_of_logits())
        if self.epoch >= self.coarse_epochs:
            return contrast
        first, last = self.options.mmd_weights
        weight = first + (last - first) * self.epoch / max(1, self.coarse_epochs - 1)
        return weight * squared_mmd(brain, images) + (1 - weight) * contrast

    def embed(self, recordings: Tensor, subjects: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return unit-norm embeddings (B, width) of recordings, to compare with images and with texts."""
        brain = normalize(self._map_brain(recordings, subjects), dim=-1)
        return brain, brain

    def embed_images(self, features: Tensor) -> Tensor:
        """Return unit-norm embeddings of images from their features (levels, M, sum of the layers' widths)."""
        return normalize(torch.stack([self._map_images(level, None) for level in features]), dim=-1)

    def _map_brain(self, recordings: Tensor, subjects: Tensor | None) -> Tensor:
        return self.shared_map(self.brain_map(encode(self.encoder, recordings, subjects)))

    def _map_images(self, features: Tensor, subjects: Tensor | None) -> Tensor:
        parts = features.split(self.widths, dim=-1)
        mapped = [second(self.first_maps[str(part.shape[-1])](part)) for second, part in zip(self.layer_maps, parts)]
        weights = self.router(subjects)
        return self.shared_map((weights[..., None] * torch.stack(mapped, dim=1)).sum(1))


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Return the unbiased estimate of the squared MMD of two samples (N, D), the mean over RBF kernels; 0 for N = 1."""
    count = len(x)
    both = torch.cat([x, y])
    both = both.to(torch.promote_types(both.dtype, torch.float32))
    both = both - both.mean(0).detach()  # distances stay; the products below lose fewer digits
    squares = both.square().sum(1)
    with torch.autocast(both.device.type, enabled=False):
        distances = (squares[:, None] + squares - 2 * both @ both.T).clamp(min=0)
    kernel = torch.stack([(-distances / (2 * sigma**2)).exp() for sigma in SIGMAS]).mean(0)
    within = kernel[:count, :count], kernel[count:, count:]
    pairs = max(1, count * (count - 1))
    same = sum((each.sum() - each.diagonal().sum()) / pairs for each in within)
    return same - 2 * kernel[:count, count:].mean() if count > 1 else 0 * both.sum()


METHOD = SAMGA
