"""The terms of BraVL's loss against numpy and scipy, and its classifier."""

import dataclasses
import functools
import itertools
import warnings

import method_inputs
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from method_inputs import BATCH, make_method
from sklearn.svm import SVC

from bvsa_core.errors import UserError
from bvsa_core.methods import bravl
from bvsa_core.methods.base import Batch
from bvsa_core.retrieval.scoring import Scoring, similarity

LATENT = 4
random_batch = functools.partial(method_inputs.random_batch, torch.float64)


def make(preset: str = "corrected", **changes) -> bravl.BraVL:
    return make_method("bravl", preset, latent=LATENT, hidden=8, components=5, **changes).double().eval()


def numbers(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


def experts_of(method: bravl.BraVL, batch: Batch) -> tuple[list, np.ndarray, np.ndarray]:
    """Return the observations, and mean and variance (3, B, latent) of the posteriors."""
    x = method.observed(batch.recordings, batch.images, batch.texts)
    mean, log_variance = numbers(*method.experts(x, batch.recordings, None))
    return numbers(*x), mean, np.exp(log_variance)


def fuse(mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    fused = 1 / (1 / variance).sum(0)
    return fused * (mean / variance).sum(0), fused


def log_likelihood(method: bravl.BraVL, x: list, z: np.ndarray, kind=scipy.stats.laplace) -> np.ndarray:
    """Return sum_m log p(x_m | z) for latents (..., B, latent); x has all modalities, or the last two."""
    decoded = numbers(*(decoder(torch.from_numpy(z)) for decoder in method.decoders[-len(x) :]))
    return sum(kind(loc, method.options.scale).logpdf(each).sum(-1) for each, loc in zip(x, decoded))


def test_elbo_and_mutual_information_of_each_modality(seed, monkeypatch):
    method, batch = make(inter=0.0, intra=0.3, annealing=0.1), random_batch()
    method.epoch = 4
    x, mean, variance = experts_of(method, batch)
    subsets = [list(some) for size in (1, 2, 3) for some in itertools.combinations(range(3), size)]
    fused = [fuse(mean[some], variance[some]) for some in subsets]
    divergence = np.mean([0.5 * (v + m**2 - 1 - np.log(v)).sum(-1).mean() for m, v in fused])
    z = fused[6][0]
    joint = lambda components: (components[6][0], torch.zeros_like(components[6][0]))  # noqa: E731
    monkeypatch.setattr(bravl, "draw_components", joint)
    information = 0.0
    for estimator, decoder in zip(method.estimators, method.decoders):
        centre, log_variance = np.split(*numbers(estimator(decoder(torch.from_numpy(z)))), 2, axis=-1)
        information += scipy.stats.norm(centre, np.exp(log_variance / 2)).logpdf(z).sum(-1).mean()
    expected = -log_likelihood(method, x, z).mean() + 0.4 * divergence - 0.3 * information
    assert method(batch).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("modalities", [3, 2])
def test_loss_of_the_released_code(modalities, seed, monkeypatch):
    """Two modalities are images and texts, as those of the test set are trained on."""
    options = {"inter": 0.2, "intra": 0.3, "annealing": 0.1, "estimator_hidden": 6}
    method, batch = make(preset="code", **options), random_batch()
    method.epoch = 4
    x, mean, variance = experts_of(method, batch)
    torch.testing.assert_close(
        method.observed(batch.recordings, batch.images, batch.texts)[0], batch.recordings.flatten(1)
    )
    if modalities == 2:
        x, mean, variance = x[1:], mean[1:], variance[1:]
        batch.recordings = batch.recordings[:0]
    subsets = [
        list(some) for size in range(1, modalities + 1) for some in itertools.combinations(range(modalities), size)
    ]
    fused = [fuse(mean[some], variance[some]) for some in subsets]
    if modalities == 3:  # N(0, I) is one more expert of the product of all
        fused[-1] = fuse(np.append(mean, 0 * mean[:1], axis=0), np.append(variance, 1 + 0 * variance[:1], axis=0))
    divergence = np.mean([0.5 * (v + m**2 - 1 - np.log(v)).sum(-1).mean() for m, v in fused])
    z = fused[-1][0]
    monkeypatch.setattr(bravl, "draw_components", lambda components: (components[-1][0], 0 * components[-1][0]))
    asked = []
    bounds = lambda *given: asked.append(given[-1]) or torch.tensor(10.0 * len(asked))  # noqa: E731
    monkeypatch.setattr(method, "_bound", bounds)
    information = 0.0
    for estimator, decoder in zip(method.estimators[-modalities:], method.decoders[-modalities:]):
        (centre,) = numbers(estimator(decoder(torch.from_numpy(z))))
        information += scipy.stats.norm(centre, 0.75).logpdf(z).sum(-1).mean()
    elbo = log_likelihood(method, x, z, scipy.stats.norm).mean() - 0.4 * divergence
    kinds = 6 if modalities == 3 else 2
    expected = -elbo - 0.3 * information - 0.2 * (elbo - 10 * (kinds + 1) / 2)
    assert method(batch).item() == pytest.approx(expected, rel=1e-6)  # the stacked bounds are float32
    assert [list(kind) for kind in asked] == subsets[:-1]
    assert next(method.heads[1].parameters()).grad is None


def test_networks_q_learn_from_their_own_loss_alone(seed):
    """Alternating, their gradient is that of the information at weight 1, and the others' is unchanged."""
    method, batch = make(inter=0.0, intra=0.3), random_batch()
    gradients = {}
    for name, changes in (("together", {}), ("whole", {"intra": 1.0}), ("alternating", {"alternate": True})):
        method.options = dataclasses.replace(method.options, **{"intra": 0.3, "alternate": False, **changes})
        torch.manual_seed(seed)
        method.zero_grad()
        method(batch).backward()
        gradients[name] = {key: value.grad.clone() for key, value in method.named_parameters()}
    for key, gradient in gradients["alternating"].items():
        expected = gradients["whole" if key.startswith("estimators") else "together"][key]
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_released_inputs_are_scaled_by_fixed_factors(seed):
    method, batch = make(preset="code"), random_batch()
    method.setup(lambda: batch)
    brain, image, text = method.observed(batch.recordings, batch.images, batch.texts)
    torch.testing.assert_close(brain, 2 * batch.recordings.flatten(1))
    torch.testing.assert_close(text, 2 * batch.texts)
    axes = (batch.images - batch.images.mean(0)) @ method.components
    torch.testing.assert_close(image, 50 * axes)


def test_the_released_classifier_is_fitted_on_draws_of_the_mixture(seed):
    method, batch = make(preset="code", latents=9), random_batch()
    few = slice(0, 6)
    embeddings = method.retrieval_embeddings(batch.recordings, batch.images[None, few], batch.texts[few])
    scores = similarity(embeddings, Scoring()).numpy()
    _, mean, variance = experts_of(method, batch)
    components = [(mean[1][few], variance[1][few]), (mean[2][few], variance[2][few])]
    components.append(fuse(mean[1:, few], variance[1:, few]))
    generator = torch.Generator().manual_seed(0)
    draw = lambda m, v: m + np.sqrt(v) * torch.randn(m.shape, generator=generator, dtype=torch.float64).numpy()  # noqa: E731
    latents = np.concatenate([draw(*components[turn % 3]) for turn in range(9)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        classifier = SVC(C=1.0, gamma=1e-3, probability=True, random_state=0).fit(latents, [*range(6)] * 9)
    queries = draw(mean[0], variance[0])
    np.testing.assert_array_equal(scores.argmax(1), classifier.predict(queries))
    answers = np.eye(6)[classifier.predict(queries)]
    np.testing.assert_allclose(scores - answers, classifier.predict_proba(queries), atol=1e-5)
    fitted = method._fitted[1]
    method.retrieval_embeddings(batch.recordings[:2], batch.images[None, few], batch.texts[few])
    assert method._fitted[1] is fitted


def test_a_later_scikit_learn_is_refused_before_training(monkeypatch):
    monkeypatch.setattr("sklearn.svm.SVC", lambda C, kernel, gamma: None)
    with pytest.raises(UserError, match=r"pip install 'scikit-learn<1.11'"):
        make(preset="code").setup(random_batch)


def test_invalid_options_are_refused():
    for changes, message in (
        ({"likelihood": "gauss"}, "unknown likelihood 'gauss'; choose one of laplace, normal"),
        ({"layers": 0}, "layers is 0; it must be at least 1"),
        ({"input_scales": (1.0, 0.0, 1.0)}, "they must be positive"),
    ):
        with pytest.raises(UserError, match=message):
            make(**changes)


def test_bound_of_negatives(seed, monkeypatch):
    """0.5 log mean w^2, with w = p(z) p(x | z) / q(z | x) and modalities of other samples."""
    method, batch = make(draws=3), random_batch()
    x, mean, variance = experts_of(method, batch)
    drawn = torch.randn(3, BATCH, LATENT, dtype=torch.float64)
    monkeypatch.setattr(torch, "randn", lambda *shape, **kinds: drawn)
    monkeypatch.setattr(bravl, "draw_components", lambda components: (components[3][0], (components[3][1] / 2).exp()))
    monkeypatch.setattr(torch, "randint", lambda low, high, *size: torch.tensor([2, 5]) if size else torch.tensor(4))
    tensors = [torch.from_numpy(each) for each in x], torch.from_numpy(mean), torch.from_numpy(variance).log()
    bound = method._bound_of_negatives(*tensors)
    shifted = lambda part: [np.roll(part[0], 2, axis=0), part[1], np.roll(part[2], 5, axis=0)]  # noqa: E731  subset 4: brain and text
    x, mean, variance = shifted(x), np.stack(shifted(mean)), np.stack(shifted(variance))
    centre, spread = fuse(mean[[0, 1]], variance[[0, 1]])  # component 3 of the mixture
    z = centre + np.sqrt(spread) * drawn.numpy()
    weight = scipy.stats.norm.logpdf(z).sum(-1) - scipy.stats.norm(centre, np.sqrt(spread)).logpdf(z).sum(-1)
    weight = weight + log_likelihood(method, x, z)
    expected = 0.5 * (scipy.special.logsumexp(2 * weight, axis=0) - np.log(3)).mean()
    assert bound.item() == pytest.approx(expected, rel=1e-9)


def test_every_component_of_the_mixture_is_drawn_equally_often(seed):
    components = [(torch.full((14, 2), float(i)), torch.full((14, 2), 2 * np.log(i + 1.0))) for i in range(7)]
    centre, spread = bravl.draw_components(components)
    assert sorted(centre[:, 0].tolist()) == sorted([*range(7)] * 2)
    torch.testing.assert_close(spread, centre + 1)


def test_features_are_principal_components_of_unit_variance(seed):
    method, batch = make(), random_batch()
    method.setup(lambda: batch)
    brain, image, text = numbers(*method.observed(batch.recordings, batch.images, batch.texts))
    assert [np.sqrt((each**2).mean()) for each in (brain, image, text)] == pytest.approx([1, 1, 1])
    images = batch.images.numpy() - batch.images.numpy().mean(0)
    left, values, _ = np.linalg.svd(images, full_matrices=False)
    expected = (left * values)[:, :5]
    expected = expected / np.sqrt((expected**2).mean())
    np.testing.assert_allclose(np.abs(image), np.abs(expected), atol=1e-6)  # the sign of a component is free


def test_scores_are_the_classifiers_and_independent_of_other_queries(seed):
    method, batch = make(), random_batch()
    embeddings = method.retrieval_embeddings(batch.recordings, batch.images[None], batch.texts)
    scores = similarity(embeddings, Scoring())
    _, mean, variance = experts_of(method, batch)
    latents, _ = fuse(mean[1:], variance[1:])
    classifier = SVC(C=1.0, gamma=1e-3).fit(latents, range(BATCH))
    np.testing.assert_allclose(scores.detach().numpy(), classifier.decision_function(mean[0]), rtol=1e-5)
    always = similarity(embeddings, Scoring("always"))
    torch.testing.assert_close(always, scores)  # texts are part of the classes already
    order = torch.randperm(BATCH)[:5]
    fewer = method.retrieval_embeddings(batch.recordings[order], batch.images[None], batch.texts)
    torch.testing.assert_close(similarity(fewer, Scoring()), scores[order])
    two = method.retrieval_embeddings(batch.recordings, batch.images[None, :2], batch.texts[:2])
    assert similarity(two, Scoring()).shape == (BATCH, 2)
    with pytest.raises(UserError, match="the gallery has one; give it two or more"):
        method.retrieval_embeddings(batch.recordings, batch.images[None, :1], batch.texts[:1])


def test_without_scikit_learn_the_extra_is_named_before_training(monkeypatch):
    monkeypatch.setattr(bravl.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"scikit-learn, which is not installed; pip install 'fovblur\[train\]'"):
        make().setup(random_batch)
