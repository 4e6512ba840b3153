"""An epoch of training beside the same model fed by a DataLoader of per-item dicts, as the reference code feeds it.

Random recordings and features of the shapes of THINGS-EEG serve for time. Both take the same batches in the same order, and
the losses of their first epochs are compared first.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from lightning_fabric import Fabric
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.flop_counter import FlopCounterMode

from bvsa_core import encoders, methods
from bvsa_core.data.split import Split
from bvsa_core.methods.base import Batch, Method
from bvsa_core.training.config import RunConfig, method_options
from bvsa_core.training.loop import batches, fit
from bvsa_core.vision.views import BankedViews

SUITE = "training"
OURS, PEER = "bvsa_core", "DataLoader of dicts"
CHANNELS, SAMPLES = 17, 250


@dataclass(frozen=True)
class Case:
    """One method with one brain encoder, whose embeddings are `width` wide; every sample is of another picture."""

    method: str
    encoder: str
    width: int
    recordings: int = 16_540
    batch: int = 1024

    def __str__(self) -> str:
        return f"{self.method} {self.encoder} z{self.width}, {self.recordings:,} x {CHANNELS} x {SAMPLES}, batch {self.batch}"


CASES = [
    Case("vanilla", "eeg_project", 64, recordings=1024, batch=128),
    Case("vanilla", "eeg_project", 256),
    Case("vanilla", "tsconv", 256),
    Case("bvsa", "eeg_project", 1024),
]


@dataclass(frozen=True)
class Material:
    """What both providers train on."""

    method: Method
    split: Split
    views: BankedViews  # of all the levels that the method asks for; nine for BVSA
    texts: torch.Tensor
    config: RunConfig


def make(case: Case, device: torch.device) -> Material:
    torch.manual_seed(0)
    count = case.recordings
    recordings = torch.randn(count, CHANNELS, SAMPLES, device=device)
    every = torch.arange(count, device=device)
    split = Split(recordings, every, [str(i) for i in range(count)], [""] * count, [""] * CHANNELS, 4, 0 * every, ["sub-01"])
    options = method_options(case.method, "corrected")
    shape = encoders.Shape(CHANNELS, SAMPLES, case.width)
    method = methods.method_class(case.method)(options, functools.partial(encoders.build, case.encoder), count, shape).to(device)
    levels = method.levels()
    unit = lambda *sizes: normalize(torch.randn(*sizes, case.width, device=device), dim=-1)  # noqa: E731
    config = RunConfig(method=case.method, encoder=case.encoder, epochs=1, batch_size=case.batch)
    return Material(method, split, BankedViews(unit(len(levels), count), levels), unit(count), config)


def by_ours(material: Material, device: torch.device) -> Callable[[], float]:
    fabric = Fabric(accelerator=device.type, devices=1)
    losses = []
    report = lambda metrics: losses.append(metrics["loss"])  # noqa: E731

    def epoch() -> float:
        fit(material.method, material.split, material.views, material.texts, material.config, fabric, report)
        return losses[-1]

    return epoch


class Items(TorchDataset):
    """A dict a sample, with features of the level that the method asks for at the start of the epoch."""

    def __init__(self, material: Material):
        self.material = material
        number = {(level.kernel_size, level.gain): i for i, level in enumerate(material.views.levels)}
        gain, kernel_size = material.method.blur(torch.arange(len(material.split), device=material.texts.device))
        self.level = [number[pair] for pair in zip(kernel_size.tolist(), gain.tolist())]

    def __len__(self) -> int:
        return len(self.level)

    def __getitem__(self, sample: int) -> dict:
        material = self.material
        image = material.views.features[self.level[sample], sample]
        return {"idx": sample, "eeg": material.split.recordings[sample], "img_features": image, "text_features": material.texts[sample]}


def by_loader(material: Material, device: torch.device) -> Callable[[], float]:
    method, config = material.method, material.config
    order = [part.tolist() for part in batches(len(material.split), config.batch_size, config.seed, 0, torch.device("cpu"))]

    def epoch() -> float:
        loader = DataLoader(Items(material), batch_sampler=order, generator=torch.Generator())
        optimiser = torch.optim.AdamW(method.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        method.train()
        total = 0.0
        for items in loader:
            samples = items["idx"].to(device)
            loss = method(Batch(samples, items["eeg"], items["img_features"], items["text_features"], 0 * samples))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(samples)
        return total / len(material.split)

    return epoch


def multiply_adds(material: Material) -> int:
    """Of an epoch: those of a batch, forward and backward, for all samples."""
    method, size = copy.deepcopy(material.method), material.config.batch_size
    some = torch.arange(size, device=material.texts.device)
    batch = Batch(some, material.split.recordings[:size], material.texts[:size], material.texts[:size], 0 * some)
    with FlopCounterMode(display=False) as counter:
        method(batch).backward()
    return counter.get_total_flops() // 2 * len(material.split) // size


@pytest.mark.parametrize(("case", "provider"), [(case, provider) for case in CASES for provider in (OURS, PEER)], ids=str)
def bench_training(case, provider, device, limits, time_provider):
    material = make(case, device)
    losses = []
    for build in (by_ours, by_loader):
        fresh = replace(material, method=copy.deepcopy(material.method))
        torch.manual_seed(1)  # of dropout
        losses.append(build(fresh, device)())
    assert abs(losses[0] - losses[1]) < 1e-4 * losses[0]
    read = material.split.recordings.nbytes + 2 * material.texts.nbytes
    limit = limits.seconds(read, multiply_adds(material))
    function = (by_ours if provider == OURS else by_loader)(material, device)
    time_provider(function, suite=SUITE, case=str(case), provider=provider, ours=provider == OURS, limit_s=limit)
