"""Top-k for a k too large for the fused kernels: the gallery is scored in chunks and merged by PyTorch.

A candidate is one 64-bit key: the order of its float32 score, NaN lowest, above the complement of its index. No two
keys are equal and the larger one is the better, so torch.topk has only one possible result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fovblur.enhanced_similarity.params import Inputs

GALLERY_CHUNK = 16_384  # images scored at once, or k if that is more
SCORES = 2**24  # scores in memory at once
_LOW_HALF = 2**32 - 1
_MAGNITUDE = 2**31 - 1
_NAN_ORDER = -(2**31) + 1


def topk(score: Callable[[Tensor, Inputs], None], values: Tensor, indices: Tensor, inputs: Inputs) -> None:
    """Fill values (N, k) float32 and indices (N, k) int64.

    Args:
        score: writes the similarity of inputs of any strides into a contiguous float32 tensor (rows, images). Equal
            images must get equal scores in every chunk.
        values: (N, k) float32.
        indices: (N, k) int64.
        inputs: embeddings and gates.
    """
    recordings, images, k = len(inputs.brain_image), len(inputs.image), values.shape[1]
    width = max(GALLERY_CHUNK, k)
    height = max(1, SCORES // min(width, images))
    for top in range(0, recordings, height):
        rows = slice(top, top + height)
        best = indices.new_empty(len(values[rows]), 0)
        for first in range(0, images, width):
            chunk = inputs.part(rows, slice(first, first + width))
            scores = values.new_empty(len(best), len(chunk.image))
            score(scores, chunk)
            keys = torch.cat([best, keys_of(scores, first)], 1)
            best = keys.topk(min(k, keys.shape[1])).values
        decode(best, values[rows], indices[rows])


def keys_of(scores: Tensor, first: int) -> Tensor:
    """Return the keys of float32 scores (rows, images) of the images from number `first` on."""
    bits = (scores + 0.0).view(torch.int32)  # -0 becomes 0
    order = torch.where(scores.isnan(), _NAN_ORDER, torch.where(bits >= 0, bits, bits ^ _MAGNITUDE))
    complement = _LOW_HALF - torch.arange(first, first + scores.shape[1], device=scores.device)
    return order.long() << 32 | complement


def decode(keys: Tensor, values: Tensor, indices: Tensor) -> None:
    """Write the scores and indices of keys into tensors of the same shape."""
    order = (keys >> 32).int()
    values.copy_(torch.where(order >= 0, order, order ^ _MAGNITUDE).view(torch.float32))
    indices.copy_(_LOW_HALF - (keys & _LOW_HALF))
