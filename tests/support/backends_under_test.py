"""Every implementation of the blur as a pytest parameter, with what it takes to run it here."""

from __future__ import annotations

import ctypes
import functools

import cuda_on_host
import pytest
import torch
from torch import Tensor

import fovblur
from fovblur import backends
from fovblur.enhanced_similarity import native as native_similarity
from fovblur.foveated_blur import native

ON_GPU = torch.cuda.is_available()
IMAGE_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
CPU_VARIANTS = [f"cpu-{name}" for name in backends.load_native("cpu").variants()]
IMPLEMENTATIONS = ["reference", *CPU_VARIANTS, "triton", "cuda"]
GPU_IMPLEMENTATIONS = ("triton", "cuda")


class Implementation:
    """Calls the public functions on one backend; tensors go to the device it runs on and come back."""

    def __init__(self, name: str):
        self.name = name
        self.backend, _, self.variant = name.partition("-")
        self.device = torch.device("cuda" if ON_GPU and self.backend in GPU_IMPLEMENTATIONS else "cpu")

    @property
    def emulated(self) -> bool:
        """Whether a GPU's kernels run on the CPU, which takes long."""
        return self.backend in GPU_IMPLEMENTATIONS and not ON_GPU

    def serves(self, dtype: torch.dtype) -> bool:
        return dtype != torch.float64 or self.backend in ("reference", "cpu")

    def __call__(self, function, images: Tensor, *args, **kwargs) -> Tensor:
        move = lambda value: value.to(self.device) if isinstance(value, Tensor) else value  # noqa: E731
        kwargs = {key: move(value) for key, value in kwargs.items()}
        return function(move(images), *map(move, args), backend=self.backend, **kwargs).cpu()

    def foveated_blur(self, images: Tensor, *args, **kwargs) -> Tensor:
        return self(fovblur.foveated_blur, images, *args, **kwargs)

    def gaussian_blur(self, images: Tensor, *args, **kwargs) -> Tensor:
        return self(fovblur.gaussian_blur, images, *args, **kwargs)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, monkeypatch, tmp_path_factory):
    """One implementation after another. Without a GPU the CUDA sources run on the CPU, see cuda_on_host."""
    chosen = Implementation(request.param)
    if chosen.variant:
        cpu = backends.load_native("cpu")
        before = cpu.variant()
        cpu.use_variant(chosen.variant)
        yield chosen
        cpu.use_variant(before)
        return
    if chosen.backend == "cuda" and not ON_GPU:
        run_cuda_on_host(monkeypatch, tmp_path_factory)
    yield chosen


def run_cuda_on_host(monkeypatch, tmp_path_factory, thread_order: int = 1) -> None:
    """Let backend="cuda" serve CPU tensors with the CUDA sources compiled for the CPU."""
    module = cuda_on_host.build(tmp_path_factory.getbasetemp())
    ctypes.CDLL(module.__file__).set_fovblur_thread_order(thread_order)

    monkeypatch.setattr(native, "cuda_forward", functools.partial(native.launch_forward, module, 0))
    monkeypatch.setattr(native, "cuda_backward", functools.partial(native.launch_backward, module, 0))
    monkeypatch.setattr(
        native_similarity, "cuda_similarity", functools.partial(native_similarity.launch_similarity, module, 0)
    )
    monkeypatch.setattr(native_similarity, "cuda_topk", functools.partial(native_similarity.launch_topk, module, 0))
    unavailable_reason_for = backends.unavailable_reason_for
    monkeypatch.setattr(backends, "unavailable_reason", lambda name: None)
    monkeypatch.setattr(
        backends,
        "unavailable_reason_for",
        lambda name, _, dtype: unavailable_reason_for(name, torch.device("cuda"), dtype),
    )


def exact(images: Tensor, *args, **kwargs) -> Tensor:
    """The float64 reference."""
    double = lambda value: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value  # noqa: E731
    kwargs = {key: double(value) for key, value in kwargs.items() if key != "out_dtype"}
    return fovblur.foveated_blur(images.double(), *map(double, args), backend="reference", **kwargs)
