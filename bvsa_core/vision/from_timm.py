"""Image encoders of timm: timm:NAME or timm:NAME.TAG, or timm:FOLDER with config.json and model.safetensors.

The output is the feature that the model's classifier gets. Weights are read from safetensors only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from bvsa_core.errors import UserError, did_you_mean
from bvsa_core.vision.clip import RANDOM
from bvsa_core.vision.downloads import check_reachable
from bvsa_core.vision.encoder import VisionEncoder

PREFIX = "timm:"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def load(name: str, weights: str | None, cache_dir: str | Path | None) -> VisionEncoder:
    """Load an encoder on the CPU; see `loading.load_vision_encoder`."""
    check_weights(name, weights, cache_dir)
    try:
        model = _model(name, weights, cache_dir)
    except Exception as error:  # timm does not wrap the errors of its readers
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"weights of {PREFIX}{name} cannot be loaded ({detail}); give another file or name") from error
    about: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    channels, height, width = about["input_size"]
    if channels != 3 or height != width:
        raise UserError(
            f"vision encoder {PREFIX}{name} takes {channels} x {height} x {width} images; choose a square one"
        )
    mean, std = tuple(about["mean"]), tuple(about["std"])
    shown = PREFIX + (Path(name).resolve().name if Path(name).is_dir() else name)
    shown += f"/{Path(weights).name}" if weights else ""
    return VisionEncoder(model, height, mean, std, shown)  # type: ignore[arg-type]


def check_weights(name: str, weights: str | None = None, cache_dir: str | Path | None = None) -> None:
    """Check that an encoder's weights are on this machine or can be downloaded; see `loading.check_weights`."""
    import timm

    if Path(name).is_dir():
        if missing := [file for file in (CONFIG, WEIGHTS) if not (Path(name) / file).is_file()]:
            raise UserError(
                f"vision encoder {PREFIX}{name}: {' and '.join(missing)} missing in the folder; copy them there"
            )
    elif not timm.is_model(name):
        nearest = did_you_mean(name.partition(".")[0], timm.list_models()) or ";"
        raise UserError(f"unknown vision encoder {PREFIX}{name}{nearest} timm.list_pretrained() lists those of timm")
    if weights not in (None, RANDOM) and not (Path(weights).is_file() and Path(weights).suffix == ".safetensors"):
        remedy = f"give a .safetensors file, or {RANDOM!r}"
        raise UserError(f"weights are {weights!r}, which is no weights file of {PREFIX}{name}; {remedy}")
    if not weights_are_here(name, weights, cache_dir):
        check_reachable(f"weights of {PREFIX}{name}", _repository(name))


def weights_are_here(name: str, weights: str | None = None, cache_dir: str | Path | None = None) -> bool:
    """Return whether an encoder can be loaded without a download."""
    from huggingface_hub import try_to_load_from_cache

    if weights or Path(name).is_dir():
        return True
    return isinstance(try_to_load_from_cache(_repository(name), WEIGHTS, cache_dir), str)


def _model(name: str, weights: str | None, cache_dir: str | Path | None) -> nn.Module:
    """Return a model without classifier."""
    import timm
    from huggingface_hub import hf_hub_download

    source = f"local-dir:{name}" if Path(name).is_dir() else name
    if weights == RANDOM:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return timm.create_model(source, pretrained=False, num_classes=0)
    file = weights or (Path(name) / WEIGHTS if Path(name).is_dir() else None)
    file = file or hf_hub_download(_repository(name), WEIGHTS, cache_dir=cache_dir)
    state = {"state_dict": safetensors.torch.load_file(file), "source": "", "custom_load": False}
    # Strict: no weight may be missing, the classifier's included, which then goes.
    model: Any = timm.create_model(source, pretrained=True, pretrained_cfg_overlay=state)
    model.reset_classifier(0)
    return model


def _repository(name: str) -> str:
    """Return the repository of the hub that has a model's weights."""
    import timm

    try:
        about = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{name.partition('.')[0]}.*")]
        raise UserError(f"unknown vision encoder {PREFIX}{name} ({error}); its tags are {', '.join(tags)}") from error
    if about is None or not about.hf_hub_id:
        raise UserError(
            f"{PREFIX}{name} has no pretrained weights on the hub; give a file with --weights, or {RANDOM!r}"
        )
    return about.hf_hub_id
