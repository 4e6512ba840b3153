"""SAMGA beside plain PyTorch written from the description: router, MMD, and trainings in lock step."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch.nn.functional import cross_entropy, linear, normalize

from bvsa_core import encoders
from bvsa_core.data.split import Split
from bvsa_core.encoders.eeg_project import Options
from bvsa_core.methods.samga import SAMGA, Router, squared_mmd
from bvsa_core.retrieval.scoring import Scoring, similarity
from bvsa_core.training.config import RunConfig, method_options
from bvsa_core.training.loop import batches, fit

EPOCHS, SAMPLES, TEST, BATCH, CHANNELS, TIME, SUBJECTS = 12, 160, 40, 64, 4, 20, 2
PARTS = (24, 24, 40)  # layers of two widths
SMALL = {"hidden": 48, "width": 32}


def test_the_router_starts_around_the_middle_layer():
    expected = np.exp([-2.0, -1, 0, -1, -2])
    weights = Router([20, 24, 28, 32, 36], 3, 0.3).eval()(None)
    np.testing.assert_allclose(weights.detach().numpy(), expected[None] / expected.sum(), rtol=1e-6)
    uneven = Router([2, 4, 10], 1, 0.0).logits.tolist()
    assert uneven == [-2.0, -1.0, -2.0]  # |layer - 6| / 2
    assert Router([7], 1, 0.0).logits.tolist() == [0.0]
    assert Router([3, 3, 5], 1, 0.0).logits.tolist() == [-0.5, -0.5, -0.5]  # the mean and the CLS token of one layer


def test_the_router_adds_the_bias_of_the_subject_in_training_alone(seed):
    router = Router(range(3), 2, 0.3)
    torch.nn.init.normal_(router.bias)
    subjects = torch.tensor([0, 1, -1, 1] * 2000)
    weights = router(subjects).detach()
    on_global = (router.logits.softmax(0) - weights).abs().amax(1) < 1e-6
    for subject in (0, 1):
        own = subjects == subject
        logits = (router.logits + router.bias[subject]).detach().double().exp()
        torch.testing.assert_close(weights[own & ~on_global][0].double(), logits / logits.sum())
        assert on_global[own].double().mean().item() == pytest.approx(0.3, abs=6 * math.sqrt(0.21 / own.sum()))
    assert on_global[subjects == -1].all()
    assert torch.equal(router.eval()(subjects), router.logits.softmax(0)[None])


def mmd(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the estimate of Gretton et al. (2012), lemma 6, in float64."""
    x, y, n = x.double(), y.double(), len(x)
    kernel = lambda a, b: sum(torch.exp(-torch.cdist(a, b).square() / (2 * s * s)) for s in (0.1, 0.2, 0.5, 1, 2)) / 5  # noqa: E731
    same = sum((kernel(z, z).sum() - n) / (n * (n - 1)) for z in (x, y))
    return same - 2 * kernel(x, y).sum() / n**2


def test_the_mmd_is_the_unbiased_estimate(seed):
    for count, width, size, shift in ((2, 1, 1.0, 0.0), (31, 5, 0.3, 0.2), (64, 32, 0.1, 30.0), (17, 8, 5.0, 0.0)):
        x, y = size * torch.randn(count, width) + shift, size * torch.randn(count, width) + 1.1 * shift
        torch.testing.assert_close(squared_mmd(x, y).double(), mmd(x, y), rtol=1e-4, atol=1e-5)
    x = torch.randn(9, 4, requires_grad=True, dtype=torch.float64)
    ours, plain = (torch.autograd.grad(function(x, 0.3 * x.detach() ** 2), x)[0] for function in (squared_mmd, mmd))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-7)
    assert squared_mmd(torch.ones(1, 3), torch.zeros(1, 3)) == 0


