"""Processes that work on one thing: those that torchrun started, or this one alone.

Training in several processes is that of one process, shared out: every process has all samples and the whole batch, but
encodes its own part of it. Embeddings are gathered with gradients, so that every process computes the loss, the state of
every sample and every random number of the whole batch, and comes to the same.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bvsa_core.errors import UserError

Item = TypeVar("Item")


@dataclass(frozen=True)
class ProcessGroup:
    """Processes that torchrun started; one of one without it."""

    rank: int = 0
    size: int = 1
    local_size: int = 1  # of them on this machine
    device: str | None = None  # this process's own GPU

    def wait(self) -> None:
        """Until everyone is here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))  # a barrier goes by whatever backend there is, also one without CPUs

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this process."""
        return items[self.rank :: self.size]

    def gather(self, value: Item) -> list[Item]:
        """The values of all, by rank."""
        if self.size == 1:
            return [value]
        everyone: list = [None] * self.size
        dist.all_gather_object(everyone, value)
        return everyone

    def ask_first(self, question: Callable[[], Item]) -> Item:
        """What the first process answers, and only it is asked."""
        if self.size == 1:
            return question()
        answer: list = [question() if self.rank == 0 else None]
        dist.broadcast_object_list(answer)
        return answer[0]


@contextmanager
def team() -> Iterator[ProcessGroup]:
    """This process among those of torchrun, by RANK, WORLD_SIZE and LOCAL_RANK.

    Of several that fail the first tells why; the others, which fail for want of it, end without a word.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ProcessGroup()
        return
    store, rank, size = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    forever = timedelta(days=365)  # others wait for the slowest as long as it takes
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=forever)
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


def exit_with_parent() -> None:
    """Called in a worker process: it ends when its parent does, even killed, and at Ctrl-C, of which the parent tells."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


_together: ProcessGroup | None = None


@contextmanager
def together(members: ProcessGroup) -> Iterator[None]:
    """Inside, everything that is encoded is shared out, so all members must do the same in the same order."""
    global _together
    before, _together = _together, members if members.size > 1 else None
    try:
        yield
    finally:
        _together = before


def share_out(work: Callable[..., Tensor], first: Tensor, *others: Tensor | None, training: bool = False) -> Tensor:
    """work(first, *others), whose rows (B, ...) follow from the rows of the arguments, each process doing its part of them.

    Args:
        training: whether work may draw random numbers, which are then those of the whole batch, and normalise batches, which
            then are the whole one.
    """
    whole, count = (first, *others), len(first)
    if _together is None or count < _together.size:
        return work(*whole)
    least, more = divmod(count, _together.size)
    parts = Parts(_together.rank, [least + (rank < more) for rank in range(_together.size)])
    mine = [each if each is None else each[parts.mine] for each in whole]
    if not training:
        return gather_rows(work(*mine), parts)
    with (
        WholeBatchNorm(parts),
        WholeBatchRandom(parts),
        sdpa_kernel(SDPBackend.MATH),
    ):  # whose dropout is drawn by itself
        return gather_rows(work(*mine), parts)


@dataclass(frozen=True)
class Parts:
    """How the rows of a batch are shared out."""

    rank: int
    sizes: list[int]  # rows of each process, none of them 0

    @property
    def mine(self) -> slice:
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])


def gather_rows(rows: Tensor, parts: Parts) -> Tensor:
    """The rows (B, ...) of all processes, from those of this one. Gradients are those of the sum of all processes' losses."""
    return _Gather.apply(rows, parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, parts: Parts) -> Tensor:
        ctx.parts = parts
        padded = rows.new_zeros(max(parts.sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in parts.sizes]
        dist.all_gather(found, padded)
        return torch.cat([part[:size] for part, size in zip(found, parts.sizes)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.to(
            torch.promote_types(gradient.dtype, torch.float32), copy=True, memory_format=torch.contiguous_format
        )
        dist.all_reduce(total)
        return total[ctx.parts.mine].to(gradient.dtype), None


class WholeBatchNorm(TorchFunctionMode):
    """Batch normalisation by the statistics of the whole batch. PyTorch's own across processes is for GPUs alone."""

    def __init__(self, parts: Parts):
        super().__init__()
        self.parts = parts

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return (self.normalise if function is batch_norm else function)(*args, **(kwargs or {}))

    def normalise(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """As torch.nn.functional.batch_norm, for this process's part (b, channels, ...)."""
        if not training:
            return batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        dims = [0, *range(2, x.ndim)]
        along = lambda of_channel: of_channel.view(1, -1, *[1] * (x.ndim - 2))  # noqa: E731
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = y.mean(dims)
        squares = (y - along(mean)).square().sum(dims)
        ones = Parts(self.parts.rank, [1] * len(self.parts.sizes))
        means, squares = gather_rows(torch.stack([mean, squares])[None], ones).unbind(1)  # (processes, channels)
        per_row = y.numel() // y.shape[1] / self.parts.sizes[self.parts.rank]
        counts = torch.tensor(self.parts.sizes, dtype=y.dtype, device=y.device)[:, None] * per_row
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        squares = (squares + counts * (means - mean).square()).sum(0)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((squares / (count - 1)).to(running_var.dtype), momentum)
        scale = (squares / count + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        y = (y - along(mean)) * along(scale)
        return (y if bias is None else y + along(bias)).to(x.dtype)


# Operations that draw a number for each element of a tensor, whatever it holds.
_RANDOM = {
    f"aten::{name}"
    for name in ("native_dropout", "bernoulli_", "uniform_", "normal_", "exponential_", "rand_like", "randn_like")
}


class WholeBatchRandom(TorchDispatchMode):
    """Random numbers of the whole batch, of which this process takes its part: every process draws as one alone would."""

    def __init__(self, parts: Parts):
        super().__init__()
        self.parts = parts

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in function.tags or (
            function is torch.ops.aten.native_dropout.default and not args[2]
        ):
            return function(*args, **kwargs)
        like, *rest = args if args and isinstance(args[0], Tensor) else (torch.empty(()), *args)
        mine = self.parts.sizes[self.parts.rank]
        known = function._schema.name in _RANDOM and not any(isinstance(each, Tensor) for each in rest)
        if not known or like.ndim == 0 or len(like) % mine:
            raise UserError(
                f"the encoder draws random numbers ({function}) that are not one for each sample; train it without torchrun"
            )
        each = len(like) // mine  # rows of a sample
        rows = slice(self.parts.mine.start * each, self.parts.mine.stop * each)
        by_stride = sorted(range(like.ndim), key=lambda dim: -like.stride(dim))
        shape = (sum(self.parts.sizes) * each, *like.shape[1:])
        whole = torch.empty_permuted(shape, by_stride, dtype=like.dtype, device=like.device)
        if function is torch.ops.aten.native_dropout.default:
            kept, mask = function(whole.fill_(1), *rest, **kwargs)
            return like * kept[rows], mask[rows].clone()
        drawn = function(whole, *rest, **kwargs)
        if drawn is whole:  # in place
            return like.copy_(whole[rows])
        return drawn[rows].clone()
