"""Image encoders by name: the tiny one, open_clip's, those of transformers and timm, and registered ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch

from bvsa_core.errors import validate_plugin_name
from bvsa_core.vision import clip, from_timm, from_transformers
from bvsa_core.vision.encoder import VisionEncoder

OTHERS = {module.PREFIX: module for module in (from_transformers, from_timm)}
Build = TypeVar("Build", bound=Callable[[str | None], VisionEncoder])
_registered: dict[str, Callable[[str | None], VisionEncoder]] = {}  # in this process


def register_vision_encoder(name: str) -> Callable[[Build], Build]:
    """Return a decorator that makes an image encoder of your own available by name, in this process.

    It decorates a function that takes the setting `weights` (a text or None) and returns a `VisionEncoder`, whose name,
    fingerprint and device are set when it is loaded. A run on disk holds only the name, so register the encoder before
    you load one. Banks tell encoders apart by name and weights: after a change of the code, give another name.

    Examples:
        >>> from torch import nn
        >>> @register_vision_encoder("flat")
        ... def flat(weights):
        ...     model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 16))
        ...     return VisionEncoder(model, image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> load_vision_encoder("flat").encode_images(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 16])

    Raises:
        UserError: the name is taken or not a name.
    """
    validate_plugin_name("vision encoder", name, clip.names())

    def keep(build: Build) -> Build:
        _registered[name] = build
        return build

    return keep


def load_vision_encoder(
    name: str = clip.TINY,
    weights: str | None = None,
    cache_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> VisionEncoder:
    """Load an image encoder, frozen.

    Args:
        name: "tiny", a model of open_clip (RN50, ViT-B-32, ...), hf:NAME or hf:FOLDER of transformers, timm:NAME or
            timm:FOLDER of timm, or a registered one.
        weights: a pretrained tag of open_clip, a weights file of open_clip or timm, or "random"; default: the usual.
        cache_dir: where downloaded weights are kept.
        device: device of the model.

    Raises:
        UserError: the name or the weights are unknown, or the weights cannot be found or downloaded.
    """
    if name in _registered:
        shown = f"{name}/{Path(weights).name}" if weights else name
        return replace(_registered[name](weights), name=shown).frozen(device)
    module, short = _source(name)
    return module.load(short, weights, cache_dir).frozen(device)


def check_weights(name: str, weights: str | None = None, cache_dir: str | Path | None = None) -> None:
    """Check that an encoder's weights are on this machine or can be downloaded; see `load_vision_encoder`.

    Raises:
        UserError: name or weights are unknown, or the server of the weights does not answer.
    """
    if name not in _registered:
        module, short = _source(name)
        module.check_weights(short, weights, cache_dir)


def weights_are_here(name: str, weights: str | None = None, cache_dir: str | Path | None = None) -> bool:
    """Return whether an encoder can be loaded without a download; see `load_vision_encoder`."""
    if name in _registered:
        return True
    module, short = _source(name)
    return module.weights_are_here(short, weights, cache_dir)


def image_size_of(name: str, cache_dir: str | Path | None = None) -> int:
    """Return the width of an encoder's images in pixels, without loading its weights."""
    return _sizes(name, cache_dir)[0]


def embedding_width_of(name: str, cache_dir: str | Path | None = None) -> int:
    """Return the width of an encoder's features, without loading its weights."""
    return _sizes(name, cache_dir)[1]


def _sizes(name: str, cache_dir: str | Path | None) -> tuple[int, int]:
    if name in _registered:
        encoder = _registered[name](None)
        return encoder.image_size, encoder.widths()[0]
    module, short = _source(name)
    if module is clip:
        return clip.sizes(short)
    with torch.device("meta"):  # without memory for weights
        encoder = module.load(short, clip.RANDOM, cache_dir)
        return encoder.image_size, encoder.widths()[0]


def _source(name: str) -> tuple[ModuleType, str]:
    """Return the module that loads an encoder, and the name that it knows."""
    for prefix, module in OTHERS.items():
        if name.startswith(prefix):
            return module, name.removeprefix(prefix)
    return clip, name
