"""Which backends can run here, and why the others cannot."""

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
    """The compiled module ``fovblur._cpu`` or ``fovblur._cuda``; ImportError where it was not built."""
    return importlib.import_module(f"fovblur._{name}")


@functools.cache
def build_info() -> dict:
    """What the build found: compiler, CPU variants, and the CUDA architectures or why there are none."""
    return json.loads(load_native("cpu").build_info)


@functools.cache
def unavailable_reason(name: str) -> str | None:
    """Why a backend cannot run on this machine; None where it can."""
    return {"reference": lambda: None, "cpu": _why_not_cpu, "triton": _why_not_triton, "cuda": _why_not_cuda}[name]()


def _why_not_cpu() -> str | None:
    try:
        load_native("cpu")
    except ImportError as error:
        return f"the CPU module does not load ({error}); reinstall with: pip install -e ."
    return None


def _why_not_triton() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton does not import ({error}); install it with: pip install triton"
    if triton_is_interpreted() or torch.cuda.is_available():
        return None
    return "no CUDA device is available (TRITON_INTERPRET=1 runs it, slowly, on the CPU)"


def _why_not_cuda() -> str | None:
    try:
        load_native("cuda")
    except ImportError as error:
        reason = build_info()["cuda"].get("skipped", str(error))
        return f"the CUDA module was not built ({reason}); install nvcc and rerun: pip install -e ."
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    return None


def triton_is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unavailable_reason_for(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot serve images of this device and dtype; None where it can."""
    if (reason := unavailable_reason(name)) is not None or name == "reference":
        return reason
    if name == "cpu":
        return None if device.type == "cpu" else f"it serves CPU tensors, not {device.type} ones"
    if dtype == torch.float64:
        return "it does not serve float64; the reference does"
    if name == "triton" and triton_is_interpreted():
        return None
    if device.type != "cuda":
        return f"it serves CUDA tensors, not {device.type} ones"
    return None


def available_backends() -> dict[str, str | None]:
    """Every backend by name, with the reason why it cannot run here, or None where it can.

    >>> available_backends()["reference"] is None
    True
    """
    return {name: unavailable_reason(name) for name in NAMES}


def check_name(name: str | None) -> None:
    """ValueError for a `backend` argument that names none."""
    if name not in (None, "auto", *NAMES):
        raise ValueError(f"backend is {name!r}; choose one of auto, {', '.join(NAMES)}")


def resolve(requested: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that serves a call: the one asked for by argument or environment, else the fastest that can.

    Raises ValueError for an unknown name and RuntimeError, with the reason, for a backend that was asked for by name and
    cannot run: nothing falls back in silence.
    """
    name = requested or os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    if name == "auto":
        return _fastest(device, dtype)
    if name not in NAMES:
        origin = "backend" if requested else ENVIRONMENT_VARIABLE
        raise ValueError(f"{origin} is {name!r}; choose one of auto, {', '.join(NAMES)}")
    if (reason := unavailable_reason_for(name, device, dtype)) is not None:
        raise RuntimeError(f"backend {name!r} cannot run: {reason}")
    return name


def _fastest(device: torch.device, dtype: torch.dtype) -> str:
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
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise RuntimeError(f"no compiled backend can serve {device.type} tensors ({told}); backend='reference' can, slowly")
