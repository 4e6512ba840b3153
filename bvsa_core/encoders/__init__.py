"""Brain encoders: recordings (B, channels, time) to embeddings (B, embedding). One file each; its name is the encoder's."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bvsa_core.errors import UserError, unknown_name
from bvsa_core.parallel import share_out

BRAINDECODE = "braindecode:"  # and the name of a class of braindecode.models


@dataclass(frozen=True)
class Shape:
    """What an encoder is built for."""

    channels: int
    time: int  # samples
    embedding: int
    subjects: int = 1  # whose recordings it is trained on


def names() -> list[str]:
    """Every encoder that can be asked for by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def options_class(name: str) -> type:
    """The dataclass of an encoder's options.

    Raises:
        UserError: there is no such encoder.
    """
    return _module(name).Options


def build(name: str, shape: Shape, options: object | None = None) -> nn.Module:
    """An encoder by name.

    Raises:
        UserError: there is no such encoder, or it cannot take recordings of this shape.
    """
    module = _module(name)
    for field in ("channels", "time", "embedding", "subjects"):
        if getattr(shape, field) < 1:
            raise UserError(f"encoder {name}: {field} is {getattr(shape, field)}; it must be at least 1")
    try:
        return module.build(shape, options or module.Options())
    except ValueError as error:
        raise UserError(f"encoder {name}: {error}") from error


def encode(encoder: nn.Module, recordings: Tensor, subjects: Tensor | None = None) -> Tensor:
    """Embeddings (B, embedding); encoders that tell subjects apart learn whose each recording is (B,), -1 for a stranger's."""
    if getattr(encoder, "takes_subjects", False):
        return share_out(encoder, recordings, subjects, training=encoder.training)
    return share_out(encoder, recordings, training=encoder.training)


@torch.no_grad()
def initialise(encoder: nn.Module, std: float) -> None:
    """Draw the weights of convolutions and linear maps from N(0, std^2), those of batch normalisation from N(1, std^2)."""
    for module in encoder.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            module.weight.normal_(0.0, std)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.normal_(1.0, std)
            module.bias.zero_()


def _module(name: str):
    if name.startswith(BRAINDECODE):
        from bvsa_core.encoders import _braindecode

        return _braindecode.encoder(name.removeprefix(BRAINDECODE))
    if name not in names():
        raise UserError(unknown_name("encoder", name, [*names(), f"{BRAINDECODE}CLASS"]))
    return importlib.import_module(f"{__name__}.{name}")
