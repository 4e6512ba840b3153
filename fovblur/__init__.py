"""Foveated Gaussian blur, one radius a sample, compiled for CPUs and GPUs."""

from fovblur.backends import available_backends
from fovblur.foveated_blur.api import foveated_blur, gaussian_blur, kernel_size_from_sigma, sigma_from_kernel_size

__all__ = [
    "available_backends",
    "foveated_blur",
    "gaussian_blur",
    "kernel_size_from_sigma",
    "sigma_from_kernel_size",
]
