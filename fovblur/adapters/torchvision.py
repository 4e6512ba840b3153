"""A replacement for ``torchvision.transforms.v2.functional.gaussian_blur``: change the import, keep the call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fovblur.adapters._anisotropic import gaussian_blur_separately
from fovblur.foveated_blur.api import sigma_from_kernel_size


def gaussian_blur(
    inpt: Tensor, kernel_size: int | Sequence[int], sigma: float | Sequence[float] | None = None
) -> Tensor:
    """Blur images (..., C, H, W) with torchvision's arguments.

    Args:
        inpt: images of any leading dimensions; uint8 or floating point.
        kernel_size: odd width, or [width along x, width along y].
        sigma: standard deviation in pixels, or [along x, along y]. Default: computed from the kernel size.

    Returns:
        (..., C, H, W) in the dtype of inpt. Images may be smaller than the radius, unlike torchvision's.

    Raises:
        ValueError: inpt is not a tensor of three or more dimensions, or a pair has not one or two values.

    Examples:
        >>> import torch
        >>> gaussian_blur(torch.rand(3, 8, 8), [5, 5], [1.0, 1.0]).shape
        torch.Size([3, 8, 8])
    """
    kernel_x, kernel_y = _pair("kernel_size", kernel_size)
    if sigma is None:
        sigma = [sigma_from_kernel_size(kernel_x), sigma_from_kernel_size(kernel_y)]
    sigma_x, sigma_y = _pair("sigma", sigma)
    if not isinstance(inpt, Tensor) or inpt.ndim < 3:
        described = tuple(inpt.shape) if isinstance(inpt, Tensor) else type(inpt).__name__
        raise ValueError(f"inpt is {described}; it must be a tensor (..., C, H, W)")
    images = inpt.reshape(-1, *inpt.shape[-3:])
    same = kernel_x == kernel_y and sigma_x == sigma_y
    return gaussian_blur_separately(images, sigma_y, sigma_x, kernel_y, kernel_x, same).reshape(inpt.shape)


def _pair(name: str, value):
    if not isinstance(value, Sequence):
        return value, value
    if len(value) not in (1, 2):
        raise ValueError(f"{name} has {len(value)} values; it must be one number or two, along x and along y")
    return value[0], value[-1]
