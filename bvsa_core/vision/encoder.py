"""What every image encoder gives, whatever library it is from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bvsa_core.errors import UserError
from bvsa_core.vision.layers import OUTPUT, Layers, find_layers, resolve


@dataclass(frozen=True)
class VisionEncoder:
    """A frozen image encoder; its model takes normalised images (B, 3, image_size, image_size) to features (B, D).

    Subclasses say where another kind of model keeps its parts, and encode texts if it can.
    """

    model: Any
    image_size: int  # pixels
    mean: tuple[float, float, float]  # of the pixels it was trained on, in [0, 1]
    std: tuple[float, float, float]
    name: str = ""  # in tables, such as "RN50/openai"
    fingerprint: str = ""  # hash of name and weights, equal only for equal models
    layers: tuple[str, ...] = (OUTPUT,)  # parts of a feature: the output, or layers; see vision.layers

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def tower(self) -> nn.Module:
        """The part of the model that encodes images."""
        return self.model

    @property
    def layer_count(self) -> int:
        """Number of layers."""
        return len(self._layers().blocks)

    @property
    def has_output(self) -> bool:
        """Whether a feature can be its output, too."""
        return True

    @property
    def has_texts(self) -> bool:
        """Whether it encodes texts too, to the space of images."""
        return False

    def frozen(self, device: str | torch.device = "cpu") -> VisionEncoder:
        """Return the encoder on a device, in eval mode, without gradients of weights, and with its fingerprint."""
        model = self.model.eval().requires_grad_(False).to(device)
        return replace(self, model=model, fingerprint=fingerprint(f"{self.name}{self._architecture()}", model))

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode normalised images (B, 3, image_size, image_size) to features (B, sum of widths) float32.

        The parts of a feature are side by side: the output is unit-norm, layers are not. Differentiable: there is a
        graph if the images, or weights of the encoder, require gradients; those of a frozen encoder do not.
        """
        return torch.cat(self._encode(images), dim=-1)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Encode texts to unit-norm features (B, D) float32.

        Raises:
            UserError: the encoder has none; see `has_texts`.
        """
        raise UserError(f"image encoder {self.name} encodes no texts; choose one with a text encoder, such as RN50")

    @torch.no_grad()
    def widths(self) -> list[int]:
        """Return the widths of the parts of a feature."""
        blank = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
        return [part.shape[1] for part in self._encode(blank)]

    def with_layers(self, layers: Sequence[str]) -> VisionEncoder:
        """Return the same encoder with these parts of a feature: output, or layers, 0 the first and -1 the last."""
        return replace(self, layers=resolve(layers, lambda: self.layer_count, self.name))

    def _architecture(self) -> str:
        """Return what the fingerprint knows of the model beside its weights."""
        return re.sub(r" at 0x[0-9a-f]+", "", repr(self.model))

    def _encode(self, images: Tensor) -> list[Tensor]:
        """Return the parts of the features of images, in one pass."""
        encode = lambda: normalize(self._output(images).float(), dim=-1)  # noqa: E731
        return [encode()] if self.layers == (OUTPUT,) else self._layers().record(self.layers, encode)

    def _output(self, images: Tensor) -> Tensor:
        """Return the model's own features (B, D) of images."""
        return self.model(images)

    def _layers(self) -> Layers:
        """Return the layers, and how what they put out becomes features."""
        return find_layers(self.tower)


def fingerprint(name: str, model: nn.Module) -> str:
    """Return the SHA-256 of the name and every weight of a model."""
    digest = hashlib.sha256(name.encode())
    if "quickgelu" not in name and any(type(module).__name__ == "QuickGELU" for module in model.modules()):
        digest.update(b" QuickGELU")  # which the tag asks for; the name and the weights do not tell
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
