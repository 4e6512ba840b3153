"""The training loop: recordings resident on the device, batches by index, one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from lightning_fabric import Fabric
from torch import Tensor

from bvsa_core.data.split import Split
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Batch, Method
from bvsa_core.training.config import RunConfig
from bvsa_core.vision.views import Views


def fit(
    method: Method,
    train: Split,
    views: Views,
    texts: Tensor,
    config: RunConfig,
    fabric: Fabric,
    report: Callable[[dict], None] = lambda metrics: None,
) -> None:
    """Train a method in place.

    Args:
        train: samples on the device; recordings (samples, channels, time).
        views: gives the features of train's pictures.
        texts: (pictures, D) features of the prompts of train's pictures.
        report: called after every epoch with its metrics.

    Raises:
        UserError: the loss is no longer finite.
    """
    optimiser = torch.optim.AdamW(method.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    module, optimiser = fabric.setup(method, optimiser)
    module.train()
    for epoch in range(config.epochs):
        total = torch.zeros((), device=train.recordings.device)
        for samples in batches(len(train), config.batch_size, config.seed, epoch, train.recordings.device):
            pictures = train.image_of[samples]
            gain, kernel_size = method.blur(samples)
            images = views(pictures, gain.to(samples.device), kernel_size.to(samples.device))
            loss = module(Batch(samples, train.recordings[samples], images, texts[pictures]))
            fabric.backward(loss)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            total += loss.detach() * len(samples)
        mean = (total / len(train)).item()
        if not mean < float("inf"):
            raise UserError(f"the loss of epoch {epoch + 1} is {mean}; lower the learning rate (now {config.lr:g})")
        report({"epoch": epoch + 1, "loss": mean, **blur_census(method, len(train))})


def batches(count: int, size: int, seed: int, epoch: int, device: torch.device) -> Iterator[Tensor]:
    """Sample numbers of every batch of an epoch; their order depends on seed and epoch alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return iter(torch.randperm(count, generator=generator).to(device).split(size))


def blur_census(method: Method, samples: int) -> dict[str, dict[str, int]]:
    """How many training samples will be seen at each blur level next."""
    gain, kernel_size = method.blur(torch.arange(samples, device=method.logit_scale.device))
    pairs = torch.stack([kernel_size.float().cpu(), gain.float().cpu()], dim=1)
    levels, counts = pairs.unique(dim=0, return_counts=True)
    return {"blur": {f"k{int(k)} gain {g:g}": n for (k, g), n in zip(levels.tolist(), counts.tolist())}}
