"""View sources: features of images, each under a foveated blur of its own.

Methods ask for (indices, gain, kernel size) and cannot tell whether the features are computed or looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

import fovblur
from bvsa_core.errors import UserError
from bvsa_core.vision.clip import Clip


class Level(NamedTuple):
    """One strength of the blur: how wide (odd pixels), and how sharp at the fixation (0 to 1)."""

    kernel_size: int
    gain: float


SHARP = Level(1, 0.0)


@dataclass(frozen=True)
class Falloff:
    """The part of the blur that is the same for all images."""

    decay: float = 3.0
    """Rate at which acuity falls with eccentricity."""
    curve: str = "exp"
    """exp, linear, quadratic, log or brachistochrone."""


class Views(Protocol):
    """Unit-norm features (B, D) of images by index (B,), blurred with gains (B,) and odd kernel sizes (B,)."""

    def __call__(self, indices: Tensor, gain: Tensor, kernel_size: Tensor) -> Tensor: ...


class OnlineViews:
    """Blurs and encodes on the fly: any level, a whole batch in one launch of the blur.

    Args:
        images: (N, 3, size, size) uint8, kept where it is.
        encode_batch: images encoded at a time, a bound on memory.
    """

    def __init__(self, clip: Clip, images: Tensor, falloff: Falloff = Falloff(), encode_batch: int = 256):
        self.clip, self.images, self.falloff, self.encode_batch = clip, images, falloff, encode_batch

    def __call__(self, indices: Tensor, gain: Tensor, kernel_size: Tensor) -> Tensor:
        device = self.clip.device
        images = self.images[indices.to(self.images.device)].to(device, non_blocking=True)
        blurred = fovblur.foveated_blur(
            images,
            kernel_size=kernel_size.to(device),
            gain=gain.to(device),
            decay=self.falloff.decay,
            falloff=self.falloff.curve,
            mean=self.clip.mean,
            std=self.clip.std,
        )
        return torch.cat([self.clip.encode_images(part) for part in blurred.split(self.encode_batch)])


class BankedViews:
    """Looks features up that were computed before, for a fixed set of levels.

    Args:
        features: (levels, N, D) unit-norm, on the device of the run.
        levels: which level each slice of features holds.
    """

    def __init__(self, features: Tensor, levels: Sequence[Level]):
        self.features = features
        self.levels = list(levels)
        device = features.device
        self._kernel_sizes = torch.tensor([level.kernel_size for level in levels], device=device)
        self._gains = torch.tensor([level.gain for level in levels], device=device)

    def __call__(self, indices: Tensor, gain: Tensor, kernel_size: Tensor) -> Tensor:
        same_kernel = kernel_size[:, None] == self._kernel_sizes
        same_gain = (gain[:, None] - self._gains).abs() < 1e-6
        matches = same_kernel & (same_gain | (self._kernel_sizes == 1))  # a kernel of one pixel is sharp at any gain
        level = matches.int().argmax(dim=1)
        if not matches.any(dim=1).all():
            held = ", ".join(f"k={level.kernel_size} gain={level.gain:g}" for level in self.levels)
            raise UserError(f"a blur level is asked for that the feature bank does not hold ({held}); use --views online")
        return self.features[level, indices]
