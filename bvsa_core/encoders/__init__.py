"""Brain encoders, one file each, named after the file: recordings (B, channels, time) to embeddings (B, embedding).

Encoders from elsewhere are available by name too, once `register_encoder` has been called.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bvsa_core.data.dataset import RecordingAxes
from bvsa_core.encoders._shared import InputSpec
from bvsa_core.errors import UserError, unknown_name, validate_plugin_name

BRAINDECODE = "braindecode:"  # prefix of a class of braindecode.models


@dataclass(frozen=True)
class NoOptions:
    """Options of an encoder or method without options."""


_registered: dict[str, SimpleNamespace] = {}  # in this process; Options and build, as in an encoder's file
Build = TypeVar("Build", bound=Callable[[InputSpec, Any], nn.Module])


def names() -> list[str]:
    """Return the names of all encoders."""
    return sorted([*_builtin(), *_registered])


def register_encoder(name: str, options: type = NoOptions) -> Callable[[Build], Build]:
    """Return a decorator that makes a brain encoder of your own available by name, in this process.

    It decorates a function, or an nn.Module class, that takes (InputSpec, options) and returns a module from recordings
    (B, channels, time) to embeddings (B, shape.embedding). A module with `uses_subject_ids = True` is called with
    (recordings, subjects); subjects (B,) int64 are -1 for unknown ones. A run on disk holds only the name, so register
    the encoder before you load one.

    Examples:
        >>> @register_encoder("flat")
        ... def flat(shape, options):
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(shape.channels * shape.time, shape.embedding))
        >>> build("flat", InputSpec(channels=17, time=100, embedding=64))(torch.zeros(2, 17, 100)).shape
        torch.Size([2, 64])

    Args:
        name: of the encoder.
        options: dataclass of its options, every field with a default.

    Raises:
        UserError: the name is taken or not a name, or options is not a dataclass.
    """
    validate_plugin_name("encoder", name, _builtin())
    if not (isinstance(options, type) and is_dataclass(options)):
        raise UserError(f"encoder {name!r}: options is {options!r}; give a dataclass, every field with a default")

    def keep(build: Build) -> Build:
        _registered[name] = SimpleNamespace(Options=options, build=build)
        return build

    return keep


def options_class(name: str) -> type:
    """Return the dataclass of an encoder's options."""
    return _module(name).Options


def build(name: str, shape: InputSpec, options: object | None = None, axes: RecordingAxes | None = None) -> nn.Module:
    """Build an encoder by name.

    Args:
        name: of the encoder.
        shape: of its input and output.
        options: an instance of its options; default: those.
        axes: channels and times of the recordings, which pretrained encoders need.

    Raises:
        UserError: there is no such encoder, or it cannot take recordings of this shape.
    """
    module = _module(name)
    for field in ("channels", "time", "embedding", "subjects"):
        if (value := getattr(shape, field)) < 1:
            raise UserError(f"encoder {name}: {field} is {value}; it must be at least 1")
    try:
        inputs = (axes,) if getattr(module, "uses_axes", False) else ()
        return module.build(shape, options or module.Options(), *inputs)
    except ValueError as error:
        raise UserError(f"encoder {name}: {error}") from error


def encode(encoder: nn.Module, recordings: Tensor, subjects: Tensor | None = None) -> Tensor:
    """Return embeddings (B, embedding) of recordings (B, channels, time).

    Encoders with `uses_subject_ids` also get the subjects (B,) int64; -1 is an unknown one.
    """
    return encoder(recordings, subjects) if getattr(encoder, "uses_subject_ids", False) else encoder(recordings)


def load_pretrained(method: nn.Module) -> list[str]:
    """Load the pretrained weights of a method's encoders, if they have any; return what was left out of them.

    Raises:
        UserError: the weights cannot be read or downloaded, or are not those of the encoder.
    """
    return list(dict.fromkeys(filter(None, (encoder.load_pretrained() for encoder in _pretrained(method)))))


def pretrained_note(method: nn.Module) -> str | None:
    """Return what readers of scores have to know of a method's pretrained encoders; None if it has none."""
    return " and ".join(dict.fromkeys(encoder.note for encoder in _pretrained(method))) or None


def _pretrained(method: nn.Module) -> list[Any]:
    return [module for module in method.modules() if hasattr(module, "load_pretrained")]


@torch.no_grad()
def initialise(encoder: nn.Module, std: float) -> None:
    """Draw weights of convolutions and linear layers from N(0, std^2), of batch normalisation from N(1, std^2)."""
    for module in encoder.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            module.weight.normal_(0.0, std)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.normal_(1.0, std)
            module.bias.zero_()


def _module(name: str):
    """Return the module, or registered namespace, with Options and build."""
    if name.startswith(BRAINDECODE):
        from bvsa_core.encoders import _braindecode

        return _braindecode.encoder(name.removeprefix(BRAINDECODE))
    if name in _registered:
        return _registered[name]
    if name not in _builtin():
        problem = unknown_name("encoder", name, [*names(), f"{BRAINDECODE}CLASS"])
        raise UserError(f"{problem}, or register your own first")
    return importlib.import_module(f"{__name__}.{name}")


def _builtin() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
