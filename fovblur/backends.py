"""The backends: which of them can run here, why the others cannot, and which one serves a call."""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import os
import re
import sys
from types import ModuleType

import torch

NAMES = ("reference", "cpu", "triton", "cuda")
OPS = ("foveated_blur", "enhanced_similarity", "retinal_blur")
ENVIRONMENT_VARIABLE = "FOVBLUR_BACKEND"
# Major compute capabilities on which "auto" prefers Triton, by op and dtype; elsewhere it prefers the CUDA kernels. An
# estimate from counted instructions, not a measurement: on sm_90 only Triton multiplies by whole warp groups.
TRITON_FIRST = {("enhanced_similarity", torch.float16): (9,), ("enhanced_similarity", torch.bfloat16): (9,)}


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
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    reasons = [_device_unavailable(index) for index in range(torch.cuda.device_count())]
    return None if None in reasons else reasons[0]


@functools.cache
def _device_unavailable(index: int) -> str | None:
    """Return why the CUDA module cannot run on a device: its driver is too old, or its architecture was not built."""
    built = build_info()["cuda"]
    runtime, driver = re.search(r"\d+", built["compiler"]), _driver_version()
    if runtime and driver < int(runtime[0]):
        return f"the driver serves CUDA {driver} and the module was built with {built['compiler']}; update the driver"
    major, minor = torch.cuda.get_device_capability(index)
    if any(_runs_on(architecture, major, minor) for architecture in built["architectures"]):
        return None
    return (
        f"the CUDA module was built for {', '.join(built['architectures'])}, not for {major}.{minor} of "
        f"{torch.cuda.get_device_name(index)}; rerun: TORCH_CUDA_ARCH_LIST={major}.{minor} pip install -e ."
    )


def _driver_version() -> int:
    """Return the major CUDA version that the driver serves."""
    version = ctypes.c_int()
    ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000


def _runs_on(architecture: str, major: int, minor: int) -> bool:
    """Return whether code for an architecture such as "8.6", "9.0a" or "9.0+PTX" runs on a compute capability."""
    number, plus, _ = architecture.partition("+PTX")
    if number[-1].isalpha():  # for this capability alone
        return number[:-1] == f"{major}.{minor}"
    built = tuple(map(int, number.split(".")))
    return built <= (major, minor) and (bool(plus) or built[0] == major)


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
    if name == "triton" and triton_is_interpreted():
        return None
    if device.type == "cuda":
        return _device_unavailable(device.index) if name == "cuda" and device.index is not None else None
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


def from_environment() -> str:
    """Return the backend that FOVBLUR_BACKEND names; "auto" without it."""
    return os.environ.get(ENVIRONMENT_VARIABLE) or "auto"


def is_reference(requested: str | None) -> bool:
    """Return whether the reference is asked for by name: it is then composed of plain operations, without the op."""
    return (requested or from_environment()) == "reference"


def resolve(requested: str | None, op: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the backend that serves a call: the requested one, else FOVBLUR_BACKEND's, else the fastest.

    Args:
        requested: the `backend` argument; None or "" if there is none.
        op: one of OPS.
        device: of the tensors.
        dtype: of the images or embeddings.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the named backend cannot run; the message says why. There is no silent fallback.
    """
    name = requested or from_environment()
    check_name(name, "backend" if requested else ENVIRONMENT_VARIABLE)
    if name == "auto":
        return _fastest(op, device, dtype)
    if (reason := unavailable_reason_for(name, device, dtype)) is not None:
        raise RuntimeError(f"backend {name!r} cannot run: {reason}")
    return name


def _fastest(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the first backend, in order of speed, that serves the tensors."""
    if device.type == "cpu":
        order = ["cpu"]
    elif device.type == "cuda" and dtype != torch.float64:
        order = ["triton", "cuda"] if _triton_first(op, device, dtype) else ["cuda", "triton"]
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


def _triton_first(op: str, device: torch.device, dtype: torch.dtype) -> bool:
    majors = TRITON_FIRST.get((op, dtype), ())
    return bool(majors) and torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] in majors
