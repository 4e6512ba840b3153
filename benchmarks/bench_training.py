"""An epoch of training against the same model fed by a DataLoader of per-item dicts, as in the reference code.

The peer copies UBP's released code (base/data_eeg.py): recordings are stored as float16 and converted to float32 one by
one; features are looked up by the image's path and by its name; an item is a dict of eleven values, among them the
recording twice, which the loader's default collation stacks; layers run one after another; each direction of the loss
multiplies its own logits; AdamW is torch's default. UBP uses 32 worker processes, which on two cores are slower than
none (`--select workers` shows it for two). Its batch accuracy and logging are omitted, and both keep freed memory, see
bvsa_core.allocator.

Recordings and features are random, in the shapes of THINGS-EEG. Both take the same batches in the same order, and the
losses of two batches are first compared, without dropout.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.flop_counter import FlopCounterMode

from bvsa_core import allocator, encoders, methods
from bvsa_core.data.split import Split
from bvsa_core.encoders import tsconv
from bvsa_core.methods.base import Batch, Method
from bvsa_core.training.config import RunConfig, method_options
from bvsa_core.training.loop import batches, fit
from bvsa_core.vision.views import BankedViews

allocator.tune_allocator()  # as the command does, for ours and for the peers
SUITE = "training"
OURS = "bvsa_core"
PEERS = {"DataLoader of dicts": 0, "the same, 2 workers": 2}  # processes
CHANNELS, SAMPLES = 17, 250


@dataclass(frozen=True)
class Case:
    """One method with one brain encoder and embeddings of `width` numbers; every sample has its own image."""

    method: str
    encoder: str
    width: int
    recordings: int = 16_540
    batch: int = 1024

    def __str__(self) -> str:
        shape = f"{self.recordings:,} x {CHANNELS} x {SAMPLES}"
        return f"{self.method} {self.encoder} z{self.width}, {shape}, batch {self.batch}"


CASES = [
    Case("vanilla", "eeg_project", 64, recordings=1024, batch=128),
    Case("vanilla", "eeg_project", 256),
    Case("vanilla", "tsconv", 256, recordings=4096),
    Case("bvsa", "eeg_project", 1024),
]


@dataclass(frozen=True)
class Material:
    """The data and the model of both providers."""

    method: Method
    split: Split
    views: BankedViews  # of all levels of the method; nine for BVSA
    texts: torch.Tensor
    config: RunConfig


def make(case: Case, device: torch.device) -> Material:
    torch.manual_seed(0)
    count = case.recordings
    recordings = torch.randn(count, CHANNELS, SAMPLES, device=device).half().float()
    every = torch.arange(count, device=device)
    split = Split(
        recordings, every, [str(i) for i in range(count)], [""] * count, [""] * CHANNELS, 4, 0 * every, ["sub-01"]
    )
    options = method_options(case.method, "corrected")
    shape = encoders.InputSpec(CHANNELS, SAMPLES, case.width)
    method = methods.method_class(case.method)(
        options, functools.partial(encoders.build, case.encoder), count, shape
    ).to(device)
    levels = method.training_levels()
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
    """One dict per sample, as UBP's EEGDataset makes it, with features of the level of the epoch."""

    def __init__(self, material: Material):
        count = len(material.split)
        self.recordings = material.split.recordings.half().cpu()
        self.paths = [f"train_images/{i // 10:05d}_concept/concept_{i % 10:02d}s.jpg" for i in range(count)]
        self.names = [f"concept {i}" for i in range(count)]
        self.sessions = np.tile(np.arange(4.0), (count, 1))
        levels = [(level.kernel_size, level.gain) for level in material.views.levels]
        self.images = {level: dict(zip(self.paths, of)) for level, of in zip(levels, material.views.features.cpu())}
        self.texts = dict(zip(self.names, material.texts.cpu()))
        self.levels: list[tuple[int, float]] = []  # of the samples

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, sample: int) -> dict:
        recording = self.recordings[sample].float()
        path, name = self.paths[sample], self.names[sample]
        return {
            "idx": sample,
            "eeg": recording[:, 0:SAMPLES],
            "label": sample,
            "img_path": path,
            "img": "None",
            "img_features": self.images[self.levels[sample]][path],
            "text": f"This is a {name}.",
            "text_features": self.texts[name],
            "session": self.sessions[sample],
            "subject": 0,
            "eeg_mean": recording[:, 0:SAMPLES],
        }


def published_loss(brain: torch.Tensor, other: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss as open_clip and UBP compute it, and the logits."""
    logits, transposed = scale * brain @ other.T, scale * other @ brain.T
    labels = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, labels) + cross_entropy(transposed, labels)) / 2, logits


def by_loader(material: Material, device: torch.device, workers: int = 0) -> Callable[[], float]:
    method, config = material.method, material.config
    order = [
        part.tolist() for part in batches(len(material.split), config.batch_size, config.seed, 0, torch.device("cpu"))
    ]
    items, on_gpu = Items(material), device.type == "cuda"
    for module in method.modules():
        if isinstance(module, tsconv.TSConv):
            module.forward = functools.partial(torch.nn.Sequential.forward, module)

    def epoch() -> float:
        gain, kernel_size = method.blur(torch.arange(len(items), device=device))
        items.levels = list(zip(kernel_size.tolist(), gain.tolist()))
        loader = DataLoader(
            items, batch_sampler=order, num_workers=workers, pin_memory=on_gpu, generator=torch.Generator()
        )
        optimiser = torch.optim.AdamW(method.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        method.train()
        total = 0.0
        for batch in loader:
            samples, *others = (batch[key].to(device) for key in ("idx", "eeg", "img_features", "text_features"))
            with mock.patch.object(sys.modules[type(method).__module__], "symmetric_contrastive", published_loss):
                loss = method(Batch(samples, *others, 0 * samples))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(samples)
        return total / len(items)

    return epoch


def multiply_adds(material: Material) -> int:
    """Return the multiply-adds of an epoch, from those of one batch, forward and backward."""
    method, size = copy.deepcopy(material.method), material.config.batch_size
    some = torch.arange(size, device=material.texts.device)
    batch = Batch(some, material.split.recordings[:size], material.texts[:size], material.texts[:size], 0 * some)
    with FlopCounterMode(display=False) as counter:
        method(batch).backward()
    return counter.get_total_flops() // 2 * len(material.split) // size


def first_loss(build: Callable[..., Callable[[], float]], material: Material, device: torch.device) -> float:
    """Return the loss of an epoch of two batches, without dropout, whose draws depend on the memory layout."""
    method = copy.deepcopy(material.method)
    for module in method.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    some = torch.arange(2 * material.config.batch_size, device=device)
    return build(replace(material, method=method, split=material.split.take(some)), device)()


# Only one case compares workers.
COMPARED = [
    (case, provider) for case in CASES for provider in (OURS, *PEERS) if not PEERS.get(provider) or case == CASES[1]
]


@pytest.mark.parametrize(("case", "provider"), COMPARED, ids=str)
def bench_training(case, provider, device, limits, time_provider):
    material = make(case, device)
    ours, peers = first_loss(by_ours, material, device), first_loss(by_loader, material, device)
    assert abs(ours - peers) < 1e-4 * ours
    read = material.split.recordings.nbytes + 2 * material.texts.nbytes
    limit = limits.seconds(read, multiply_adds(material))
    function = by_ours(material, device) if provider == OURS else by_loader(material, device, PEERS[provider])
    time_provider(
        function, least=4, suite=SUITE, case=str(case), provider=provider, ours=provider == OURS, limit_s=limit
    )
