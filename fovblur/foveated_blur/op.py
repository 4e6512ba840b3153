"""The op ``fovblur::foveated_blur``: declaration, fake, gradient, and the choice of the backend that runs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from fovblur import backends
from fovblur.foveated_blur import validation

_MODULES = {"reference": "reference", "cpu": "native", "cuda": "native", "triton": "triton"}


@torch.library.custom_op("fovblur::foveated_blur", mutates_args=())
def foveated_blur_op(
    images: Tensor,
    sigma: Tensor,
    kernel_size: Tensor,
    gain: Tensor,
    fixation: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    falloff: str,
    decay: float,
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    validation.check_values(sigma=sigma, kernel_size=kernel_size, gain=gain, fixation=fixation, mean=mean, std=std)
    name = backends.choose(backend or None, images.device, images.dtype)
    out = torch.empty_like(images, dtype=out_dtype)
    if out.numel() == 0:
        return out
    _function(f"{name}_forward")(images, out, sigma, kernel_size, gain, fixation, mean, std, falloff, decay)
    return out


@foveated_blur_op.register_fake
def _(images, sigma, kernel_size, gain, fixation, mean, std, falloff, decay, out_dtype, backend):
    return torch.empty_like(images, dtype=out_dtype)


@torch.library.custom_op("fovblur::foveated_blur_backward", mutates_args=())
def foveated_blur_backward_op(
    grad: Tensor,
    images: Tensor,
    sigma: Tensor,
    kernel_size: Tensor,
    gain: Tensor,
    fixation: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    falloff: str,
    decay: float,
    backend: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of images, sigma and gain; those that are not needed come back empty."""
    name = backends.choose(backend or None, images.device, images.dtype)
    grads = _empty_gradients(images, sigma, gain, needs)
    wanted = tuple(grad if needed else None for grad, needed in zip(grads, needs))
    if images.numel() == 0:
        for each in grads:
            each.zero_()
    elif any(needs):
        parameters = (sigma, kernel_size, gain, fixation, mean, std, falloff, decay)
        _function(f"{name}_backward")(grad, images, wanted, *parameters)
    return grads


@foveated_blur_backward_op.register_fake
def _(grad, images, sigma, kernel_size, gain, fixation, mean, std, falloff, decay, backend, needs):
    return _empty_gradients(images, sigma, gain, needs)


def _empty_gradients(images: Tensor, sigma: Tensor, gain: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    of_images = torch.empty_like(images) if needs[0] else images.new_empty(0)
    return of_images, sigma.new_empty(sigma.shape if needs[1] else 0), gain.new_empty(gain.shape if needs[2] else 0)


def _function(name: str) -> Callable:
    """A backend's entry, such as cpu_forward; its module is imported now and not before."""
    backend = name.partition("_")[0]
    return getattr(importlib.import_module(f"fovblur.foveated_blur.{_MODULES[backend]}"), name)


def _setup_context(ctx, inputs, output) -> None:
    images, sigma, kernel_size, gain, fixation, mean, std, ctx.falloff, ctx.decay, _, ctx.backend = inputs
    ctx.save_for_backward(images, sigma, kernel_size, gain, fixation, mean, std)


def _backward(ctx, grad):
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    grads = foveated_blur_backward_op(grad, *ctx.saved_tensors, ctx.falloff, ctx.decay, ctx.backend, needs)
    grad_images, grad_sigma, grad_gain = (g if needed else None for g, needed in zip(grads, needs))
    return grad_images, grad_sigma, None, grad_gain, None, None, None, None, None, None, None


foveated_blur_op.register_autograd(_backward, setup_context=_setup_context)
