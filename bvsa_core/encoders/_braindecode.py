"""Any class of braindecode.models as an encoder, by its name, also with pretrained weights (optional dependency).

Pretrained models get recordings as they know them: channels by name, at their sampling rate, in whole patches.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import warnings
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from bvsa_core.encoders._shared import InputSpec
from bvsa_core.errors import UserError, first_few, unknown_name
from bvsa_core.io.safe_readers import read_arrays
from bvsa_core.io.text_files import read_json

if TYPE_CHECKING:
    from bvsa_core.data.dataset import RecordingAxes

RANDOM = "random"  # weights
RATE = 250.0  # Hz, of recordings that do not say it
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # in a folder or repository that braindecode wrote
HEAD = "final_layer"  # of braindecode's classes; a new one gives embeddings
# Parameters with a row for each channel or patch, and their axis: the first rows are those of fewer.
_FIRST_ROWS = {"BIOT": ("encoder.channel_tokens.weight", 0), "Labram": ("temporal_embedding", 1)}
_ANY_CHANNELS = ("BIOT", "CBraMod", "Labram", "REVE")  # classes whose weights are not of one list of channels
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_NOT_ARCHITECTURE = {"n_outputs", "n_chans", "n_times", "return_encoder_output", "return_feature"}


@dataclass(frozen=True)
class Options:
    """Options of a class of braindecode.models."""

    sampling_rate: float | None = None
    """Of the recordings, in Hz; some classes derive kernel sizes from it. Default: what the recordings say, or 250."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the class, by name."""
    pretrained: str | None = None
    """Weights of Labram, REVE, CBraMod, BIOT, ...: a .safetensors, .pt or .pth file, a folder that braindecode saved, a
    repository of the Hugging Face Hub, or 'random' for none. Recordings are resampled, and channels found by name."""
    model_rate: float = 200.0
    """Sampling rate in Hz of what a pretrained class was trained on, to which recordings are resampled."""
    frozen: bool = False
    """Train only the last layer of a pretrained class."""

    def __post_init__(self) -> None:
        for name in ("sampling_rate", "model_rate"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise UserError(f"{name} is {value}; it must be positive")
        if self.frozen and self.pretrained is None:
            raise UserError("frozen is true, and there are no pretrained weights; give them with pretrained")


def encoder(class_name: str) -> SimpleNamespace:
    """Return Options and build, as in an encoder's file, for a class of braindecode.models."""
    if importlib.util.find_spec("braindecode") is None:
        raise UserError(f"encoder braindecode:{class_name} needs braindecode; pip install 'fovblur[braindecode]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MNE, about montages that braindecode reads
        models = importlib.import_module("braindecode.models")
    classes = inspect.getmembers(models, inspect.isclass)
    known = [name for name, value in classes if issubclass(value, nn.Module)]  # sorted
    if class_name not in known:
        raise UserError(unknown_name("class of braindecode.models", class_name, known))

    def build(shape: InputSpec, options: Options, axes: RecordingAxes | None = None) -> nn.Module:
        rate = options.sampling_rate or (axes.sampling_rate if axes else None)
        try:
            if options.pretrained is not None:
                return Pretrained(models, class_name, shape, options, options.pretrained, axes, rate)
            sizes = {"n_chans": shape.channels, "n_times": shape.time, "n_outputs": shape.embedding}
            return getattr(models, class_name)(**{**sizes, "sfreq": rate or RATE, **options.arguments})
        except Exception as error:  # each class has its own errors
            detail = str(error).splitlines()[0] if str(error) else type(error).__name__
            size, given = f"{shape.channels} channels, {shape.time} time points", options.arguments
            raise ValueError(f"{detail} (built for {size}, encoder_options.arguments {given})") from error

    return SimpleNamespace(Options=Options, build=build, uses_axes=True)


class Pretrained(nn.Module):
    """A model of braindecode with a new last layer, which takes recordings (B, channels, time) as the data have them.

    Its weights are random until `load_pretrained`, so that a trained run can be loaded without the pretrained ones.

    Raises:
        ValueError: the recordings do not say their channels or rate, or the model knows none of the channels.
    """

    kept: Tensor  # (channels,) int64, those that the model gets
    resampling: Tensor  # (time, time of the model)

    def __init__(
        self,
        models: ModuleType,
        class_name: str,
        shape: InputSpec,
        options: Options,
        source: str,
        axes: RecordingAxes | None,
        rate: float | None,
    ):
        super().__init__()
        if axes is None or rate is None:
            missing = "names of channels" if axes is None else "a sampling rate; give --encoder_options.sampling_rate"
            raise ValueError(f"pretrained models need recordings with {missing}")
        kind, self.options, self.source, self.names = getattr(models, class_name), options, source, axes.channels
        known = _known_channels(models, class_name)
        kept = [i for i, name in enumerate(axes.channels) if known is None or name.upper() in known]
        if not kept:
            raise ValueError(f"{class_name} knows none of the channels {first_few(axes.channels)}")
        resampling = resampling_matrix(shape.time, rate, options.model_rate)
        time = resampling.shape[1]
        if patch := {**_defaults(kind), **options.arguments}.get("patch_size"):
            resampling = pad(resampling, (0, -time % patch))
        elif class_name == "BIOT":  # whose spectra are those of a second
            resampling = pad(resampling, (0, max(0, round(options.model_rate) - time)))
        sizes: dict[str, Any] = {"n_chans": len(kept), "n_times": resampling.shape[1], "n_outputs": shape.embedding}
        self.inputs: dict[str, Any] = {}  # of the model, beside recordings
        if known is not None:
            names = [known[axes.channels[i].upper()] for i in kept]
            if class_name == "Labram":
                self.inputs["ch_names"] = names
            else:
                sizes["chs_info"] = [{"ch_name": name} for name in names]
        self.model = kind(**{**sizes, "sfreq": options.model_rate, **options.arguments})
        if not hasattr(self.model, HEAD):
            raise ValueError(f"{class_name} has no {HEAD}, which pretrained models train anew")
        if options.frozen:
            self.model.requires_grad_(False)
            getattr(self.model, HEAD).requires_grad_(True)
        self.register_buffer("kept", torch.tensor(kept), persistent=False)
        self.register_buffer("resampling", resampling, persistent=False)
        repository = _REPOSITORY.fullmatch(source) and not Path(source).suffix
        weights = source if repository else Path(source).name
        dropped = [name for i, name in enumerate(axes.channels) if i not in kept]
        self.note = "; ".join(
            [
                f"braindecode's {class_name} with {weights} weights",
                "frozen but for a new last layer" if options.frozen else "tuned, with a new last layer",
                f"resampled from {rate:g} to {options.model_rate:g} Hz"
                if rate != options.model_rate
                else f"{rate:g} Hz",
                f"padded from {time} to {len(resampling[0])} time points"
                if len(resampling[0]) > time
                else f"{time} time points",
                f"{len(kept)} of {shape.channels} channels" + (f", without {first_few(dropped)}" if dropped else ""),
            ]
        )

    def forward(self, recordings: Tensor) -> Tensor:
        """Return embeddings (B, embedding)."""
        return self.model(recordings[:, self.kept] @ self.resampling, **self.inputs)

    def train(self, mode: bool = True) -> Pretrained:
        """Set the mode of all layers; those that are frozen stay in evaluation."""
        super().train(mode)
        if self.options.frozen:
            self.model.eval()
            getattr(self.model, HEAD).train(mode)
        return self

    def load_pretrained(self) -> str:
        """Load the pretrained weights, all but the last layer's, and return what of them was left out.

        Raises:
            UserError: the weights cannot be read or downloaded, or are not those of this model.
        """
        source = self.source
        if source == RANDOM:
            return ""
        weights, config = _read(source)
        self._compare(config)
        own, kind = self.model.state_dict(), type(self.model).__name__
        mapping = getattr(self.model, "mapping", None) or {}
        weights = {mapping.get(name, name): value for name, value in weights.items()}
        name, axis = _FIRST_ROWS.get(kind, ("", 0))
        if name in weights and weights[name].ndim == own[name].ndim:
            weights[name] = weights[name].narrow(axis, 0, min(weights[name].shape[axis], own[name].shape[axis]))
        head = {name for name in {*own, *weights} if name.startswith(f"{HEAD}.")}
        missing, unknown = sorted(own.keys() - weights.keys() - head), sorted(weights.keys() - own.keys() - head)
        others = [
            f"{name} {list(weights[name].shape)} where the model has {list(own[name].shape)}"
            for name in own.keys() & weights.keys() - head
            if weights[name].shape != own[name].shape
        ]
        if missing or others:
            problems = {"missing": missing, "of another shape": sorted(others), "unknown": unknown}
            listed = "; ".join(f"{len(each)} {what} ({first_few(each, 3)})" for what, each in problems.items() if each)
            remedy = "give weights of this class, and its arguments with --encoder_options.arguments"
            raise UserError(f"pretrained {source}: not the weights of this {kind}: tensors are {listed}; {remedy}")
        self.model.load_state_dict({name: weights[name] for name in own.keys() - head}, strict=False)
        return f"{len(unknown)} unknown tensors left out ({first_few(unknown, 3)})" if unknown else ""

    def _compare(self, config: dict[str, Any]) -> None:
        """Raise UserError if a model's config.json contradicts the arguments, rate or channels."""
        source, options, kind = self.source, self.options, type(self.model)
        given = json.loads(json.dumps({**_defaults(kind), **options.arguments}, default=str))
        differing = {
            name: value
            for name, value in config.items()
            if name in given
            and name not in _NOT_ARCHITECTURE
            and isinstance(value, int | list)
            and value != given[name]
        }
        rate, channels = config.get("sfreq"), _names_of(config)
        if differing:
            arguments = json.dumps({**options.arguments, **differing})
            raise UserError(f"pretrained {source} has other arguments; give --encoder_options.arguments '{arguments}'")
        if rate is not None and rate != options.model_rate:
            raise UserError(
                f"pretrained {source} is of recordings at {rate} Hz; give --encoder_options.model_rate {rate}"
            )
        if kind.__name__ not in _ANY_CHANNELS and channels and channels != list(self.names):
            remedy = f"give --channels '{json.dumps(channels)}' if the recordings have them"
            raise UserError(f"pretrained {source} is of other channels; {remedy}")


def resampling_matrix(time: int, rate: float, new_rate: float) -> Tensor:
    """Return the matrix (time, new time) that resamples recordings (..., time) at `rate`, by polyphase filtering."""
    from scipy.signal import resample_poly

    ratio = Fraction(new_rate / rate).limit_denominator(1000)
    # Recordings go on along the line through their ends: those that do not end at 0 would ring there.
    matrix = resample_poly(np.eye(time), ratio.numerator, ratio.denominator, axis=1, padtype="line")
    return torch.from_numpy(matrix).float()


def _known_channels(models: ModuleType, class_name: str) -> dict[str, str] | None:
    """Return the channels that a class knows, by upper-case name; None if it takes any."""
    if class_name == "Labram":
        names = models.labram.LABRAM_CHANNEL_ORDER
    elif class_name == "REVE":
        names = models.reve.RevePositionBank().get_all_positions()
    else:
        return None
    return {name.upper(): name for name in names}


def _defaults(kind: type) -> dict[str, Any]:
    """Return the arguments of a class that have a default."""
    parameters = inspect.signature(kind).parameters.values()
    return {each.name: each.default for each in parameters if each.default not in (None, inspect.Parameter.empty)}


def _names_of(config: dict[str, Any]) -> list[str]:
    """Return the channels in a model's config.json."""
    infos = config.get("chs_info")
    return [str(each.get("ch_name")) for each in infos if isinstance(each, dict)] if isinstance(infos, list) else []


def _read(source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read pretrained weights, and their config.json if they have one."""
    path = Path(source)
    if not path.exists():
        if not _REPOSITORY.fullmatch(source):
            raise UserError(f"pretrained {source}: no such file or folder, and no repository of the Hugging Face Hub")
        path = _download(source)
    config = path / CONFIG
    content = read_arrays(path / WEIGHTS if path.is_dir() else path)
    if isinstance(content, dict):
        content = next(
            (content[name] for name in ("state_dict", "model") if isinstance(content.get(name), dict)), content
        )
    weights = (
        {name: each for name, each in content.items() if isinstance(each, Tensor)} if isinstance(content, dict) else {}
    )
    if not weights:
        raise UserError(f"pretrained {source}: no tensors by name inside; give the state_dict of a model")
    return weights, read_json(config, "fetch it again") if config.is_file() else {}


def _download(repository: str) -> Path:
    """Return the folder of a repository's weights, downloaded if they are not in the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repository, allow_patterns=[WEIGHTS, CONFIG]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        get = f"run 'hf download {repository} --local-dir FOLDER' on a machine with network"
        problem = f"neither a file nor a repository that can be downloaded ({detail})"
        raise UserError(f"pretrained {repository}: {problem}; {get}, copy FOLDER here, and give it") from error
