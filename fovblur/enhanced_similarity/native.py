"""The compiled kernels of fovblur._cpu and fovblur._cuda, called with addresses and strides."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from fovblur import backends
from fovblur.dtypes import DTYPES
from fovblur.enhanced_similarity import chunked_topk
from fovblur.enhanced_similarity.params import Inputs
from fovblur.enhanced_similarity.slices import slices_of

MOST_IMAGES = 2**32 - 2  # of a top-k on CUDA, whose keys have 32 bits for an index


def cpu_similarity(out: Tensor, inputs: Inputs) -> None:
    """Write the similarity into `out` (N, M), contiguous, in the dtype of the embeddings."""
    module = backends.load_native("cpu")
    module.enhanced_similarity(similarity_params(module, inputs), out.data_ptr(), torch.get_num_threads())


def cpu_topk(values: Tensor, indices: Tensor, inputs: Inputs) -> None:
    """Write the k best into `values` and `indices` (N, k), contiguous."""
    module = backends.load_native("cpu")
    best = module.TopK(values.shape[1], values.data_ptr(), indices.data_ptr())
    module.enhanced_topk(similarity_params(module, inputs), best, torch.get_num_threads())


def cuda_similarity(out: Tensor, inputs: Inputs) -> None:
    """Do as :func:`cpu_similarity` on the current stream of the device."""
    with torch.cuda.device(out.device):
        launch_similarity(backends.load_native("cuda"), torch.cuda.current_stream(out.device).cuda_stream, out, inputs)


def cuda_topk(values: Tensor, indices: Tensor, inputs: Inputs) -> None:
    """Do as :func:`cpu_topk` on the current stream of the device."""
    with torch.cuda.device(values.device):
        stream = torch.cuda.current_stream(values.device).cuda_stream
        launch_topk(backends.load_native("cuda"), stream, values, indices, inputs)


def launch_similarity(module: ModuleType, stream: int, out: Tensor, inputs: Inputs) -> None:
    """Launch on a cudaStream_t; `out` is contiguous, in the dtype of the embeddings or float32."""
    module.enhanced_similarity(similarity_params(module, inputs), out.data_ptr(), DTYPES.index(out.dtype), stream)


def launch_topk(module: ModuleType, stream: int, values: Tensor, indices: Tensor, inputs: Inputs) -> None:
    """Launch top-k on a cudaStream_t: fused for a small k, in chunks of the gallery for a large one."""
    (recordings, k), images = values.shape, len(inputs.image)
    if images > MOST_IMAGES:
        limit = f"backend 'cuda' ranks at most {MOST_IMAGES:,}"
        raise ValueError(f"image has {images:,} rows; {limit}: split them and merge the best")
    if k > module.MOST_FUSED:
        chunked_topk.topk(functools.partial(launch_similarity, module, stream), values, indices, inputs)
        return
    params = similarity_params(module, inputs)
    row_tiles, column_tiles = (-(-rows // module.SCORE_TILE) for rows in (recordings, images))
    keys = indices.new_empty(recordings, slices_of(row_tiles, column_tiles, module.multiprocessors()), k)
    best = module.TopK(k, values.data_ptr(), indices.data_ptr())
    module.enhanced_topk(params, best, keys.data_ptr(), keys.shape[1], stream)


def similarity_params(module: ModuleType, inputs: Inputs):
    """Return the struct that the module takes. It borrows the tensors' memory: they must outlive the call."""
    embeddings = lambda tensor: (tensor.data_ptr(), *tensor.stride())  # noqa: E731
    gate = lambda tensor: (0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0))  # noqa: E731
    return module.SimilarityParams(
        shape=(len(inputs.brain_image), *inputs.image.shape, inputs.text.shape[1]),
        dtype=DTYPES.index(inputs.image.dtype),
        brain_image=embeddings(inputs.brain_image),
        image=embeddings(inputs.image),
        brain_text=embeddings(inputs.brain_text),
        text=embeddings(inputs.text),
        row_gate=gate(inputs.row_gate),
        column_gate=gate(inputs.column_gate),
        allow_tf32=torch.get_float32_matmul_precision() != "highest",
    )
