"""The folder of a decoder.

    FOLDER/config.json          settings, and what the method was trained on
    FOLDER/model.safetensors    weights and per-sample state
    FOLDER/seen.json            concepts and checksums of the training images, so that a test on them is noticed
    FOLDER/README.md            the model card, with the protocol

Reading takes these as data: nothing is unpickled or executed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch

import bvsa_core
from bvsa_core.decoder.memory_data import TrainingSet
from bvsa_core.encoders import InputSpec
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import write_atomically
from bvsa_core.io.safe_readers import read_arrays
from bvsa_core.io.text_files import read_json
from bvsa_core.io.typed import build
from bvsa_core.methods.base import Method
from bvsa_core.retrieval.gates import Reliability
from bvsa_core.retrieval.result import LayerSelection
from bvsa_core.training.config import GIVEN, RunConfig, from_dict, to_dict
from bvsa_core.training.run import build_method
from bvsa_core.training.run_data import RunData

FORMAT = 1
CONFIG, WEIGHTS, SEEN, CARD = "config.json", "model.safetensors", "seen.json", "README.md"
PLACES = ("data", "bank", "cache_dir", *GIVEN, "texts", "concepts", "device")  # of a machine, and not saved
_USUAL_PLACES = {name: getattr(RunConfig, name) for name in PLACES}
_OF_IMAGES = ("concepts", "images")  # fields of TrainingSet in seen.json
_REMEDY = "save the decoder again"


@dataclass(frozen=True)
class State:
    """What is known of a trained method beside its weights."""

    config: RunConfig
    features: int  # width of given features; 0 if the target is an image encoder
    shape: InputSpec
    epoch: int
    reliability: Reliability | None
    training: TrainingSet
    layers: LayerSelection | None = None  # of the target, if it was chosen among them


@dataclass(frozen=True)
class _Saved:
    """Content of config.json."""

    format: int
    settings: dict[str, Any]
    features: int
    shape: InputSpec
    epoch: int
    reliability: Reliability | None
    training: dict[str, Any]
    layers: LayerSelection | None = None


def write(folder: Path, state: State, method: Method, card: str) -> None:
    """Write the files of a trained method."""
    training = asdict(state.training)
    seen = {name: training.pop(name) for name in _OF_IMAGES}
    content = {
        "format": FORMAT,
        "fovblur": bvsa_core.__version__,
        "settings": to_dict(replace(state.config, **_USUAL_PLACES)),
        "features": state.features,
        "shape": asdict(state.shape),
        "epoch": state.epoch,
        "reliability": asdict(state.reliability) if state.reliability else None,
        "training": training,
        "layers": asdict(state.layers) if state.layers else None,
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in method.state_dict().items()}
    files = {WEIGHTS: safetensors.torch.save(weights), CARD: card.encode()}
    files |= {name: json.dumps(each, indent=1).encode() + b"\n" for name, each in ((CONFIG, content), (SEEN, seen))}
    for name, part in files.items():
        write_atomically(folder / name, part)


def read(folder: Path, places: dict[str, Any]) -> tuple[State, Method]:
    """Read what `write` wrote, with settings of this machine.

    Raises:
        UserError: a file is missing, damaged, or of another version.
    """
    path = folder / CONFIG
    content = read_json(path, _REMEDY)
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: format {content.get('format')!r}, where this release reads {FORMAT}; {_REMEDY}")
    saved = build(_Saved, content, str(path), _REMEDY)
    try:
        config = replace(from_dict(saved.settings), **{**_USUAL_PLACES, **places})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    seen = read_json(folder / SEEN, _REMEDY)
    training = build(TrainingSet, {**saved.training, **seen}, f"{folder}: training", _REMEDY)
    sizes = len(training.axes.channels), len(training.axes.times)
    if sizes != (saved.shape.channels, saved.shape.time) or training.axes.problem() or training.samples < 1:
        raise UserError(f"{path}: shape, axes and samples contradict each other; {_REMEDY}")
    weights = read_arrays(folder / WEIGHTS)
    try:
        method = build_method(config, saved.shape, training.samples, RunData(config), training.axes)
        method.load_state_dict(weights)
    except (RuntimeError, MemoryError) as error:  # of sizes that no memory holds, or other weights
        detail = str(error).splitlines()[-1].strip()
        raise UserError(f"{folder / WEIGHTS}: not the weights of {CONFIG} ({detail}); {_REMEDY}") from error
    about = saved.features, saved.shape, saved.epoch, saved.reliability, training, saved.layers
    return State(config, *about), method
