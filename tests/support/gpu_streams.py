"""What tests on a GPU share: marks, backends, inputs of any layout, CUDA graphs, streams whose inputs arrive late."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
import torch

import fovblur

T = TypeVar("T")
GPU_ONLY = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
TWO_GPUS_ONLY = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")


@pytest.fixture(params=["cuda", "triton"])
def backend(request) -> str:
    return request.param


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor with its strides, its offset and what lies beside it in memory; `Tensor.to` makes some dense."""
    if tensor.device == device:
        return tensor
    storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return storage.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def scores_and_topk(*embeddings, backend: str, k: int = 10, **gates: torch.Tensor) -> tuple[torch.Tensor, ...]:
    matrix = fovblur.enhanced_similarity(*embeddings, **gates, backend=backend)
    return (matrix, *fovblur.enhanced_topk(*embeddings, k, **gates, backend=backend))


def captured(function: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """Call a function once, which compiles its kernels, and capture it; return the graph and its results."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        return graph, function()


def on_late_inputs(function: Callable[..., T], late: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> T:
    """Call a function on a stream where `late` gets its values after a delay; a launch elsewhere reads too early."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        for target, value in zip(late, values):
            target.copy_(value)
        results = function(*late)
    torch.cuda.current_stream().wait_stream(stream)
    return results
