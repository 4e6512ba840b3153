"""Calls in a CUDA graph, and on a stream whose inputs arrive late."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


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
