"""A Gaussian whose width differs between rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor

from fovblur.foveated_blur.api import gaussian_blur


def gaussian_blur_separately(
    images: Tensor, sigma_y: float | Tensor, sigma_x: float | Tensor, kernel_y: int, kernel_x: int, same: bool
) -> Tensor:
    """Blur images (B, C, H, W), in one call if both directions are the `same`, else in one call per direction.

    The memory format stays that of the images. Along a side of one pixel the blur is the identity, so images reshaped
    to (B, C H, 1, W) are blurred along x alone.
    """
    if same:
        return gaussian_blur(images, sigma_y, kernel_size=kernel_y)
    batch, channels, height, width = images.shape
    floats = images if images.is_floating_point() else images.float()
    along_x = gaussian_blur(floats.reshape(batch, channels * height, 1, width), sigma_x, kernel_size=kernel_x)
    turned = along_x.reshape(batch, channels, height, width).transpose(2, 3).reshape(batch, channels * width, 1, height)
    along_y = gaussian_blur(turned, sigma_y, kernel_size=kernel_y)
    blurred = along_y.reshape(batch, channels, width, height).transpose(2, 3)
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    blurred = blurred.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return blurred if images.is_floating_point() else blurred.round().to(images.dtype)
