"""Any class of braindecode.models as an encoder, by its name (optional dependency)."""

import importlib
import importlib.util
import inspect
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from torch import nn

from bvsa_core.encoders._shared import InputSpec
from bvsa_core.errors import UserError, unknown_name


@dataclass(frozen=True)
class Options:
    """Options of a class of braindecode.models."""

    sampling_rate: float = 250.0
    """Of the recordings, in Hz; some classes derive kernel sizes from it."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the class, by name."""


def encoder(class_name: str) -> SimpleNamespace:
    """Return Options and build, as in an encoder's file, for a class of braindecode.models."""
    if importlib.util.find_spec("braindecode") is None:
        raise UserError(f"encoder braindecode:{class_name} needs braindecode; pip install 'fovblur[braindecode]'")
    models = importlib.import_module("braindecode.models")
    classes = inspect.getmembers(models, inspect.isclass)
    known = [name for name, value in classes if issubclass(value, nn.Module)]  # sorted
    if class_name not in known:
        raise UserError(unknown_name("class of braindecode.models", class_name, known))

    def build(shape: InputSpec, options: Options) -> nn.Module:
        sizes = {"n_chans": shape.channels, "n_times": shape.time, "n_outputs": shape.embedding}
        try:
            return getattr(models, class_name)(**{**sizes, "sfreq": options.sampling_rate, **options.arguments})
        except Exception as error:  # each class has its own errors
            detail = str(error).splitlines()[0] if str(error) else type(error).__name__
            size, given = f"{shape.channels} channels, {shape.time} time points", options.arguments
            raise ValueError(f"{detail} (built for {size}, encoder_options.arguments {given})") from error

    return SimpleNamespace(Options=Options, build=build)
