"""The compiled kernels, called with addresses and strides: fovblur._cpu."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fovblur import backends
from fovblur.dtypes import DTYPES


def cpu_similarity(out: Tensor, *inputs: Tensor | None) -> None:
    module = backends.load_native("cpu")
    module.enhanced_similarity(similarity_params(module, *inputs), out.data_ptr(), torch.get_num_threads())


def cpu_topk(values: Tensor, indices: Tensor, *inputs: Tensor | None) -> None:
    module = backends.load_native("cpu")
    best = module.TopK(values.shape[1], values.data_ptr(), indices.data_ptr())
    module.enhanced_topk(similarity_params(module, *inputs), best, torch.get_num_threads())


def similarity_params(
    module: ModuleType,
    brain_image: Tensor,
    image: Tensor,
    brain_text: Tensor,
    text: Tensor,
    row_gate: Tensor | None,
    column_gate: Tensor | None,
):
    """The struct the module takes. It borrows the tensors' memory: they must outlive the call."""
    embeddings = lambda tensor: (tensor.data_ptr(), *tensor.stride())  # noqa: E731
    gate = lambda tensor: (0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0))  # noqa: E731
    return module.SimilarityParams(
        shape=(*brain_image.shape[:1], *image.shape, text.shape[1]),
        dtype=DTYPES.index(brain_image.dtype),
        brain_image=embeddings(brain_image),
        image=embeddings(image),
        brain_text=embeddings(brain_text),
        text=embeddings(text),
        row_gate=gate(row_gate),
        column_gate=gate(column_gate),
    )
