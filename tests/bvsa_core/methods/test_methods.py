"""Losses, interval rule and per-sample state against a few lines of numpy written from methods.md."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from bvsa_core import methods
from bvsa_core.encoders import Shape
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Batch
from bvsa_core.training.config import PRESETS, method_options
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
    assert len(set(gains)) > 1 and len(set(sizes)) > 1, "no sample ever stood out: the rules are not exercised"
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


def test_unknown_names_are_told():
    with pytest.raises(UserError, match="unknown method 'UBPP'; did you mean 'ubp'. choose one of atm, bravl, bvsa, mcdb, nice, ubp, vanilla"):
        methods.method_class("UBPP")
    with pytest.raises(UserError, match="unknown preset 'mine'; choose one of corrected, paper, code"):
        method_options("ubp", "mine")
