"""The training loop: recordings resident on the device, batches by index, one optimiser."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bvsa_core.data.split import Split
from bvsa_core.distributed.processes import ProcessGroup
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Batch, Method
from bvsa_core.training.config import RunConfig
from bvsa_core.training.resume import Checkpointer, TrainingState
from bvsa_core.training.selection import Best
from bvsa_core.vision.views import Views

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fit(
    method: Method,
    train: Split,
    views: Views,
    texts: Tensor,
    config: RunConfig,
    fabric: Fabric,
    report: Callable[[dict], None] = lambda metrics: None,
    held_out: tuple[Split, Views] | None = None,
    examine: Callable[[], dict[str, float]] | None = None,
    keeper: Checkpointer | None = None,
) -> int:
    """Train a method in place. Returns the epoch, from 1, whose weights config.selection left it with.

    Args:
        train: samples on the device; recordings (samples, channels, time).
        views: gives the features of train's images.
        texts: (images, D) features of the prompts of train's images.
        report: called after every epoch with its metrics.
        held_out: samples not trained on, whose loss is among the metrics, with views of the same images as the gallery's.
        examine: called after every epoch for more metrics, those that the selection goes by.
        keeper: keeps where training stands, and knows where an earlier process left it.

    Raises:
        UserError: the loss is no longer finite.
    """
    method.setup(
        lambda: make_batch(method, train, torch.arange(len(train), device=train.image_of.device), views, texts)
    )
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimiser]
    optimiser = kind(
        method.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    best, total = Best(config.selection), torch.zeros((), device=train.recordings.device)
    standing, keeper = TrainingState(method, optimiser, best, total, fabric), keeper or Checkpointer()
    module, optimiser = fabric.setup(method, optimiser)
    method.epochs = config.epochs
    keeper.resume(standing)
    for epoch in range(standing.epoch, config.epochs):
        module.train()
        method.epoch = epoch
        order = list(batches(len(train), config.batch_size, config.seed, epoch, train.recordings.device))
        for samples in order[standing.batch :]:
            loss = module(make_batch(method, train, samples, views, texts))
            fabric.backward(loss)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            total += loss.detach() * len(samples)
            standing.batch += 1
            keeper.passed(standing, config.epochs, len(order))
        mean = (total / len(train)).item()
        if not mean < float("inf"):
            raise UserError(f"the loss of epoch {epoch + 1} is {mean}; lower the learning rate (now {config.lr:g})")
        metrics = {"epoch": epoch + 1, "loss": mean, **blur_level_counts(method, len(train))}
        if held_out is not None:
            metrics["validation_loss"] = validate(module, method, *held_out, texts, config.batch_size)
        if examine is not None:
            with torch.random.fork_rng():  # training draws the same numbers whether it is looked at or not
                metrics |= examine()
        metrics = keeper.team.ask_first(lambda: metrics)  # noqa: B023  others may round differently, and must choose the same
        best.update(method, metrics)
        report(metrics)
        standing.epoch, standing.batch = epoch + 1, 0
        total.zero_()
        keeper.passed(standing, config.epochs, len(order))
    return best.restore(method)


def make_fabric(device: torch.device, team: ProcessGroup, precision: Any) -> Fabric:
    """What runs a training on a device, together with the other processes of a team.

    Raises:
        UserError: a precision that the device does not have.
    """
    if precision == "16-mixed" and device.type == "cpu":
        raise UserError("precision 16-mixed is for GPUs; take bf16-mixed on the CPU")
    from lightning_fabric import Fabric  # takes a second to import
    from lightning_fabric.plugins.environments import TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy

    if team.size == 1:
        devices = [device.index or 0] if device.type == "cuda" else 1
        return Fabric(accelerator=device.type, devices=devices, precision=precision)
    fabric = Fabric(
        accelerator=device.type,
        strategy=DDPStrategy(static_graph=True),  # so that an encoder may have parameters that it does not use
        devices=team.local_size,
        num_nodes=team.size // team.local_size,
        precision=precision,
        plugins=[TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


def make_batch(method: Method, split: Split, samples: Tensor, views: Views, texts: Tensor) -> Batch:
    """Training samples (B,) with the features the method asks to see them with."""
    image_index = split.image_of[samples]
    gain, kernel_size = method.blur(samples)
    images = views(image_index, gain.to(samples.device), kernel_size.to(samples.device))
    return Batch(samples, split.recordings[samples], images, texts[image_index], split.subject_of[samples])


@torch.no_grad()
def validate(
    module: torch.nn.Module, method: Method, split: Split, views: Views, texts: Tensor, batch_size: int
) -> float:
    """Mean loss of held-out samples, seen as the gallery is; leaves the method's state and the stream of random numbers alone."""
    module.eval()
    level = method.gallery_levels()[0]
    total = 0.0
    with torch.random.fork_rng():
        for samples in torch.arange(len(split), device=split.image_of.device).split(batch_size):
            image_index = split.image_of[samples]
            gain = torch.full(image_index.shape, level.gain, device=image_index.device)
            images = views(image_index, gain, torch.full_like(image_index, level.kernel_size))
            batch = Batch(samples, split.recordings[samples], images, texts[image_index], split.subject_of[samples])
            total += module(batch).item() * len(samples)
    return total / len(split)


def batches(count: int, size: int, seed: int, epoch: int, device: torch.device) -> Iterator[Tensor]:
    """Sample numbers of every batch of an epoch; their order depends on seed and epoch alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return iter(torch.randperm(count, generator=generator).to(device).split(size))


def blur_level_counts(method: Method, samples: int) -> dict[str, dict[str, int]]:
    """How many training samples will be seen at each blur level next; levels between the steps are rounded."""
    gain, kernel_size = method.blur(torch.arange(samples, device=next(method.parameters()).device))
    if kernel_size.is_floating_point():
        gain, kernel_size = (gain * 10).round() / 10, kernel_size.round()
    (sizes, of_size), (gains, of_gain) = (
        each.float().cpu().unique(return_inverse=True) for each in (kernel_size, gain)
    )
    counts = torch.bincount(of_size * len(gains) + of_gain, minlength=len(sizes) * len(gains)).tolist()
    pairs = itertools.product(sizes.tolist(), gains.tolist())
    return {"blur": {f"k{int(k)} gain {g:g}": n for (k, g), n in zip(pairs, counts) if n}}
