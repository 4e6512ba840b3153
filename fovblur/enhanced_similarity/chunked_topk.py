"""The k best for a k that no kernel keeps: the gallery scored chunk by chunk by the backend's own kernel, merged by PyTorch.

A candidate is one 64-bit key: the order of its float32 score, NaN lowest, above the complement of its index. No two are
equal and the larger is the better, so that the order of torch.topk is the only one there is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GALLERY_CHUNK = 16_384  # images scored at once; k where that is more
SCORES = 2**24  # scored at once
_LOW_HALF = 2**32 - 1
_MAGNITUDE = 2**31 - 1
_NAN_ORDER = -(2**31) + 1


def topk(
    score: Callable[..., None],
    values: Tensor,
    indices: Tensor,
    brain_image: Tensor,
    image: Tensor,
    brain_text: Tensor,
    text: Tensor,
    row_gate: Tensor | None,
    column_gate: Tensor | None,
) -> None:
    """Fill values (N, k) float32 and indices (N, k).

    `score(out, *inputs)` writes the similarity of embeddings of any strides into out (rows, images), which is float32 and
    contiguous whatever the embeddings are. Equal images must get equal scores in every chunk.
    """
    k = values.shape[1]
    chunk = max(GALLERY_CHUNK, k)
    height = max(1, SCORES // min(chunk, len(image)))
    for top in range(0, len(brain_image), height):
        rows = slice(top, top + height)
        gate = None if row_gate is None else row_gate[rows]
        best = indices.new_empty(len(brain_image[rows]), 0)
        for first in range(0, len(image), chunk):
            columns = slice(first, first + chunk)
            scores = values.new_empty(len(best), len(image[columns]))
            column_gates = None if column_gate is None else column_gate[columns]
            score(scores, brain_image[rows], image[columns], brain_text[rows], text[columns], gate, column_gates)
            keys = torch.cat([best, keys_of(scores, first)], 1)
            best = keys.topk(min(k, keys.shape[1])).values
        decode(best, values[rows], indices[rows])


def keys_of(scores: Tensor, first: int) -> Tensor:
    """Keys of float32 scores whose columns are the images from `first` on."""
    bits = (scores + 0.0).view(torch.int32)  # -0 becomes 0
    order = torch.where(scores.isnan(), _NAN_ORDER, torch.where(bits >= 0, bits, bits ^ _MAGNITUDE))
    complement = _LOW_HALF - torch.arange(first, first + scores.shape[1], device=scores.device)
    return order.long() << 32 | complement


def decode(keys: Tensor, values: Tensor, indices: Tensor) -> None:
    """Scores and indices of keys, into tensors of the same shape."""
    order = (keys >> 32).int()
    values.copy_(torch.where(order >= 0, order, order ^ _MAGNITUDE).view(torch.float32))
    indices.copy_(_LOW_HALF - (keys & _LOW_HALF))
