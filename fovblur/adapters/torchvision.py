"""A replacement for ``torchvision.transforms.v2.functional.gaussian_blur``: change the import, keep the call."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fovblur.foveated_blur import api
from fovblur.foveated_blur.sizes import sigma_from_kernel_size
from fovblur.image_types import blur_image, is_image


def gaussian_blur(inpt: Any, kernel_size: int | Sequence[int], sigma: float | Sequence[float] | None = None) -> Any:
    """Blur images (..., C, H, W) with torchvision's arguments.

    Args:
        inpt: a tensor of any type and leading dimensions, tv_tensors.Image or Video, or a PIL image.
        kernel_size: odd width, or [width along x, width along y].
        sigma: standard deviation in pixels, or [along x, along y]. Default: computed from the kernel size.

    Returns:
        What inpt is, with its type, dtype and memory format. Images may be smaller than the radius, unlike
        torchvision's.

    Raises:
        TypeError: inpt is no image, or a size is no number.
        ValueError: a tensor has fewer than three dimensions, a PIL image's mode has no channels to blur, or a pair has
            not one or two values.

    Examples:
        >>> import torch
        >>> gaussian_blur(torch.rand(3, 8, 8), [5, 5], [1.0, 1.0]).shape
        torch.Size([3, 8, 8])
    """
    kernel_x, kernel_y = _pair("kernel_size", kernel_size)
    if sigma is None:
        sigma = [sigma_from_kernel_size(kernel_x), sigma_from_kernel_size(kernel_y)]
    sigma_x, sigma_y = _pair("sigma", sigma)
    if not is_image(inpt):
        raise TypeError(f"inpt is a {type(inpt).__name__}; it must be a tensor, a tv_tensors.Image or Video, or PIL's")
    kernel = kernel_x if kernel_x == kernel_y else (kernel_y, kernel_x)
    sigmas = sigma_x if sigma_x == sigma_y else (sigma_y, sigma_x)
    return blur_image(inpt, lambda images: api.gaussian_blur(images, sigmas, kernel_size=kernel))


def _pair(name: str, value: Any) -> Any:
    if isinstance(value, numbers.Real) or (isinstance(value, Tensor) and value.ndim == 0):
        return value, value
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; it must be one number or two, along x and along y")
    if len(value) not in (1, 2):
        raise ValueError(f"{name} has {len(value)} values; it must be one number or two, along x and along y")
    return value[0], value[-1]
