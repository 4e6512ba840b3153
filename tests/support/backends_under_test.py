"""Every implementation of the functions as a pytest parameter."""

import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import cuda_on_host
import pytest
import torch
from gpu_streams import to_device
from torch import Tensor

import fovblur
from fovblur import backends
from fovblur.enhanced_similarity import native as native_similarity
from fovblur.foveated_blur import native
from fovblur.retinal_blur import native as native_retina

T = TypeVar("T")
ON_GPU = torch.cuda.is_available()
IMAGE_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
CPU_VARIANTS = [f"cpu-{name}" for name in backends.load_native("cpu").variants()]
IMPLEMENTATIONS = ["reference", *CPU_VARIANTS, "triton", "cuda"]
GPU_IMPLEMENTATIONS = ("triton", "cuda")


class Implementation:
    """The public functions on one backend; tensors are copied to its device in their layout, and back."""

    def __init__(self, name: str):
        self.backend, _, self.variant = name.partition("-")
        self.device = torch.device("cuda" if ON_GPU and self.backend in GPU_IMPLEMENTATIONS else "cpu")

    @property
    def emulated(self) -> bool:
        """Return whether GPU kernels run on the CPU, which is slow."""
        return self.backend in GPU_IMPLEMENTATIONS and not ON_GPU

    def serves(self, dtype: torch.dtype) -> bool:
        """Return whether the backend serves a dtype."""
        return dtype != torch.float64 or self.backend in ("reference", "cpu")

    def _call(self, function: Callable, *args, **kwargs):
        move = lambda value: to_device(value, self.device) if isinstance(value, Tensor) else value  # noqa: E731
        kwargs = {key: move(value) for key, value in kwargs.items()}
        results = function(*map(move, args), backend=self.backend, **kwargs)
        return results.cpu() if isinstance(results, Tensor) else tuple(result.cpu() for result in results)

    foveated_blur = functools.partialmethod(_call, fovblur.foveated_blur)
    gaussian_blur = functools.partialmethod(_call, fovblur.gaussian_blur)
    retinal_blur = functools.partialmethod(_call, fovblur.retinal_blur)
    matrix = functools.partialmethod(_call, fovblur.enhanced_similarity)
    topk = functools.partialmethod(_call, fovblur.enhanced_topk)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, monkeypatch, tmp_path_factory) -> Iterator[Implementation]:
    """Every implementation. Without a GPU the CUDA sources run on the CPU, see cuda_on_host."""
    chosen = Implementation(request.param)
    cpu = backends.load_native("cpu")
    before = cpu.variant()
    cpu.use_variant(chosen.variant or before)
    if chosen.backend == "cuda" and chosen.emulated:
        run_cuda_on_host(monkeypatch, tmp_path_factory)
    yield chosen
    cpu.use_variant(before)


def run_cuda_on_host(monkeypatch, tmp_path_factory, thread_order: int = 1) -> None:
    """Let backend="cuda" serve CPU tensors with the CUDA sources compiled for the CPU."""
    module = cuda_on_host.build(tmp_path_factory.getbasetemp())
    ctypes.CDLL(module.__file__).set_fovblur_thread_order(thread_order)

    functions = {
        native: ("forward", "backward", "forward_list"),
        native_similarity: ("similarity", "topk"),
        native_retina: ("forward",),
    }
    for source, names in functions.items():
        for name in names:
            launch = functools.partial(getattr(source, f"launch_{name}"), module, 0)
            monkeypatch.setattr(source, f"cuda_{name}", launch)
    unavailable_reason_for = backends.unavailable_reason_for
    monkeypatch.setattr(backends, "unavailable_reason", lambda name: None)
    monkeypatch.setattr(
        backends,
        "unavailable_reason_for",
        lambda name, _, dtype: unavailable_reason_for(name, torch.device("cuda"), dtype),
    )


def in_both_orders(call: Callable[[], T], monkeypatch, tmp_path_factory) -> list[T]:
    """Return the results of a call in both orders of the threads of a block; a race makes them differ."""
    results = []
    for order in (-1, 1):
        if not ON_GPU:
            run_cuda_on_host(monkeypatch, tmp_path_factory, order)
        results.append(call())
    return results


def exact(images: Tensor, *args, **kwargs) -> Tensor:
    """Return the result of the float64 reference."""
    double = lambda value: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value  # noqa: E731
    kwargs = {key: double(value) for key, value in kwargs.items() if key != "out_dtype"}
    return fovblur.foveated_blur(images.double(), *map(double, args), backend="reference", **kwargs)
