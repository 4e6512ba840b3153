"""The compiled kernels, called with addresses and strides: fovblur._cpu and fovblur._cuda."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fovblur import backends
from fovblur.dtypes import DTYPES
from fovblur.enhanced_similarity import chunked_topk

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fovblur.enhanced_similarity.validation import Inputs

MOST_IMAGES = 2**32 - 2  # of a top-k on CUDA, whose keys have 32 bits for an index


def cpu_similarity(out: Tensor, *inputs: Unpack[Inputs]) -> None:
    module = backends.load_native("cpu")
    module.enhanced_similarity(similarity_params(module, *inputs), out.data_ptr(), torch.get_num_threads())


def cpu_topk(values: Tensor, indices: Tensor, *inputs: Unpack[Inputs]) -> None:
    module = backends.load_native("cpu")
    best = module.TopK(values.shape[1], values.data_ptr(), indices.data_ptr())
    module.enhanced_topk(similarity_params(module, *inputs), best, torch.get_num_threads())


def cuda_similarity(out: Tensor, *inputs: Unpack[Inputs]) -> None:
    module = backends.load_native("cuda")
    with torch.cuda.device(out.device):
        launch_similarity(module, torch.cuda.current_stream(out.device).cuda_stream, out, *inputs)


def cuda_topk(values: Tensor, indices: Tensor, *inputs: Unpack[Inputs]) -> None:
    module = backends.load_native("cuda")
    with torch.cuda.device(values.device):
        launch_topk(module, torch.cuda.current_stream(values.device).cuda_stream, values, indices, *inputs)


def launch_similarity(module: ModuleType, stream: int, out: Tensor, *inputs: Unpack[Inputs]) -> None:
    """`out` is contiguous and of the dtype of the embeddings or float32."""
    module.enhanced_similarity(similarity_params(module, *inputs), out.data_ptr(), DTYPES.index(out.dtype), stream)


def launch_topk(module: ModuleType, stream: int, values: Tensor, indices: Tensor, *inputs: Unpack[Inputs]) -> None:
    (recordings, k), images = values.shape, inputs[1].shape[0]
    if images > MOST_IMAGES:
        raise ValueError(
            f"image has {images:,} rows; backend 'cuda' ranks at most {MOST_IMAGES:,}: split them and merge the best"
        )
    if k > module.MOST_FUSED:
        chunked_topk.topk(functools.partial(launch_similarity, module, stream), values, indices, *inputs)
        return
    params = similarity_params(module, *inputs)
    keys = indices.new_empty(recordings, module.topk_slices(params), k)
    best = module.TopK(k, values.data_ptr(), indices.data_ptr())
    module.enhanced_topk(params, best, keys.data_ptr(), keys.shape[1], stream)


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
        allow_tf32=torch.get_float32_matmul_precision() != "highest",
    )
