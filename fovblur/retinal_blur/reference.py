"""The blend of Gaussian levels in plain PyTorch, written as its formula: slow, differentiable, the oracle of tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fovblur.foveated_blur.reference import gaussian, gaussian_taps
from fovblur.retinal_blur.params import LevelParams

Blur = Callable[[Tensor, float, int], Tensor]  # of images (B, C, H, W), with a sigma and a kernel size


def blend_levels(images: Tensor, params: LevelParams, out_dtype: torch.dtype, blur: Blur | None = None) -> Tensor:
    """Return y = (1 - a) G_k x + a G_(k + 1) x with k + a the value of the level map, converted.

    Args:
        images: (B, C, H, W).
        params: of the blend; its level map's dtype is the one it is computed in.
        out_dtype: dtype of the result.
        blur: Gaussian of a level. Default: the reference.
    """
    x = images.to(params.level.dtype)
    if images.numel() == 0:  # with gradients of 0
        return (x + 0 * params.level.sum()).to(out_dtype)
    if blur is None:
        blur = _blur_of(params.border)
    y = torch.zeros_like(x) + 0 * params.level[:, None]  # NaN where the level is
    for k, (sigma, kernel_size) in enumerate(zip(params.sigmas, params.kernel_sizes)):
        counts, weight = level_weight(params, k)
        blurred = x if kernel_size == 1 else blur(x, sigma, kernel_size)
        counts = counts & ((weight > 0) | blurred.isfinite())  # a weight of 0 times infinity is not NaN here
        y = y + weight * torch.where(counts, blurred, 0)
    if out_dtype == torch.uint8:
        y = y.nan_to_num(0.0).round().clamp(0, 255)
    return y.to(out_dtype)


def level_weight(params: LevelParams, k: int) -> tuple[Tensor, Tensor]:
    """Return where level k is one of the two that are blended, and its weight there, (B, 1, H, W)."""
    level = params.level[:, None]
    lower = torch.where(level > 0, level.detach().floor(), 0).clamp(max=len(params.sigmas) - 2)
    share = level - lower
    is_lower, is_upper = lower == k, lower == k - 1
    return is_lower | is_upper, torch.where(is_lower, 1 - share, torch.where(is_upper, share, 0))


def _blur_of(border: str) -> Blur:
    def blur(x: Tensor, sigma: float, kernel_size: int) -> Tensor:
        sigmas, sizes = x.new_full((1,), sigma), x.new_full((1,), kernel_size, dtype=torch.int32)
        taps = gaussian_taps(sigmas, sizes, kernel_size)
        return gaussian(x, (taps, taps), border)

    return blur


def reference_forward(images: Tensor, out: Tensor, params: LevelParams) -> None:
    """Blend images (B, C, H, W) into `out`."""
    out.copy_(blend_levels(images, params, out.dtype))
