"""Derivatives of the blend of levels of any order, in reverse and forward mode, and under `torch.func.vmap`.

They are composed of the blur's two ops, one Gaussian a level, which have such derivatives themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fovblur.foveated_blur.api import gaussian_blur
from fovblur.foveated_blur.autograd import transposed_gaussian
from fovblur.retinal_blur import reference
from fovblur.retinal_blur.op import level_params, retinal_blur_op
from fovblur.retinal_blur.retina import Retina
from fovblur.tracing import is_transformed


def differentiable_blend(
    images: Tensor,
    variance: Tensor,
    retina: Retina,
    levels: int,
    border: str,
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """Call the op, or where transforms of torch.func would pass by its derivatives, compose it of blurs."""
    if is_transformed():
        params, _ = level_params(images, variance, retina, levels, border)
        return reference.blend_levels(images, params, out_dtype, _blur_of(border, backend))
    return retinal_blur_op(images, variance, *retina, levels, border, out_dtype, backend)


def _blur_of(border: str, backend: str) -> reference.Blur:
    def blur(images: Tensor, sigma: float, kernel_size: int) -> Tensor:
        return gaussian_blur(images, sigma, kernel_size=kernel_size, border=border, backend=backend or None)

    return blur


def _setup_context(ctx, inputs, output) -> None:
    images, variance, *retina, ctx.levels, ctx.border, _, ctx.backend = inputs
    ctx.retina = Retina(*retina)
    ctx.save_for_backward(images, variance)


def _backward(ctx, grad):
    """Return the gradients: sum_k A_k^T (w_k g) of images, and sum_k w_k' <g, A_k x> through the level map."""
    images, variance = ctx.saved_tensors
    params, slope_of_level = level_params(images, variance, ctx.retina, ctx.levels, ctx.border)
    x, grad = images.to(variance.dtype), grad.to(variance.dtype)
    blur = _blur_of(ctx.border, ctx.backend)
    of_images, of_level = torch.zeros_like(x), torch.zeros_like(variance)
    for k, (sigma, kernel_size) in enumerate(zip(params.sigmas, params.kernel_sizes)):
        counts, weight, slope = reference.level_weight(params, k)
        is_identity = kernel_size == 1
        if ctx.needs_input_grad[0]:
            weighted = weight * grad
            gaussian = sigma, kernel_size, ctx.border, ctx.backend
            of_images = of_images + (weighted if is_identity else transposed_gaussian(weighted, *gaussian))
        if ctx.needs_input_grad[1]:
            blurred = x if is_identity else blur(x, sigma, kernel_size)
            of_level = of_level + slope[:, 0] * (grad * torch.where(counts, blurred, 0)).sum(1)
    needs_images, needs_variance, *others = ctx.needs_input_grad
    of_images = of_images.to(images.dtype) if needs_images else None
    of_variance = of_level * slope_of_level if needs_variance else None
    return of_images, of_variance, *[None] * len(others)


retinal_blur_op.register_autograd(_backward, setup_context=_setup_context)
