"""The similarity in plain PyTorch, written as its formula: the oracle of every test, the gradient of every backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fovblur.dtypes import accumulation_dtype
from fovblur.enhanced_similarity.params import Inputs

GALLERY_CHUNK = 16_384  # images that top-k scores at once


def enhanced_similarity(inputs: Inputs) -> Tensor:
    """Return M_bi * (1 + r_i c_j M_bt) in the dtype that is accumulated in; where a gate is 0 the factor is 1."""
    brain_image, image, brain_text, text, row_gate, column_gate = inputs
    with torch.autocast(brain_image.device.type, enabled=False):
        image_similarity, text_similarity = _product(brain_image, image), _product(brain_text, text)
    return image_similarity * (1 + _gated(text_similarity, row_gate, column_gate))


def gradients(grad: Tensor, inputs: Inputs, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Return the gradients of the inputs that are needed, by matrix products; differentiable again."""
    brain_image, image, brain_text, text, row_gate, column_gate = inputs
    real = accumulation_dtype(brain_image.dtype)
    with torch.autocast(brain_image.device.type, enabled=False):
        grad = grad.to(real)
        of_image = of_text = of_gates = grad  # overwritten below if needed
        if any(needs[:2]):
            of_image = grad * (1 + _gated(_product(brain_text, text), row_gate, column_gate))
        if any(needs[2:]):
            of_factor = grad * _product(brain_image, image)
            of_text = _gated(of_factor, row_gate, column_gate)
        if any(needs[4:6]):
            of_gates = of_factor * _product(brain_text, text)
        functions = (
            lambda: of_image @ image.to(real),
            lambda: of_image.T @ brain_image.to(real),
            lambda: of_text @ text.to(real),
            lambda: of_text.T @ brain_text.to(real),
            lambda: _gated(of_gates, None, column_gate).sum(1),
            lambda: _gated(of_gates, row_gate, None).sum(0),
        )
        return tuple(
            compute().to(x.dtype) if needed and x is not None else None
            for x, compute, needed in zip(inputs, functions, needs)
        )


def enhanced_topk(inputs: Inputs, k: int) -> tuple[Tensor, Tensor]:
    """Return values and indices (N, k), found chunk by chunk. Earlier chunks have lower indices: sorting is stable."""
    image = inputs.image
    best, indices = image.new_empty(0), image.new_empty(0, dtype=torch.int64)
    for first in range(0, len(image), GALLERY_CHUNK):
        chunk = inputs.part(slice(None), slice(first, first + GALLERY_CHUNK))
        scores = enhanced_similarity(chunk) + 0.0  # -0 becomes 0
        chunk_indices = torch.arange(first, first + scores.shape[1], device=scores.device).expand(scores.shape)
        if first > 0:
            scores, chunk_indices = torch.cat([best, scores], 1), torch.cat([indices, chunk_indices], 1)
        order = sort_key(scores).sort(dim=1, descending=True, stable=True).indices[:, :k]
        best, indices = scores.gather(1, order), chunk_indices.gather(1, order)
    return best, indices


def sort_key(scores: Tensor) -> Tensor:
    """Return integers in the order of the scores, NaN below all of them."""
    integer = {torch.float32: torch.int32, torch.float64: torch.int64}[scores.dtype]
    bits = scores.view(integer)
    limits = torch.iinfo(integer)
    key = torch.where(bits >= 0, bits, bits ^ limits.max)
    return torch.where(scores.isnan(), limits.min, key)


def reference_similarity(out: Tensor, inputs: Inputs) -> None:
    """Write the similarity into `out` (N, M)."""
    out.copy_(enhanced_similarity(inputs))


def reference_topk(values: Tensor, indices: Tensor, inputs: Inputs) -> None:
    """Write the k best into `values` and `indices` (N, k)."""
    best, where = enhanced_topk(inputs, values.shape[1])
    values.copy_(best)
    indices.copy_(where)


def _product(left: Tensor, right: Tensor) -> Tensor:
    real = accumulation_dtype(left.dtype)
    return left.to(real) @ right.to(real).T


def _gated(x: Tensor, row_gate: Tensor | None, column_gate: Tensor | None) -> Tensor:
    """Return r_i c_j x, and 0 where either gate is 0, even if x is infinite or NaN.

    Only such values are masked, so that a gate of 0 has its derivative.
    """
    if row_gate is not None:
        gates, closed = row_gate[:, None], (row_gate == 0)[:, None]
        if column_gate is not None:
            gates, closed = gates * column_gate, closed | (column_gate == 0)
    elif column_gate is not None:
        gates, closed = column_gate, column_gate == 0
    else:
        return x
    gates, x = (torch.where(closed & ~each.isfinite(), 0.0, each) for each in (gates, x))
    return gates * x
