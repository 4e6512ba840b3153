"""A step of several runs that differ only in their seed: one after another, as grids train, or stacked by torch.func.

Stacked, each parameter of all runs is one tensor, a vmap computes every loss, and one AdamW updates the stack.
bvsa_core does not train like that: on the two cores measured so far it is slower at the sizes of the built-in grids,
and at best 1.15 times as fast at smaller ones. This suite shows whether it pays elsewhere. Losses after two steps are
first compared, without dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from bvsa_core import allocator, encoders, methods
from bvsa_core.methods.base import Batch, Method
from bvsa_core.training.config import method_options

allocator.tune_allocator()  # as the command does
SUITE = "stacking"
SINGLY, STACKED = "one after another", "stacked"
CHANNELS, SAMPLES = 17, 250


@dataclass(frozen=True)
class Case:
    """A number of runs of vanilla training."""

    encoder: str
    width: int
    batch: int
    runs: int

    def __str__(self) -> str:
        return f"{self.runs} runs of {self.encoder} z{self.width}, batch {self.batch} x {CHANNELS} x {SAMPLES}"


CASES = [
    Case("eeg_project", 128, batch=1024, runs=3),  # a row of the ablation
    Case("eeg_project", 64, batch=128, runs=10),
    Case("eeg_project", 128, batch=64, runs=10),
    Case("atm", 128, batch=64, runs=5),
]


@dataclass(frozen=True)
class Material:
    runs: list[Method]
    recordings: torch.Tensor  # (runs, batch, channels, samples)
    features: torch.Tensor  # (runs, batch, width)


def make(case: Case, device: torch.device, dropout: bool = True) -> Material:
    torch.manual_seed(0)
    shape = encoders.InputSpec(CHANNELS, SAMPLES, case.width)
    kind, options = methods.method_class("vanilla"), method_options("vanilla", "corrected")
    runs = [
        kind(options, lambda shape: encoders.build(case.encoder, shape), case.batch, shape).to(device)
        for _ in range(case.runs)
    ]
    if not dropout:
        for run in runs:
            run.eval()
    recordings = torch.randn(case.runs, case.batch, CHANNELS, SAMPLES, device=device)
    return Material(runs, recordings, normalize(torch.randn(case.runs, case.batch, case.width, device=device), dim=-1))


def batch_of(recordings: torch.Tensor, features: torch.Tensor) -> Batch:
    return Batch(torch.arange(len(features), device=features.device), recordings, features, features)


def optimiser_of(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4, fused=True)


def singly(material: Material) -> Callable[[], torch.Tensor]:
    optimisers = [optimiser_of(run.parameters()) for run in material.runs]

    def step() -> torch.Tensor:
        losses = []
        for run, optimiser, *inputs in zip(material.runs, optimisers, material.recordings, material.features):
            losses.append(run(batch_of(*inputs)))
            losses[-1].backward()
            optimiser.step()
            optimiser.zero_grad()
        return torch.stack(losses).detach()

    return step


def stacked(material: Material) -> Callable[[], torch.Tensor]:
    parameters, buffers = stack_module_state(material.runs)
    optimiser, model = optimiser_of(parameters.values()), material.runs[0]

    def loss(parameters: dict, buffers: dict, recordings: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return functional_call(model, (parameters, buffers), (batch_of(recordings, features),))

    def step() -> torch.Tensor:
        losses = vmap(loss, randomness="different")(parameters, buffers, material.recordings, material.features)
        losses.sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        return losses.detach()

    return step


PROVIDERS = {SINGLY: singly, STACKED: stacked}


@pytest.mark.parametrize(("case", "provider"), [(case, provider) for case in CASES for provider in PROVIDERS], ids=str)
def bench_stacking(case, provider, device, limits, time_provider):
    steps = [build(make(case, device, dropout=False)) for build in PROVIDERS.values()]
    for _ in range(2):
        one, other = (step() for step in steps)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=0)
    with FlopCounterMode(display=False) as counter:
        singly(make(case, device))()
    limit = limits.seconds(0, counter.get_total_flops() // 2)
    function = PROVIDERS[provider](make(case, device))
    time_provider(function, suite=SUITE, case=str(case), provider=provider, ours=provider == SINGLY, limit_s=limit)
