"""A replacement for ``kornia.filters.gaussian_blur2d``: ``from fovblur.adapters.kornia import gaussian_blur2d``."""

from __future__ import annotations

import torch
from torch import Tensor

from fovblur.adapters._anisotropic import gaussian_blur_separately


def gaussian_blur2d(
    input: Tensor,
    kernel_size: tuple[int, int] | int,
    sigma: tuple[float, float] | Tensor,
    border_type: str = "reflect",
    separable: bool = True,
) -> Tensor:
    """Blur images with kornia's arguments. A tensor sigma gives every image its own Gaussian.

    Args:
        input: (B, C, H, W).
        kernel_size: odd width, or (along y, along x).
        sigma: standard deviations in pixels, (along y, along x), or a tensor (B, 2) of them.
        border_type: only "reflect" is supported, in any case.
        separable: accepted for compatibility; it does not change the result.

    Returns:
        (B, C, H, W), float32 for integers, in the memory format of input. Differentiable in input and sigma.

    Raises:
        ValueError: an unsupported border_type, or a wrong shape of sigma.

    Examples:
        >>> gaussian_blur2d(torch.rand(2, 3, 8, 8), (3, 3), torch.tensor([[1.0, 1.0], [2.0, 2.0]])).shape
        torch.Size([2, 3, 8, 8])
    """
    if border_type.lower() != "reflect":
        raise ValueError(f"border_type is {border_type!r}; only 'reflect' is supported")
    input = input if input.is_floating_point() else input.float()
    kernel_y, kernel_x = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if not isinstance(sigma, Tensor):
        same = kernel_y == kernel_x and sigma[0] == sigma[1]
        return gaussian_blur_separately(input, sigma[0], sigma[1], kernel_y, kernel_x, same)
    if sigma.ndim != 2 or sigma.shape[1] != 2 or sigma.shape[0] not in (1, len(input)):
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}; it must be ({len(input)}, 2), along y and along x")
    sigma_y, sigma_x = sigma.expand(len(input), 2).unbind(1)
    same = (
        kernel_y == kernel_x
        and not torch.compiler.is_compiling()
        and torch.equal(sigma_y, sigma_x)
        and not sigma.requires_grad
    )
    return gaussian_blur_separately(input, sigma_y, sigma_x, kernel_y, kernel_x, same)
