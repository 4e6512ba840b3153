"""Losses, interval rule and per-sample state against a few lines of numpy written from methods.md."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from bvsa_core import methods
from bvsa_core.encoders import Shape
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Batch, Interval
from bvsa_core.training.config import PRESETS, method_options
from bvsa_core.vision.multilevel import Fusion
from bvsa_core.vision.views import SHARP, Level

SAMPLES, BATCH, CHANNELS, TIME, WIDTH = 40, 24, 3, 10, 16


def make(name: str, preset: str = "corrected", **changes):
    build = lambda shape: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(CHANNELS * TIME, shape.embedding))  # noqa: E731
    shape = Shape(CHANNELS, TIME, WIDTH)
    return methods.method_class(name)(method_options(name, preset, **changes), build, SAMPLES, shape)


def random_batch() -> Batch:
    unit = lambda: torch.nn.functional.normalize(torch.randn(BATCH, WIDTH), dim=1)  # noqa: E731
    return Batch(torch.randperm(SAMPLES)[:BATCH], torch.randn(BATCH, CHANNELS, TIME), unit(), unit())


def cross_entropies(brain: np.ndarray, other: np.ndarray, scale: float) -> tuple[float, np.ndarray]:
    logits = scale * brain @ other.T
    rows = np.diag(scipy.special.log_softmax(logits, axis=1))
    columns = np.diag(scipy.special.log_softmax(logits, axis=0))
    return -(rows.mean() + columns.mean()) / 2, np.diag(logits)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def stands_out(diagonal: np.ndarray, smoothed: np.ndarray, alpha: float) -> np.ndarray:
    z = scipy.stats.norm.ppf(1 - alpha / 2)
    mean, std = smoothed.mean(), smoothed.std(ddof=1)
    return (diagonal > mean + z * std).astype(int) - (diagonal < mean - z * std).astype(int)


def brain_of(encoder, batch: Batch) -> np.ndarray:
    return encoder(batch.recordings).detach().double().numpy()


def test_vanilla_is_the_mean_of_two_cross_entropies(seed):
    method, batch = make("vanilla"), random_batch()
    expected, _ = cross_entropies(unit(brain_of(method.encoder, batch)), batch.images.double().numpy(), 1 / 0.07)
    assert method(batch).item() == pytest.approx(expected, rel=1e-4)
    assert method.levels() == method.gallery_levels() == [SHARP]


@pytest.mark.parametrize("preset", PRESETS)
def test_ubp(preset, seed):
    method = make("ubp", preset)
    sizes = {"code": (45, 45, 51)}.get(preset, (45, 51, 57))
    state, chosen = np.ones(SAMPLES), np.full(SAMPLES, sizes[1])
    for _ in range(4):
        batch = random_batch()
        brain = brain_of(method.encoder, batch)
        raw = np.log(1 / 0.07)
        if preset == "code":
            expected, diagonal = cross_entropies(brain, batch.images.double().numpy(), np.log1p(np.exp(raw)))
        else:
            expected, diagonal = cross_entropies(unit(brain), batch.images.double().numpy(), np.exp(raw))
        assert method(batch).item() == pytest.approx(expected, rel=1e-4)
        i = batch.samples.numpy()
        state[i] = 0.3 * diagonal + 0.7 * state[i]
        chosen[i] = np.array(sizes)[1 - stands_out(diagonal, state[i], 0.05)]
        gain, kernel_size = method.blur(torch.arange(SAMPLES))
        np.testing.assert_array_equal(kernel_size.numpy(), chosen)
        assert (gain == 0.5).all()
    assert len(set(chosen)) > 1, "no sample ever stood out: the rule is not exercised"
    assert method.gallery_levels() == [Level(sizes[1], 0.5)]


@pytest.mark.parametrize("preset", PRESETS)
def test_bvsa(preset, seed):
    method = make("bvsa", preset, c=0.3)
    to_image, to_text = np.ones(SAMPLES), np.ones(SAMPLES)
    gains, sizes = np.full(SAMPLES, 0.5), np.full(SAMPLES, 51)
    chosen_gains, chosen_sizes = set(), set()
    for _ in range(4):
        batch = random_batch()
        images, texts = batch.images.double().numpy(), batch.texts.double().numpy()
        brain = unit(brain_of(method.encoder, batch))
        text_brain = brain if preset == "paper" else unit(brain_of(method.text_encoder, batch))
        image_loss, image_diagonal = cross_entropies(brain, images, 1 / 0.07)
        text_loss, text_diagonal = cross_entropies(text_brain, texts, 1 / 0.07)
        expected = image_loss if preset == "paper" else (image_loss + text_loss) / 2
        assert method(batch).item() == pytest.approx(expected, rel=1e-4)
        i = batch.samples.numpy()
        to_image[i] = 0.3 * image_diagonal + 0.7 * to_image[i]
        to_text[i] = 0.3 * text_diagonal + 0.7 * to_text[i]
        fitted_image, fitted_text = (image_diagonal, text_diagonal) if preset == "paper" else (to_image[i], to_text[i])
        gains[i] = 0.5 + 0.3 * stands_out(text_diagonal, fitted_text, 0.10)
        sizes[i] = 51 - 6 * stands_out(image_diagonal, fitted_image, 0.10)
        gain, kernel_size = method.blur(torch.arange(SAMPLES))
        np.testing.assert_allclose(gain.numpy(), gains, rtol=1e-6)
        np.testing.assert_array_equal(kernel_size.numpy(), sizes)
        chosen_gains |= set(gains)
        chosen_sizes |= set(sizes)
    assert len(chosen_gains) > 1 and len(chosen_sizes) > 1, "no sample ever stood out: the rules are not exercised"
    assert method.default_gate == {"paper": "paper", "code": "code"}.get(preset, "none")
    assert len(method.gallery_levels()) == (3 if preset == "code" else 1)


@pytest.mark.parametrize(
    ("decouple", "dynamic", "levels"),
    [
        (False, False, {SHARP}),
        (True, False, {Level(51, 0.0), Level(51, 0.5), Level(51, 1.0)}),
        (False, True, {Level(45, 0.5), Level(51, 0.5), Level(57, 0.5)}),
        (True, True, {Level(k, gain) for k in (45, 51, 57) for gain in (0.0, 0.5, 1.0)}),
    ],
)
def test_the_parts_of_bvsa_are_switches(decouple, dynamic, levels, seed):
    method = make("bvsa", decouple=decouple, dynamic=dynamic)
    for _ in range(6):
        method(random_batch())
        gain, kernel_size = method.blur(torch.arange(SAMPLES))
        asked = {Level(int(k), float(g)) for k, g in zip(kernel_size, gain)}
        assert {level.kernel_size for level in asked} <= {level.kernel_size for level in levels}
        assert asked <= levels or levels == {SHARP}
    assert set(method.levels()) == levels and set(method.gallery_levels()) <= levels


@pytest.mark.parametrize("name", ["ubp", "bvsa"])
def test_evaluation_leaves_the_state_alone(name, seed):
    method = make(name)
    method(random_batch())
    before = {key: value.clone() for key, value in method.named_buffers()}
    method.eval()
    method(random_batch())
    assert all(torch.equal(value, before[key]) for key, value in method.named_buffers())


def test_nice_is_vanilla_at_a_fixed_scale(seed):
    method, batch = make("nice"), random_batch()
    expected, _ = cross_entropies(unit(brain_of(method.encoder, batch)), batch.images.double().numpy(), 1 / 0.07)
    loss = method(batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert method.logit_scale.grad is None and method.levels() == [SHARP]


def test_atm_weighs_pictures_99_to_1(seed):
    method, batch = make("atm"), random_batch()
    brain = unit(brain_of(method.encoder, batch))
    to_images, to_texts = (cross_entropies(brain, other.double().numpy(), 1 / 0.07)[0] for other in (batch.images, batch.texts))
    assert method(batch).item() == pytest.approx(0.99 * to_images + 0.01 * to_texts, rel=1e-4)


@pytest.mark.parametrize("parts", [{}, {"decouple": False}, {"dynamic": False}])
def test_continuous_decoupling_moves_smoothly(parts, seed):
    method = make("bvsa", continuous=True, c=0.3, gamma=None, **parts)
    z = scipy.stats.norm.ppf(0.95)
    gains, sizes = np.full(SAMPLES, 0.5), np.full(SAMPLES, 51.0)
    for _ in range(2):
        batch = random_batch()
        brain, text_brain = unit(brain_of(method.encoder, batch)), unit(brain_of(method.text_encoder, batch))
        _, to_image = cross_entropies(brain, batch.images.double().numpy(), 1 / 0.07)
        _, to_text = cross_entropies(text_brain, batch.texts.double().numpy(), 1 / 0.07)
        method(batch)
        i = batch.samples.numpy()
        standard = lambda x: (x - x.mean()) / x.std(ddof=1)  # noqa: E731
        if parts.get("decouple", True):
            gains[i] = 0.5 + 0.3 * np.tanh(standard(to_text) / z)
        if parts.get("dynamic", True):
            sizes[i] = 51 - 6 * np.tanh(standard(to_image) / z)
    gain, kernel_size = method.blur(torch.arange(SAMPLES))
    # float32 logits of up to 15 with deviations above 1: 1e-5 of a standard score
    np.testing.assert_allclose(gain.numpy(), gains, atol=1e-4)
    np.testing.assert_allclose(kernel_size.numpy(), sizes, atol=1e-3)
    assert kernel_size.is_floating_point() and set(method.gallery_levels()) <= set(method.levels())
    assert Level(51, 0.5) in method.levels() and all(level.kernel_size % 2 == 1 for level in method.levels())


def test_a_batch_of_one_or_of_equals_stays_in_the_middle():
    interval = Interval(3, 0.1, None)
    assert interval.position(torch.arange(1), torch.tensor([7.0])).tolist() == [0.0]
    assert interval.position(torch.arange(3), torch.full((3,), 2.0)).tolist() == [0.0] * 3


def test_mcdb_loss_and_balance(seed):
    method, batch = make("mcdb", balance=0.7, noise=0.0), random_batch()
    brain, image, text = unit(brain_of(method.encoder, batch)), batch.images.double().numpy(), batch.texts.double().numpy()
    (image_loss, _), (text_loss, _) = (cross_entropies(brain, other, 1 / 0.07) for other in (image, text))
    alignment = 1 - ((brain * image).sum(1) + (brain * text).sum(1)).mean() / 2
    loss = method(batch)  # adapters start as the identity
    assert loss.item() == pytest.approx(2 * (image_loss + text_loss) / 5 + 0.2 * alignment, rel=1e-4)

    true_pairs = lambda rows, columns: np.diag(scipy.special.softmax(rows @ columns.T / 0.07, axis=1)).mean()  # noqa: E731
    shares = np.array(
        [(true_pairs(brain, image) + true_pairs(brain, text)) / 2, true_pairs(image, brain), true_pairs(text, brain)]
    )
    rho = shares / np.array([shares[[1, 2]].mean(), shares[[0, 2]].mean(), shares[[0, 1]].mean()])
    np.testing.assert_allclose(method.factors.numpy(), np.where(rho > 1, 1 - np.tanh(0.7 * rho), 1), rtol=1e-3)

    loss.backward()
    scaled = {name: method.adapters[name].branch[-1].weight.grad for name in ("brain", "image", "text")}
    method.zero_grad()
    free = make("mcdb", balance=0.0, noise=0.0)
    free.load_state_dict(method.state_dict())
    free(batch).backward()
    for (name, gradient), factor in zip(scaled.items(), method.factors):
        torch.testing.assert_close(gradient, factor * free.adapters[name].branch[-1].weight.grad)
    assert free.factors.tolist() == [1, 1, 1] and (rho > 1).any(), "no modality ever dominates: the rule is not exercised"


def test_mcdb_perturbs_less_and_less(seed):
    method = make("mcdb", noise=0.5)
    gradient, method.epochs = torch.randn(400, 100), 4
    for epoch, strength in enumerate((0.5, 0.375, 0.25, 0.125)):
        method.epoch = epoch
        noise = method._modulate(gradient, 0) - gradient
        # 40,000 draws: their deviation is right to 0.35 %, their mean to half a per cent of it; six standard errors
        assert noise.std().item() == pytest.approx(strength * gradient.std().item(), rel=0.022)
        assert abs(noise.mean()) < 0.03 * strength
    method.options = dataclasses.replace(method.options, noise=0.0)
    assert torch.equal(method._modulate(gradient, 0), gradient)


def test_a_batch_of_one_changes_no_level(seed):
    method, batch = make("bvsa"), random_batch()
    method(Batch(batch.samples[:1], batch.recordings[:1], batch.images[:1], batch.texts[:1]))
    gain, kernel_size = method.blur(torch.arange(SAMPLES))
    assert (gain == 0.5).all() and (kernel_size == 51).all()


def test_three_gallery_views_stand_side_by_side(seed):
    method = make("bvsa", "code")
    recordings, images, texts = torch.randn(5, CHANNELS, TIME), torch.randn(3, 5, WIDTH), torch.randn(5, WIDTH)
    embeddings = method.retrieval_embeddings(recordings, images, texts)
    brain, brain_text = method.embed(recordings)
    torch.testing.assert_close(embeddings.brain_image @ embeddings.image.T, sum(brain @ view.T for view in images))
    torch.testing.assert_close(embeddings.brain_text @ embeddings.text.T, 3 * brain_text @ texts.T)


def test_fused_targets_are_fused_at_retrieval_too(seed):
    method = make("bvsa", "code")
    method.fusion = Fusion([WIDTH, 3], [SHARP])
    torch.nn.init.normal_(method.fusion.maps[0].weight)
    assert method.views_of_gallery() == [*method.gallery_levels(), SHARP]
    recordings, images, texts = torch.randn(5, CHANNELS, TIME), torch.randn(4, 5, WIDTH + 3), torch.randn(5, WIDTH)
    embeddings = method.eval().retrieval_embeddings(recordings, images, texts)
    brain, _ = method.embed(recordings)
    expected = sum(brain @ method.fusion([view, images[3]]).T for view in images[:3])
    torch.testing.assert_close(embeddings.brain_image @ embeddings.image.T, expected)


def test_unknown_names_are_told():
    with pytest.raises(UserError, match="unknown method 'UBPP'; did you mean 'ubp'. choose one of atm, bravl, bvsa, mcdb, nice, ubp"):
        methods.method_class("UBPP")
    with pytest.raises(UserError, match="unknown preset 'mine'; choose one of corrected, paper, code"):
        method_options("ubp", "mine")
