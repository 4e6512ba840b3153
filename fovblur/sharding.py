"""Calls with distributed tensors (DTensor): every process computes its samples, without communication."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def is_distributed(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor."""
    if type(tensor) is Tensor:
        return False
    distributed = sys.modules.get("torch.distributed.tensor")  # which takes a second to import
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def by_sample(
    function: Callable[..., Any],
    first: Any,
    along: Sequence[Tensor | None],
    whole: Sequence[Tensor | None],
) -> Any:
    """Return `function(first, *along, *whole)`; if `first` is a DTensor, every process computes its samples.

    Args:
        function: of plain tensors; its results have the samples in dimension 0.
        first: a DTensor's sharding of dimension 0 is that of the results; any other placement is gathered.
        along: tensors with the same samples in dimension 0, which are sharded like `first`.
        whole: tensors that every process needs as a whole.

    Beside a DTensor, plain tensors are the same in all processes.
    """
    if not is_distributed(first):
        return function(first, *along, *whole)
    distributed = sys.modules["torch.distributed.tensor"]
    shard, replicate, mesh = distributed.Shard(0), distributed.Replicate(), first.device_mesh
    everywhere = [replicate] * mesh.ndim
    placements = [shard if each == shard else replicate for each in first.placements]
    to_be_summed = [distributed.Partial() if each == shard else replicate for each in placements]

    def local(tensor: Any, wanted: list, of_gradient: list) -> Tensor | None:
        if tensor is None:
            return None
        if not isinstance(tensor, distributed.DTensor):
            tensor = distributed.DTensor.from_local(tensor, mesh, everywhere, run_check=False)
        return tensor.redistribute(mesh, wanted).to_local(grad_placements=of_gradient)

    def as_distributed(result: Tensor) -> Tensor:
        shape, of_samples = (len(first), *result.shape[1:]), result.stride(0)
        local_samples = max(1, len(result))
        stride = tuple(s if s <= of_samples else s // local_samples * len(first) for s in result.stride())
        return distributed.DTensor.from_local(result, mesh, placements, run_check=False, shape=shape, stride=stride)

    samples = [local(each, placements, placements) for each in (first, *along)]
    results = function(*samples, *(local(each, everywhere, to_be_summed) for each in whole))
    return tuple(map(as_distributed, results)) if isinstance(results, tuple) else as_distributed(results)
