"""Processes that train together: those that torchrun started, or this one alone.

Every process has all samples and encodes its rows of each batch. Embeddings are gathered with gradients. The loss, the
state of every sample and the random numbers outside the encoders are those of the global batch, in every process.
"""

import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

Item = TypeVar("Item")


@dataclass(frozen=True)
class ProcessGroup:
    """Processes that torchrun started; one of one without it."""

    rank: int = 0
    size: int = 1
    local_size: int = 1  # of them on this machine
    device: str | None = None  # this process's own GPU

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))  # dist.barrier would need a GPU where NCCL is there

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items of this process."""
        return items[self.rank :: self.size]

    def gather(self, value: Item) -> list[Item]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, compute: Callable[[], Item]) -> Item:
        """Return what `compute` returns in the first process; the others do not call it."""
        if self.size == 1:
            return compute()
        values: list = [compute() if self.rank == 0 else None]
        dist.broadcast_object_list(values)
        return values[0]

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Give all processes the buffers of the first, such as running statistics."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def map_rows(self, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """Compute this process's rows of function(*inputs), and return the rows of all processes.

        Gradients of a row are summed over processes and flow to the one that computed it. All have the same loss, so
        DDP's mean is the gradient of one process with the whole batch.

        Args:
            function: computes each row of its result (B, ...) from the same row of the inputs.
            inputs: tensors (B, ...) or None.
        """
        if self.size == 1:
            return function(*inputs)
        sizes, local = self.rows(next(len(each) for each in inputs if each is not None))
        rows = function(*(each if each is None else each[local] for each in inputs))
        padded = pad(rows, [0, 0] * (rows.ndim - 1) + [0, max(sizes) - len(rows)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # deprecated in 2.13 for a function that 2.8 does not have
            from torch.distributed.nn.functional import all_gather

            gathered = all_gather(padded)
        return torch.cat([part[:size] for part, size in zip(gathered, sizes)])

    def rows(self, count: int) -> tuple[list[int], slice]:
        """Return how many of so many rows each process computes, and which of them this one does."""
        if count < self.size:  # every process computes all rows, and those of the first are taken
            return [count] + [0] * (self.size - 1), slice(count)
        sizes = [len(range(count)[rank :: self.size]) for rank in range(self.size)]
        return sizes, slice(sum(sizes[: self.rank]), sum(sizes[: self.rank + 1]))

    def shard_encoder(self, encoder: nn.Module, device: torch.device) -> nn.Module:
        """Let every process compute its rows of an encoder's batches; calls return the rows of all, see `map_rows`.

        Dropout and other random numbers of the encoder have a seed per process. On GPUs batch normalisation uses the
        statistics of the whole batch (SyncBatchNorm); on CPUs, which it does not support, those of the process's rows.
        """
        if self.size == 1:
            return encoder
        if device.type == "cuda":
            encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
        encoder.forward = self.shard_rows(encoder.forward, encoder, device)
        return encoder

    def shard_rows(self, function: Callable[..., Tensor], owner: nn.Module, device: torch.device) -> Callable:
        """Let every process compute its rows of a function, with random numbers of its own while `owner` is trained."""
        if self.size == 1:
            return function

        def sharded(*inputs: Tensor) -> Tensor:
            if not owner.training:
                return self.map_rows(function, *inputs)
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(random.getrandbits(62) + self.rank)  # torch's own stream stays that of one process
                return self.map_rows(function, *inputs)

        return sharded


@contextmanager
def init_processes() -> Iterator[ProcessGroup]:
    """Join the processes of torchrun, by RANK, WORLD_SIZE and LOCAL_RANK; without it, be the only one.

    If several processes fail, only the first reports its error; the others exit silently.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ProcessGroup()
        return
    store, rank, size = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    timeout = timedelta(days=365)  # others wait for the slowest as long as it takes
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    local, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", size))
    try:
        yield ProcessGroup(rank, size, local_size, f"cuda:{local}" if torch.cuda.device_count() > local else None)
    except BaseException as error:  # the group stays: a process that fails must not wait for others to leave it
        try:
            first = store.add("failed", 1) == 1
        except RuntimeError:  # the machine that keeps the store is gone, and its processes with it
            first = not isinstance(error, RuntimeError)
        if first:
            raise
        raise SystemExit(2) from error
    dist.destroy_process_group()
