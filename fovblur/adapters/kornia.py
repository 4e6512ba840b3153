"""A replacement for ``kornia.filters.gaussian_blur2d``: ``from fovblur.adapters.kornia import gaussian_blur2d``."""

from __future__ import annotations

import numbers
from typing import Any

from torch import Tensor

from fovblur.foveated_blur.api import gaussian_blur
from fovblur.foveated_blur.params import Values

BORDERS = ("reflect", "replicate", "constant", "circular")


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
        sigma: standard deviations in pixels, (along y, along x), or a tensor (B, 2) or (1, 2) of them.
        border_type: "reflect", "replicate", "constant" or "circular", in any case.
        separable: accepted for compatibility; it does not change the result.

    Returns:
        (B, C, H, W), float32 for integers, in the memory format of input. Differentiable in input and sigma. Images may
        be smaller than the radius, unlike kornia's.

    Raises:
        TypeError: input is no tensor of real numbers.
        ValueError: an unknown border_type, or a wrong shape of sigma or kernel_size.

    Examples:
        >>> import torch
        >>> gaussian_blur2d(torch.rand(2, 3, 8, 8), (3, 3), torch.tensor([[1.0, 1.0], [2.0, 2.0]])).shape
        torch.Size([2, 3, 8, 8])
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"input is a {type(input).__name__}; it must be a torch.Tensor of shape (B, C, H, W)")
    border = border_type.lower()
    if border not in BORDERS:
        raise ValueError(f"border_type is {border_type!r}; it must be one of {', '.join(BORDERS)}")
    input = input if input.is_floating_point() or input.is_complex() else input.float()  # complex numbers are refused
    size: Values = kernel_size if isinstance(kernel_size, numbers.Integral) else _pair("kernel_size", kernel_size)
    deviation: Values = sigma
    if not isinstance(sigma, Tensor):
        deviation = _pair("sigma", sigma)
    elif sigma.ndim != 2 or sigma.shape[1] != 2 or sigma.shape[0] not in (1, len(input)):
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}; it must be ({len(input)}, 2), along y and along x")
    elif sigma.stride(1) == 0:  # one for both axes, as RandomGaussianBlur has them
        deviation = sigma[:, 0]
    return gaussian_blur(input, deviation, kernel_size=size, border=border)


def _pair(name: str, value: Any) -> Any:
    """Return what is given along y and along x; one number, if both are the same."""
    try:
        along_y, along_x = value
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {value!r}; it must be two numbers, along y and along x") from error
    return along_y if isinstance(along_y, numbers.Real) and along_y == along_x else (along_y, along_x)
