"""The training loop: recordings resident on the device, batches by index, one optimiser."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from bvsa_core.data.split import Split
from bvsa_core.distributed.processes import ProcessGroup
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Batch, Method
from bvsa_core.training.augmentation import Augmentation
from bvsa_core.training.checkpoint import Checkpointer, TrainingState
from bvsa_core.training.config import RunConfig
from bvsa_core.training.logs import Log, no_log
from bvsa_core.training.selection import Best
from bvsa_core.vision.views import Views, features_at

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Source: TypeAlias = tuple[Split, Views, Tensor]  # samples, and views and texts of their images


def fit(
    method: Method,
    train: Split,
    views: Views,
    texts: Tensor,
    config: RunConfig,
    fabric: Fabric,
    report: Log = no_log,
    held_out: tuple[Split, Views] | None = None,
    extra_metrics: Callable[[], dict[str, float]] | None = None,
    checkpointer: Checkpointer | None = None,
    unpaired: Source | None = None,
    augment: Augmentation | None = None,
    prefetch: Callable[[Tensor], None] | None = None,
) -> int:
    """Train a method in place, and return the epoch, from 1, whose weights config.selection kept.

    Args:
        method: the method, on its device.
        train: samples on the device; recordings (samples, channels, time).
        views: gives the features of train's images.
        texts: (images, D) features of the prompts of train's images.
        config: the run's configuration.
        fabric: from `make_fabric`.
        report: called after every epoch with its metrics.
        held_out: samples to validate on, with views of the same images at the gallery's levels.
        extra_metrics: called after every epoch for more metrics, which the selection may need.
        checkpointer: saves the training state, and restores that of an earlier process.
        unpaired: samples, views and texts as of train; the method trains on their images and texts, without their
            recordings, before the samples of every epoch, on each image as often as its recordings were repeated.
        augment: augments the recordings of every batch of train.
        prefetch: called with the images (B,) of the next batch, numbers on the CPU, while the device is at work.

    Raises:
        UserError: the loss is no longer finite, or several processes train on unpaired images.
    """
    everything = torch.arange(len(train), device=train.image_of.device)
    method.setup(lambda: make_batch(method, train, everything, views, texts))
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimiser]
    options = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay, "fused": True}
    optimiser = kind(parameter_groups(method, config), **options)
    best, total = Best(config.selection), torch.zeros((), device=train.recordings.device)
    state = TrainingState(method, optimiser, best, total, fabric, config)
    checkpointer = checkpointer or Checkpointer()
    processes = checkpointer.processes
    if unpaired is not None and processes.size > 1:
        raise UserError(f"method {config.method} trains on test features in one process; start it without torchrun")
    module, optimiser = fabric.setup(method, optimiser)
    method.epochs = config.epochs
    checkpointer.resume(state)
    for epoch in range(state.epoch, config.epochs):
        if config.patience and best.stalled >= config.patience:
            break
        module.train()
        method.epoch = epoch
        if state.batch == 0:
            start_epoch(method, state.parts["optimiser"])  # which Fabric's wrapper shares only until a state is loaded
        order = epoch_order(config, epoch, (train, views, texts), unpaired)
        rest = order[state.batch + 1 :] if prefetch is not None else []
        upcoming = iter([split.image_of[samples].cpu() for samples, (split, *_) in rest])
        for samples, (split, split_views, split_texts) in order[state.batch :]:
            if config.schedule != "constant":
                schedule(state.parts["optimiser"], (epoch + state.batch / len(order)) / config.epochs)
            with fabric.autocast() if method.vision is not None else nullcontext():
                batch = make_batch(method, split, samples, split_views, split_texts)
            if split is not train:
                batch.recordings = batch.recordings[:0]
            elif augment is not None:
                batch.recordings = augment(samples, epoch, state.batch)
            loss = module(batch)
            fabric.backward(loss)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if prefetch is not None and (images := next(upcoming, None)) is not None:
                prefetch(images)
            if method.learnt_blur is not None and method.learnt_blur.kind == "similarity":
                method.learnt_blur.observe(samples, similarities(method, batch))
            if split is train:
                total += loss.detach() * len(samples)
            state.batch += 1
            checkpointer.on_step_end(state, config.epochs, len(order))
        mean = (total / len(train)).item()
        if not mean < float("inf"):
            rates = {"lr": True, "vision_lr": method.vision is not None, "blur_lr": method.learnt_blur is not None}
            shown = " or ".join(f"{name} (now {getattr(config, name):g})" for name, used in rates.items() if used)
            raise UserError(f"the loss of epoch {epoch + 1} is {mean}; lower the learning rate, {shown}")
        processes.broadcast_buffers(method)  # running statistics may differ where there is no SyncBatchNorm
        metrics = {"epoch": epoch + 1, "loss": mean, **blur_metrics(method, train)}
        if held_out is not None:
            metrics["validation_loss"] = validate(module, method, *held_out, texts, config.batch_size)
        if extra_metrics is not None:
            with torch.random.fork_rng():  # training draws the same numbers with and without extra metrics
                metrics |= extra_metrics()
        metrics = processes.broadcast(lambda: metrics)  # noqa: B023  all select by the same numbers
        best.update(method, metrics)
        report(metrics)
        state.epoch, state.batch = epoch + 1, 0
        total.zero_()
        checkpointer.on_step_end(state, config.epochs, len(order))
    return best.restore(method)


def parameter_groups(method: Method, config: RunConfig) -> list[dict[str, Any]]:
    """Return the optimiser's groups of parameters: the method's, and those of a trained image encoder and blur.

    A learnt blur has no weight decay, which would pull it to the middle of its ranges.
    """
    groups = method.parameter_groups()
    own: list[dict[str, Any]] = []
    if method.vision is not None:
        own.append({"params": list(method.vision.parameters()), "lr": config.vision_lr})
    if method.learnt_blur is not None:
        own.append({"params": list(method.learnt_blur.parameters()), "lr": config.blur_lr, "weight_decay": 0.0})
    taken = {id(one) for each in own for one in each["params"]}
    groups = [{**each, "params": [one for one in each["params"] if id(one) not in taken]} for each in groups]
    return [*groups, *own]


def start_epoch(method: Method, optimiser: torch.optim.Optimizer) -> None:
    """Let the method change the optimiser, whose learning rates are those without schedule."""
    for group in optimiser.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])
    method.start_epoch(optimiser)
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]


def schedule(optimiser: torch.optim.Optimizer, done: float) -> None:
    """Set every learning rate to its part by half a cosine when a share `done` of the training is over."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * (1 + math.cos(math.pi * done)) / 2


