"""Brain encoders: recordings (B, channels, time) to embeddings (B, embedding). One file each; its name is the encoder's."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass

from torch import nn

from bvsa_core.errors import UserError, unknown_name


@dataclass(frozen=True)
class Shape:
    """What an encoder is built for."""

    channels: int
    time: int  # samples
    embedding: int


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
    try:
        return module.build(shape, options or module.Options())
    except ValueError as error:
        raise UserError(f"encoder {name}: {error}") from error


def _module(name: str):
    if name not in names():
        raise UserError(unknown_name("encoder", name, names()))
    return importlib.import_module(f"{__name__}.{name}")
