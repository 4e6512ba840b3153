"""Foveated Gaussian blur and text-enhanced similarity of recordings to images, compiled for CPUs and GPUs."""

from types import ModuleType

from fovblur.backends import available_backends
from fovblur.enhanced_similarity.api import enhanced_similarity, enhanced_topk
from fovblur.foveated_blur.api import foveated_blur, gaussian_blur
from fovblur.foveated_blur.sizes import kernel_size_from_sigma, sigma_from_kernel_size
from fovblur.retinal_blur.api import retinal_blur

__all__ = [
    "available_backends",
    "enhanced_similarity",
    "enhanced_topk",
    "foveated_blur",
    "gaussian_blur",
    "kernel_size_from_sigma",
    "retinal_blur",
    "sigma_from_kernel_size",
]


def __getattr__(name: str) -> str | ModuleType:
    if name == "__version__":  # read only on request: a source tree need not be installed
        from importlib.metadata import version

        return version("fovblur")
    if name in ("modules", "transforms"):  # imported on request: transforms need torchvision
        from importlib import import_module

        return import_module(f"fovblur.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
