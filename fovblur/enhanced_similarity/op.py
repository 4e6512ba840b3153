"""The ops ``fovblur::enhanced_similarity`` and ``fovblur::enhanced_topk``: fakes, gradient, dispatch to a backend."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fovblur import backends
from fovblur.dtypes import accumulation_dtype
from fovblur.enhanced_similarity import native, reference
from fovblur.enhanced_similarity.params import Inputs


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
    """Return the similarity (N, M); the arguments are those of Inputs, and backend "" stands for None."""
    similarity, _ = _functions(backend, brain_image)
    out = brain_image.new_empty(brain_image.shape[0], image.shape[0])
    if out.numel() > 0:
        similarity(out, Inputs(brain_image, image, brain_text, text, row_gate, column_gate))
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
    """Return values and indices (N, k) of the best images."""
    _, topk = _functions(backend, brain_image)
    values, indices = _empty_topk(brain_image, k)
    if values.numel() > 0:
        topk(values, indices, Inputs(brain_image, image, brain_text, text, row_gate, column_gate))
    return values, indices


@enhanced_topk_op.register_fake
def _(brain_image, image, brain_text, text, row_gate, column_gate, k, backend):
    return _empty_topk(brain_image, k)


def _empty_topk(brain_image: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (brain_image.shape[0], k)
    values = brain_image.new_empty(shape, dtype=accumulation_dtype(brain_image.dtype))
    return values, brain_image.new_empty(shape, dtype=torch.int64)


def _functions(backend: str, brain_image: Tensor) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return similarity and top-k of the backend that serves the call. Triton is imported only when it is used."""
    name = backends.resolve(backend or None, "enhanced_similarity", brain_image.device, brain_image.dtype)
    if name == "triton":
        from fovblur.enhanced_similarity import triton

        return triton.triton_similarity, triton.triton_topk
    if name == "reference":
        return reference.reference_similarity, reference.reference_topk
    return {
        "cpu": (native.cpu_similarity, native.cpu_topk),
        "cuda": (native.cuda_similarity, native.cuda_topk),
    }[name]


def _setup_context(ctx, inputs, output) -> None:
    *tensors, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    return (*reference.gradients(grad, Inputs(*ctx.saved_tensors), ctx.needs_input_grad), None)


enhanced_similarity_op.register_autograd(_backward, setup_context=_setup_context)
