"""Views: features of images, each under a foveated blur of its own, either computed or looked up in a bank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fovblur
from bvsa_core.errors import UserError
from bvsa_core.vision.encoder import VisionEncoder
from bvsa_core.vision.pixels import Pixels


class Level(NamedTuple):
    """A strength of the blur."""

    kernel_size: int  # pixels, odd
    gain: float  # sharpness at the fixation, 0 to 1
    sigma: float | None = None  # pixels; None is the one that OpenCV derives from the kernel size


SHARP = Level(1, 0.0)


@dataclass(frozen=True)
class Falloff:
    """Blur parameters that are the same for all images."""

    decay: float = 3.0
    """Rate at which acuity falls with eccentricity."""
    curve: str = "exp"
    """exp, linear, quadratic, log or brachistochrone."""


class Views(Protocol):
    """A callable that returns features of blurred images."""

    def __call__(self, indices: Tensor, gain: Tensor, kernel_size: Tensor) -> Tensor:
        """Return features (B, D) of images (B,), blurred with gains (B,) and odd kernel sizes (B,).

        Parts of a feature are side by side, the output unit-norm and layers not.

        Floating-point kernel sizes need not be odd or whole: each stands for the sigma that OpenCV derives from it.
        Views that are made online take sigma (B,) itself as a fourth argument, and are differentiable in it and gain.
        """


def features_at(level: Level, views: Views, image_index: Tensor) -> Tensor:
    """Return features (B, D) of images (B,) at one blur level."""
    values = [level.gain, level.kernel_size, *([] if level.sigma is None else [level.sigma])]
    return views(image_index, *(torch.full(image_index.shape, each, device=image_index.device) for each in values))


class OnlineViews:
    """Views at any level, blurred and encoded on the fly; one launch blurs a whole batch.

    Args:
        clip: the encoder.
        images: (N, 3, size, size) uint8, or where such images are kept.
        falloff: blur parameters of all images.
        encode_batch: images encoded at a time, a bound on memory.
        chunk: images whose activations are kept at a time for the gradient: blur and encoder of a chunk are computed
            again when its gradient is (gradient caching, Gao et al. 2021); default: all of a batch, computed once.
    """

    def __init__(
        self,
        clip: VisionEncoder,
        images: Tensor | Pixels,
        falloff: Falloff = Falloff(),
        encode_batch: int = 256,
        chunk: int | None = None,
    ):
        self.pixels = images if isinstance(images, Pixels) else Pixels(images, clip.device)
        self.clip, self.encode_batch, self.chunk = clip, encode_batch, chunk
        self._options: dict[str, Any] = {"decay": falloff.decay, "falloff": falloff.curve}
        self._options |= {"mean": clip.mean, "std": clip.std}

    def __call__(self, indices: Tensor, gain: Tensor, kernel_size: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Return features (B, D); see `Views`."""
        images, indices = self.pixels.rows(indices)
        if self.chunk is None or not torch.is_grad_enabled():
            return self._view(images, indices, gain, kernel_size, sigma)
        rows = (indices, gain, kernel_size, *([] if sigma is None else [sigma]))
        chunks = zip(*(each.split(self.chunk) for each in rows))
        # Keeps indices and the state of random numbers alone, until the backward pass comes to the chunk.
        return torch.cat([checkpoint(self._view, images, *chunk, use_reentrant=False) for chunk in chunks])

    def _view(
        self, images: Tensor, indices: Tensor, gain: Tensor, kernel_size: Tensor, sigma: Tensor | None = None
    ) -> Tensor:
        device, images = self.clip.device, images[indices]
        kernel_size, sigma = kernel_size.to(device), sigma if sigma is None else sigma.to(device)
        if sigma is None and kernel_size.is_floating_point():
            sigma = fovblur.sigma_from_kernel_size(kernel_size)
            kernel_size = 2 * ((kernel_size - 1) / 2).ceil().int() + 1
        blurred = fovblur.foveated_blur(images, sigma, kernel_size=kernel_size, gain=gain.to(device), **self._options)
        return torch.cat([self.clip.encode_images(part) for part in blurred.split(self.encode_batch)])


class BankedViews:
    """Views looked up in precomputed features of fixed levels, and interpolated between levels that form a grid.

    Args:
        features: (levels, N, D) on the device of the run.
        levels: the level of each slice of features.
        widths: of the parts of a feature; default: it is one.
    """

    def __init__(self, features: Tensor, levels: Sequence[Level], widths: Sequence[int] = ()):
        self.features, self.levels, self.widths = features, list(levels), [*widths] or [features.shape[-1]]
        self._kernel_sizes = torch.tensor([level.kernel_size for level in levels], device=features.device)
        self._gains = torch.tensor([level.gain for level in levels], device=features.device)

    def __call__(self, indices: Tensor, gain: Tensor, kernel_size: Tensor) -> Tensor:
        """Return features (B, D); floating-point kernel sizes are interpolated, others must be held."""
        if kernel_size.is_floating_point():
            return self._interpolate(indices, gain, kernel_size)
        return self.features[self._find(gain, kernel_size), indices]

    def _find(self, gain: Tensor, kernel_size: Tensor) -> Tensor:
        same_kernel = kernel_size[:, None] == self._kernel_sizes
        same_gain = (gain[:, None] - self._gains).abs() < 1e-6
        matches = same_kernel & (same_gain | (self._kernel_sizes == 1))  # a kernel of one pixel is sharp at any gain
        if not matches.any(dim=1).all():
            held = ", ".join(f"k={level.kernel_size} gain={level.gain:g}" for level in self.levels)
            raise UserError(f"the feature bank holds {held}, but not the requested blur level; use --views online")
        return matches.int().argmax(dim=1)

    def _interpolate(self, indices: Tensor, gain: Tensor, kernel_size: Tensor) -> Tensor:
        """Interpolate bilinearly between the four levels around each (B,), the norm of every part of a feature too."""
        mixed = lengths = torch.zeros((), device=gain.device)
        for size, size_part in _neighbours(kernel_size, self._kernel_sizes):
            for at, gain_part in _neighbours(gain, self._gains):
                corner = self.features[self._find(at, size), indices]
                part = (size_part * gain_part)[:, None]
                mixed, lengths = mixed + part * corner, lengths + part * self._norms(corner)
        factors = lengths / self._norms(mixed)  # (B, parts)
        return torch.cat([part * factor for part, factor in zip(mixed.split(self.widths, 1), factors.split(1, 1))], 1)

    def _norms(self, features: Tensor) -> Tensor:
        """Return the norms (B, parts) of the parts of features (B, D)."""
        return torch.stack([part.norm(dim=1) for part in features.split(self.widths, 1)], 1)


def _neighbours(value: Tensor, held: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the held values below and above each value (B,), clamped to their range, each with its weight (B,)."""
    held = held.unique().float()  # ascending
    value = value.float().clamp(held[0], held[-1])
    above = torch.searchsorted(held, value)
    below = (above - 1).clamp(min=0)
    part = (value - held[below]) / (held[above] - held[below]).where(above > below, 1.0)
    return [(held[below], 1 - part), (held[above], part)]
