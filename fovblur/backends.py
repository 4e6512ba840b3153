"""The backends: which of them can run here, why the others cannot, and which one serves a call."""

from __future__ import annotations

import functools
import importlib
import json
import os
from types import ModuleType

import torch

NAMES = ("reference", "cpu", "triton", "cuda")
ENVIRONMENT_VARIABLE = "FOVBLUR_BACKEND"


def load_native(name: str) -> ModuleType:
    """Import the compiled module ``fovblur._cpu`` or ``fovblur._cuda``; ImportError if it was not built."""
    return importlib.import_module(f"fovblur._{name}")


@functools.cache
def build_info() -> dict:
    """Return facts of the build: compiler, CPU variants, and the CUDA architectures or why there are none."""
    return json.loads(load_native("cpu").build_info)


@functools.cache
def unavailable_reason(name: str) -> str | None:
    """Return why a backend cannot run on this machine, or None if it can."""
    if name == "cpu":
        return _cpu_unavailable()
    if name == "triton":
        return _triton_unavailable()
    return _cuda_unavailable() if name == "cuda" else None


def _cpu_unavailable() -> str | None:
    try:
        load_native("cpu")
    except ImportError as error:
        return f"the CPU module does not load ({error}); reinstall with: pip install -e ."
    return None


def _triton_unavailable() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton does not import ({error}); install it with: pip install triton"
    if triton_is_interpreted() or torch.cuda.is_available():
        return None
    return "no CUDA device is available (TRITON_INTERPRET=1 runs it, slowly, on the CPU)"


def _cuda_unavailable() -> str | None:
    try:
        load_native("cuda")
    except ImportError as error:
        reason = build_info()["cuda"].get("skipped", str(error))
        return f"the CUDA module was not built ({reason}); install nvcc and rerun: pip install -e ."
    return None if torch.cuda.is_available() else "no CUDA device is available"


def triton_is_interpreted() -> bool:
    """Return whether Triton runs under its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unavailable_reason_for(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why a backend cannot serve tensors of a device and dtype, or None if it can."""
    if (reason := unavailable_reason(name)) is not None or name == "reference":
        return reason
    if name == "cpu":
        return None if device.type == "cpu" else f"it serves CPU tensors, not {device.type} ones"
    if dtype == torch.float64:
        return "it does not serve float64; the reference does"
    if device.type == "cuda" or (name == "triton" and triton_is_interpreted()):
        return None
    return f"it serves CUDA tensors, not {device.type} ones"


def available_backends() -> dict[str, str | None]:
    """Return every backend by name with the reason why it cannot run here, or None if it can.

    Examples:
        >>> available_backends()["reference"] is None
        True
    """
    return {name: unavailable_reason(name) for name in NAMES}


def check_name(name: str | None, origin: str = "backend") -> None:
    """Raise ValueError for a `backend` argument, or an environment variable, that names no backend."""
    if name not in (None, "auto", *NAMES):
        raise ValueError(f"{origin} is {name!r}; choose one of auto, {', '.join(NAMES)}")


def resolve(requested: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """Return the backend that serves a call: the requested one, else FOVBLUR_BACKEND's, else the fastest.

    Args:
        requested: the `backend` argument; None or "" if there is none.
        device: of the tensors.
        dtype: of the images or embeddings.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the named backend cannot run; the message says why. There is no silent fallback.
    """
    name = requested or os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    check_name(name, "backend" if requested else ENVIRONMENT_VARIABLE)
    if name == "auto":
        return _fastest(device, dtype)
    if (reason := unavailable_reason_for(name, device, dtype)) is not None:
        raise RuntimeError(f"backend {name!r} cannot run: {reason}")
    return name


def _fastest(device: torch.device, dtype: torch.dtype) -> str:
    """Return the first backend, in order of speed, that serves the tensors."""
    if device.type == "cpu":
        order = ["cpu"]
    elif device.type == "cuda" and dtype != torch.float64:
        order = ["cuda", "triton"]
    else:
        return "reference"
    reasons = {name: unavailable_reason_for(name, device, dtype) for name in order}
    for name, reason in reasons.items():
        if reason is None:
            return name
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise RuntimeError(
        f"no compiled backend can serve {device.type} tensors ({listed}); backend='reference' can, slowly"
    )
