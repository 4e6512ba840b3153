"""The ops ``fovblur::enhanced_similarity`` and ``fovblur::enhanced_topk``: fakes, gradient, and the choice of a backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from fovblur import backends
from fovblur.enhanced_similarity import reference
from fovblur.enhanced_similarity.validation import accumulation_dtype

_MODULES = {"reference": "reference", "cpu": "native", "triton": "triton", "cuda": "native"}


@torch.library.custom_op("fovblur::enhanced_similarity", mutates_args=())
def enhanced_similarity_op(
    brain_image: Tensor,
    image: Tensor,
    brain_text: Tensor,
    text: Tensor,
    row_gate: Tensor | None,
    column_gate: Tensor | None,
    backend: str,
) -> Tensor:
    name = _choose(backend, brain_image)
    out = brain_image.new_empty(brain_image.shape[0], image.shape[0])
    if out.numel() > 0:
        _function(f"{name}_similarity")(out, brain_image, image, brain_text, text, row_gate, column_gate)
    return out


@enhanced_similarity_op.register_fake
def _(brain_image, image, brain_text, text, row_gate, column_gate, backend):
    return brain_image.new_empty(brain_image.shape[0], image.shape[0])


@torch.library.custom_op("fovblur::enhanced_topk", mutates_args=())
def enhanced_topk_op(
    brain_image: Tensor,
    image: Tensor,
    brain_text: Tensor,
    text: Tensor,
    row_gate: Tensor | None,
    column_gate: Tensor | None,
    k: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    name = _choose(backend, brain_image)
    values, indices = _empty_topk(brain_image, k)
    if values.numel() > 0:
        _function(f"{name}_topk")(values, indices, brain_image, image, brain_text, text, row_gate, column_gate)
    return values, indices


@enhanced_topk_op.register_fake
def _(brain_image, image, brain_text, text, row_gate, column_gate, k, backend):
    return _empty_topk(brain_image, k)


def _empty_topk(brain_image: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (brain_image.shape[0], k)
    values = brain_image.new_empty(shape, dtype=accumulation_dtype(brain_image.dtype))
    return values, brain_image.new_empty(shape, dtype=torch.int64)


def _choose(backend: str, brain_image: Tensor) -> str:
    return backends.choose(backend or None, brain_image.device, brain_image.dtype)


def _function(name: str) -> Callable:
    """A backend's entry, such as cpu_topk; its module is imported now and not before."""
    backend = name.partition("_")[0]
    return getattr(importlib.import_module(f"fovblur.enhanced_similarity.{_MODULES[backend]}"), name)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    return (*reference.gradients(grad, *ctx.saved_tensors, needs=ctx.needs_input_grad), None)


enhanced_similarity_op.register_autograd(_backward, setup_context=_setup_context)
