"""The rules by which sigma and kernel size follow from each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sigma_from_kernel_size(k):
    """Return OpenCV's standard deviation for an odd kernel size: 0.3 ((k - 1) / 2 - 1) + 0.8.

    For 3 to 9 pixels ``cv2.GaussianBlur(image, (k, k), 0)`` itself takes tables, which differ a little from this
    Gaussian.

    Args:
        k: width in pixels, a number or a tensor.

    Returns:
        Standard deviation in pixels, a number or a tensor like k.

    Examples:
        >>> round(sigma_from_kernel_size(51), 6)
        8.0
    """
    return 0.3 * ((k - 1) * 0.5 - 1) + 0.8


def kernel_size_from_sigma(sigma):
    """Return the kernel size that holds four standard deviations on each side, SciPy's default: 2 round(4 sigma) + 1.

    Args:
        sigma: standard deviation in pixels, a number or a tensor.

    Returns:
        Odd width in pixels, an int or an int32 tensor. Halves round up, as in SciPy.

    Examples:
        >>> kernel_size_from_sigma(8.0)
        65
    """
    if isinstance(sigma, Tensor):
        return 2 * torch.floor(4 * sigma.detach() + 0.5).to(torch.int32) + 1
    return 2 * math.floor(4 * sigma + 0.5) + 1


def opencv_kernel_size(sigma, dtype: torch.dtype):
    """Return OpenCV's kernel size for images of a dtype: three standard deviations on each side for uint8, else four.

    Args:
        sigma: standard deviation in pixels, a number or a tensor.
        dtype: of the images.

    Returns:
        Odd width in pixels, an int or an int32 tensor. Halves round to even, as in OpenCV.
    """
    width = (6 if dtype == torch.uint8 else 8) * sigma + 1
    if isinstance(sigma, Tensor):
        return width.detach().round().to(torch.int32) | 1
    return round(width) | 1
