"""The op ``fovblur::retinal_blur``: declaration, fake, and dispatch to the backend that runs it.

`autograd.py` gives it its derivatives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fovblur import backends
from fovblur.retinal_blur import native, reference
from fovblur.retinal_blur.params import LevelParams
from fovblur.retinal_blur.retina import Retina, level_map, levels_of


@torch.library.custom_op("fovblur::retinal_blur", mutates_args=())
def retinal_blur_op(
    images: Tensor,
    variance: Tensor,
    pixels_per_degree: float,
    viewing_distance: float | None,
    half_resolution: float,
    frequency_decay: float,
    contrast_threshold: float,
    levels: int,
    border: str,
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """Blur every pixel of images (B, C, H, W) by a Gaussian of its variance (B, H, W); backend "" stands for None.

    The Gaussians are chosen by the numbers of the retina, here and not before, as tracers have symbols for sizes.
    """
    retina = Retina(pixels_per_degree, viewing_distance, half_resolution, frequency_decay, contrast_threshold)
    backend = backends.resolve(backend or None, "retinal_blur", images.device, images.dtype)
    out = torch.empty_like(images, dtype=out_dtype)
    if out.numel() > 0:
        if backend == "cpu":  # whose kernel places variances between levels faster than PyTorch does
            variances, sigmas, kernel_sizes = levels_of(retina, *images.shape[-2:], levels)
            params = LevelParams(variance, sigmas, kernel_sizes, border, variances)
        else:
            params = level_params(images, variance, retina, levels, border)
        _function(backend)(images, out, params)
    return out


@retinal_blur_op.register_fake
def _(images, variance, *options):
    return torch.empty_like(images, dtype=options[-2])


def level_params(images: Tensor, variance: Tensor, retina: Retina, levels: int, border: str) -> LevelParams:
    """Return the Gaussians of a call, and which of them every pixel blends."""
    height, width = map(int, images.shape[-2:])
    chosen = levels_of(retina, height, width, levels)
    own = variance[:1] if variance.stride(0) == 0 else variance  # a map that all samples share is made once
    return LevelParams(level_map(own, chosen).expand(variance.shape), chosen.sigmas, chosen.kernel_sizes, border)


def _function(backend: str) -> Callable[..., None]:
    """Return a backend's forward. Triton is imported only when it is used."""
    if backend == "triton":
        from fovblur.retinal_blur import triton

        return triton.triton_forward
    return {"reference": reference.reference_forward, "cpu": native.cpu_forward, "cuda": native.cuda_forward}[backend]