def make_fabric(device: torch.device, processes: ProcessGroup, precision: Any) -> Fabric:
    """Return the Fabric that runs a training on a device: alone, or by DDP with other processes."""
    if precision == "16-mixed" and device.type == "cpu":
        raise UserError("precision 16-mixed is for GPUs; take bf16-mixed on the CPU")
    from lightning_fabric import Fabric  # takes a second to import
    from lightning_fabric.plugins.environments import TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy

    if processes.size == 1:
        devices = [device.index or 0] if device.type == "cuda" else 1
        return Fabric(accelerator=device.type, devices=devices, precision=precision)
    fabric = Fabric(
        accelerator=device.type,
        strategy=DDPStrategy(static_graph=True),  # allows parameters that no loss depends on
        devices=processes.local_size,
        num_nodes=processes.size // processes.local_size,
        precision=precision,
        plugins=[TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


def make_batch(method: Method, split: Split, samples: Tensor, views: Views, texts: Tensor) -> Batch:
    """Return training samples (B,) with the features of their images under the method's blur."""
    image_index = split.image_of[samples]
    subjects = split.subject_of[samples]
    images = views(image_index, *(each.to(samples.device) for each in method.next_blur(samples, subjects)))
    return Batch(samples, split.recordings[samples], images, method.text_targets(texts[image_index]), subjects)


@torch.no_grad()
def validate(
    module: torch.nn.Module, method: Method, split: Split, views: Views, texts: Tensor, batch_size: int
) -> float:
    """Return the mean loss of held-out samples, whose images have the first gallery level.

    Leaves the method's state and the stream of random numbers alone.
    """
    module.eval()
    level = method.retrieval_levels()[0]
    total = 0.0
    with torch.random.fork_rng():
        for samples in torch.arange(len(split), device=split.image_of.device).split(batch_size):
            image_index = split.image_of[samples]
            images = features_at(level, views, image_index)
            about = method.text_targets(texts[image_index]), split.subject_of[samples]
            batch = Batch(samples, split.recordings[samples], images, *about)
            total += module(batch).item() * len(samples)
    return total / len(split)


def epoch_order(config: RunConfig, epoch: int, train: Source, unpaired: Source | None) -> list[tuple[Tensor, Source]]:
    """Return the samples of every batch of an epoch and their source; those without recordings come first."""
    draw = partial(batches, size=config.batch_size, seed=config.seed, epoch=epoch, device=train[0].recordings.device)
    order = [(samples, train) for samples in draw(len(train[0]))]
    if unpaired is not None:
        count = len(unpaired[0])
        order = [*((samples % count, unpaired) for samples in draw(count * unpaired[0].repetitions)), *order]
    return order


def batches(count: int, size: int, seed: int, epoch: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return the sample numbers of every batch of an epoch; their order depends on seed and epoch alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator).to(device).split(size)


@torch.no_grad()
def similarities(method: Method, batch: Batch) -> Tensor:
    """Return the cosine similarities (B,) of a batch's recordings and images, without dropout."""
    method.eval()
    brain, _ = method.embed(batch.recordings, batch.subjects)
    method.train()
    return (brain * method.embed_images(batch.images[None])[0]).sum(dim=-1)


def blur_metrics(method: Method, train: Split) -> dict[str, Any]:
    """Return the learnt blur, or how many training samples get each blur level next; continuous levels are rounded."""
    if method.learnt_blur is not None:
        return {"learnt_blur": method.learnt_blur.values(train.subjects)}
    gain, kernel_size = method.blur(torch.arange(len(train), device=train.image_of.device))
    if kernel_size.is_floating_point():
        gain, kernel_size = (gain * 10).round() / 10, kernel_size.round()
    counts = Counter(zip(kernel_size.tolist(), gain.tolist()))
    return {"blur": {f"k{int(k)} gain {g:g}": count for (k, g), count in sorted(counts.items())}}
