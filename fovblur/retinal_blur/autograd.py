"""Derivatives of the blend of levels of any order, in reverse and forward mode, and under `torch.func.vmap`.

They are composed of this op and of the blur's two ops, one Gaussian a level, which have such derivatives themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fovblur.foveated_blur.api import gaussian_blur
from fovblur.foveated_blur.autograd import transposed_gaussian
from fovblur.retinal_blur import reference
from fovblur.retinal_blur.op import level_params, retinal_blur_op
from fovblur.retinal_blur.retina import Retina, enclosing_levels, levels_of
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
        params = level_params(images, variance, retina, levels, border)
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
    """Return the gradients of all arguments: that of images is sum_k A_k^T (w_k g)."""
    images, variance = ctx.saved_tensors
    needs_images, needs_variance, *others = ctx.needs_input_grad
    grad = grad.to(variance.dtype)
    of_images = of_variance = None
    if needs_images:
        params = level_params(images, variance, ctx.retina, ctx.levels, ctx.border)
        of_images = torch.zeros_like(grad)
        for k, (sigma, kernel_size) in enumerate(zip(params.sigmas, params.kernel_sizes)):
            weight = 1 - (params.level - k).abs()
            weighted = weight.clamp(min=0)[:, None] * grad
            gaussian = sigma, kernel_size, ctx.border, ctx.backend
            of_images += weighted if kernel_size == 1 else transposed_gaussian(weighted, *gaussian)
        of_images = of_images.to(images.dtype)
    if needs_variance:  # a pixel changes along the line between the two levels next to it
        below, above, slope = enclosing_levels(
            variance, levels_of(ctx.retina, *map(int, images.shape[-2:]), ctx.levels)
        )
        options = *ctx.retina, ctx.levels, ctx.border, variance.dtype, ctx.backend
        less, more = (retinal_blur_op(images, each, *options) for each in (below, above))
        of_variance = (grad * (more - less)).sum(1) * slope
    return of_images, of_variance, *[None] * len(others)


retinal_blur_op.register_autograd(_backward, setup_context=_setup_context)