class Plain:
    """SAMGA as it is described, with weights copied from ours."""

    def __init__(self, method: SAMGA, lr: float, corrected: bool):
        self.weights = {name: value.detach().clone().requires_grad_() for name, value in method.named_parameters()}
        del self.weights["logit_scale"]
        self.encode = lambda x: torch.func.functional_call(method.encoder, self.of("encoder."), x)
        self.optimiser = torch.optim.AdamW(self.weights.values(), lr=lr, weight_decay=1e-4)
        self.scale = 1 / 0.07 if corrected else math.log(1 + 1 / 0.07)  # softplus(ln(1 / 0.07))
        self.corrected = corrected

    def of(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.weights.items() if name.startswith(prefix)}

    def map(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def brain(self, recordings: torch.Tensor) -> torch.Tensor:
        return self.map("shared_map", self.map("brain_map", self.encode(recordings)))

    def images(self, parts: torch.Tensor, bias: torch.Tensor | float) -> torch.Tensor:
        weights = torch.softmax(self.weights["router.logits"] + bias, dim=-1)
        layers = parts.split(PARTS, dim=-1)
        mapped = [self.map(f"layer_maps.{i}", self.map(f"first_maps.{len(x[0])}", x)) for i, x in enumerate(layers)]
        return self.map("shared_map", sum(weights[..., i, None] * each for i, each in enumerate(mapped)))

    def epoch(self, number: int, split: Split, features, order, draws) -> tuple[float, float]:
        """Return the mean loss and the mean squared MMD of an epoch."""
        if number == EPOCHS // 2:  # the second stage
            kept = [value for name, value in self.weights.items() if not name.startswith("shared_map")]
            self.optimiser = torch.optim.AdamW(kept, lr=5e-5, weight_decay=1e-4)
        share = 0.9 - 0.4 * number / (EPOCHS // 2 - 1)
        total, apart = 0.0, 0.0
        for samples, draw in zip(order, draws, strict=True):
            bias = self.weights["router.bias"][split.subject_of[samples]] * (draw >= 0.3)[:, None]
            brain, images = self.brain(split.recordings[samples]), self.images(features[samples], bias)
            compared = normalize(brain, dim=1) if self.corrected else brain
            logits, right = self.scale * compared @ normalize(images, dim=1).T, torch.arange(len(samples))
            loss = (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2
            distance = mmd(brain, images).float()
            if number < EPOCHS // 2:
                loss = share * distance + (1 - share) * loss
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            total, apart = total + loss.item() * len(samples), apart + distance.item() * len(samples)
        return total / SAMPLES, apart / SAMPLES


@pytest.fixture
def problem(one_thread) -> tuple[Split, torch.Tensor]:
    """Recordings that are noisy linear maps of the features (images, sum(PARTS)), which have norms about 3."""
    torch.manual_seed(5)
    count = SAMPLES + TEST
    features = 0.3 * torch.randn(count, sum(PARTS)) + 0.1
    recordings = features @ torch.randn(sum(PARTS), CHANNELS * TIME) + 0.5 * torch.randn(count, CHANNELS * TIME)
    names, channels = [str(i) for i in range(count)], [f"c{i}" for i in range(CHANNELS)]
    about = names, names, channels, 1, torch.arange(count) % SUBJECTS, ["sub-01", "sub-02"]
    return Split(recordings.unflatten(1, (CHANNELS, TIME)), torch.arange(count), *about), features


def make(config: RunConfig) -> SAMGA:
    build = partial(encoders.build, "eeg_project", options=Options(dropout=0.0))
    shape = encoders.InputSpec(CHANNELS, TIME, PARTS[0], SUBJECTS, parts=PARTS, layers=(2, 3, 5))
    return SAMGA(config.method_options, build, SAMPLES, shape)


def config_of(preset: str, **options) -> RunConfig:
    options = method_options("samga", preset, **SMALL, **options)
    changes = {"epochs": EPOCHS, "batch_size": BATCH, "lr": 2e-3}
    return RunConfig.of("samga", preset=preset, method_options=options, **changes)


def train_in_lock_step(problem, preset: str, **options) -> None:
    """Train ours, with options that may differ from the description, and compare with `Plain` after every epoch."""
    everything, features = problem
    split, config = everything.take(torch.arange(SAMPLES)), config_of(preset, **options)
    torch.manual_seed(1)
    method = make(config)
    plain = Plain(method, config.lr, preset == "corrected")
    torch.manual_seed(2)
    orders = [batches(SAMPLES, BATCH, config.seed, epoch, torch.device("cpu")) for epoch in range(EPOCHS)]
    draws = [[torch.rand(len(samples)) for samples in order] for order in orders]
    losses, apart = [], []

    def compare(metrics: dict) -> None:
        number = metrics["epoch"] - 1
        loss, distance = plain.epoch(number, split, features, orders[number], draws[number])
        assert metrics["loss"] == pytest.approx(loss, rel=2e-5), f"epoch {metrics['epoch']}"
        losses.append(loss)
        apart.append(distance)

    torch.manual_seed(2)
    views = lambda indices, gain, kernel_size: features[indices]  # noqa: E731
    fit(method, split, views, torch.zeros(SAMPLES, 16), config, Fabric(accelerator="cpu"), compare)
    assert losses[-1] < losses[EPOCHS // 2] and apart[0] > 0.01  # both terms of the loss matter
    bias = plain.weights["router.bias"]
    assert bias.abs().min() > 1e-4 and not torch.allclose(bias[0], bias[1])
    for name, value in plain.weights.items():
        torch.testing.assert_close(method.get_parameter(name), value, rtol=0, atol=2e-4)
    test = everything.take(torch.arange(SAMPLES, SAMPLES + TEST))
    with torch.no_grad():
        gallery = features[None, SAMPLES:]
        embeddings = method.eval().retrieval_embeddings(test.recordings, gallery, torch.zeros(TEST, 16))
        ours = similarity(embeddings, Scoring(method.default_gate))
        brain, images = plain.brain(test.recordings), plain.images(features[SAMPLES:], 0.0)
    expected = normalize(brain, dim=1) @ normalize(images, dim=1).T
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)
    assert (expected.argmax(1) == torch.arange(TEST)).double().mean() > 0.3  # chance: 0.025


@pytest.mark.parametrize("preset", ["corrected", "code"])
def test_losses_weights_and_scores_are_those_of_the_description(problem, preset):
    train_in_lock_step(problem, preset)


@pytest.mark.parametrize(
    "fault",
    [
        {"subject_dropout": 0.0},
        {"mmd_weights": (0.9, 0.9)},
        {"mmd_weights": (0.8, 0.5)},
        {"coarse_epochs": EPOCHS // 2 - 1},
        {"fine_lr": 1e-4},
        {"unit_norm": True},
        {"scale": "exp"},
    ],
    ids=str,
)
def test_lock_step_fails_for_another_rule(problem, fault):
    with pytest.raises(AssertionError, match="epoch|not close"):
        train_in_lock_step(problem, "code", **fault)


def keep_moments(method: SAMGA, optimiser) -> None:
    if method.epoch == method.coarse_epochs:
        for group, lr in zip(optimiser.param_groups, (method.options.fine_lr, 0.0)):
            group["lr"] = lr


def keep_training(method: SAMGA, optimiser) -> None:
    if method.epoch == method.coarse_epochs:
        optimiser.state.clear()
        for group in optimiser.param_groups:
            group["lr"] = method.options.fine_lr


@pytest.mark.parametrize("fault", [keep_moments, keep_training, lambda method, optimiser: None])
def test_lock_step_fails_for_another_second_stage(problem, monkeypatch, fault):
    monkeypatch.setattr(SAMGA, "start_epoch", fault)
    with pytest.raises(AssertionError, match="epoch|not close"):
        train_in_lock_step(problem, "code")


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_second_stage_leaves_the_shared_map_alone(problem, schedule):
    everything, features = problem
    config, seen = replace(config_of("code"), schedule=schedule), []
    method = make(config)
    views = lambda indices, gain, kernel_size: features[indices]  # noqa: E731
    keep = lambda metrics: seen.append({name: value.clone() for name, value in method.state_dict().items()})  # noqa: E731
    split = everything.take(torch.arange(SAMPLES))
    fit(method, split, views, torch.zeros(SAMPLES, 16), config, Fabric(accelerator="cpu"), keep)
    start, end = seen[EPOCHS // 2 - 1], seen[-1]
    for name in start:
        frozen = name.startswith("shared_map") or name == "logit_scale"
        assert torch.equal(start[name], end[name]) == frozen, name
