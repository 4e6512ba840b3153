"""What every image encoder gives, whatever library it is from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bvsa_core.errors import UserError
from bvsa_core.vision.layers import pool, stages


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
    layers: tuple[int, ...] = ()  # of the image encoder, whose features are appended to its output

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
        return len(self._blocks())

    @property
    def has_texts(self) -> bool:
        """Whether it encodes texts too, to the space of images."""
        return False

    def frozen(self, device: str | torch.device = "cpu") -> VisionEncoder:
        """Return the encoder on a device, in eval mode, without gradients of weights, and with its fingerprint."""
        model = self.model.eval().requires_grad_(False).to(device)
        return replace(self, model=model, fingerprint=fingerprint(self.name, model))

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode normalised images (B, 3, image_size, image_size) to unit-norm features (B, D) float32.

        With layers, the spatial mean of each, unit-norm too, is appended to the output. Differentiable: there is a
        graph if the images, or weights of the encoder, require gradients; those of a frozen encoder do not.
        """
        return torch.cat(self._encode(images), dim=-1)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Encode texts to unit-norm features (B, D) float32, if `has_texts`."""
        raise NotImplementedError

    def widths(self) -> list[int]:
        """Return the widths of the parts of a feature: the output, and each layer."""
        blank = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
        return [part.shape[1] for part in self._encode(blank)]

    def with_layers(self, layers: Sequence[int]) -> VisionEncoder:
        """Return the same encoder with features of some layers appended to its output: 0 is the first, -1 the last."""
        if not layers:
            return self
        count = self.layer_count
        for layer in layers:
            if not -count <= layer < count:
                known = f"it has {count}, from 0 or from -{count} to -1"
                raise UserError(f"vision encoder {self.name} has no layer {layer}; {known}")
        chosen = tuple(layer % count for layer in layers)
        digest = hashlib.sha256(f"{self.fingerprint} {chosen}".encode()).hexdigest()
        return replace(self, layers=chosen, fingerprint=digest)

    def _encode(self, images: Tensor) -> list[Tensor]:
        output, layers = self._forward(images)
        return [normalize(part.float(), dim=-1) for part in (output, *layers)]

    def _output(self, images: Tensor) -> Tensor:
        """Return the model's own features (B, D) of images."""
        return self.model(images)

    def _blocks(self) -> list[nn.Module]:
        """Return the layers, first to last."""
        return stages(self.tower)

    def _forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the model's own features (B, D) of images, and the pooled outputs of `layers`, in one pass."""
        outputs: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            outputs[module] = pool(output)

        blocks = [self._blocks()[layer] for layer in self.layers]
        with ExitStack() as hooks:
            for block in blocks:
                hooks.callback(block.register_forward_hook(keep).remove)
            output = self._output(images)
        return output, [outputs[block] for block in blocks]


def fingerprint(name: str, model: nn.Module) -> str:
    """Return the SHA-256 of the name and every weight of a model."""
    digest = hashlib.sha256(name.encode())
    if "quickgelu" not in name and any(type(module).__name__ == "QuickGELU" for module in model.modules()):
        digest.update(b" QuickGELU")  # which the tag asks for; the name and the weights do not tell
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
