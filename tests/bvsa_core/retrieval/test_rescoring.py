"""Every step of rescoring against a few lines of NumPy, what it is good for, and lists of steps."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from bvsa_core.errors import UserError
from bvsa_core.retrieval import rescoring
from bvsa_core.retrieval.rescoring import adaptive_csls, csls, hungarian, mutual, procrustes, sinkhorn, whitening
from bvsa_core.retrieval.scoring import Embeddings, Scoring, ranks, score, similarity

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def unit(rows: int, width: int) -> torch.Tensor:
    return normalize(torch.randn(rows, width), dim=1)


def top1(scores: torch.Tensor) -> float:
    return score(ranks(scores)).top1


def embeddings(brain: torch.Tensor, image: torch.Tensor) -> Embeddings:
    return Embeddings(brain, image, brain, image)


@pytest.mark.parametrize("rows, width", [(40, 7), (9, 24), (2, 5)])
def test_whitening_against_numpy(rows, width, seed):
    brain = normalize(torch.randn(rows, width) * torch.linspace(0.2, 3, width) + 1, dim=1)
    x = brain.double().numpy()
    covariance = np.cov(x.T, ddof=0)
    shrunk = 0.8 * covariance + 0.2 * np.trace(covariance) / width * np.eye(width)
    values, vectors = np.linalg.eigh(shrunk)
    expected = (x - x.mean(0)) @ (vectors / np.sqrt(values)) @ vectors.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(whitening(brain, brain), expected, rtol=1e-4, atol=1e-6)


def test_whitening_undoes_a_shift_and_a_stretch_of_a_subject(seed):
    image = unit(60, 8)
    brain = normalize((image + 0.2 * unit(60, 8)) * torch.linspace(0.05, 1, 8) + 0.7, dim=1)
    before, after = (similarity(embeddings(brain, image), Scoring(rescoring=name)) for name in ("none", "whitening"))
    assert top1(after) > top1(before) + 0.15, (top1(before), top1(after))


@pytest.mark.parametrize("rows, columns, width", [(30, 30, 6), (12, 20, 50)])
def test_procrustes_against_numpy(rows, columns, width, seed):
    brain, image = unit(rows, width), unit(columns, width)
    b, x = brain.double().numpy(), image.double().numpy()
    rotation = np.eye(width)
    for _ in range(5):
        plan = np.exp(b @ rotation @ x.T / 0.07)
        for _ in range(50):
            plan /= plan.sum(0)
            plan /= plan.sum(1, keepdims=True)
        left, _, right = np.linalg.svd(b.T @ plan @ x + rows / width * np.eye(width))
        rotation = left @ right
    result = procrustes(brain, image)
    np.testing.assert_allclose(result, b @ rotation, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.norm(dim=1), torch.ones(rows))


def test_procrustes_undoes_a_rotation(seed):
    image, turn = unit(80, 10), torch.randn(10, 10)
    rotation = torch.linalg.matrix_exp(0.15 * (turn - turn.T))
    brain = normalize((image + 0.1 * unit(80, 10)) @ rotation, dim=1)
    before, after = (similarity(embeddings(brain, image), Scoring(rescoring=name)) for name in ("none", "procrustes"))
    assert top1(after) > max(0.9, top1(before)), (top1(before), top1(after))


def test_csls_and_sinkhorn_against_numpy(seed):
    scores = torch.randn(12, 15)
    s = scores.numpy().astype(np.float64)
    nearest = lambda x: np.sort(x, axis=1)[:, -4:].mean(1)  # noqa: E731
    np.testing.assert_allclose(csls(scores, 4), 2 * s - nearest(s)[:, None] - nearest(s.T), **CLOSE)
    plan = np.exp(sinkhorn(scores.double(), temperature=0.5, iterations=500).numpy())
    np.testing.assert_allclose(plan.sum(1), 1, rtol=1e-9)
    np.testing.assert_allclose(plan.sum(0), 12 / 15, rtol=1e-6)
    scaling = np.log(plan) - s / 0.5  # of the form u_i + v_j
    np.testing.assert_allclose(scaling - scaling[:, :1] - scaling[:1] + scaling[0, 0], 0, atol=1e-9)


@pytest.mark.parametrize("shift", [0.2, -3.0])  # similarities are positive, and negative
@pytest.mark.parametrize("rows, columns", [(41, 60), (30, 12), (8, 3)])
def test_adaptive_csls_against_numpy(rows, columns, shift, seed):
    scores = torch.rand(rows, columns) * torch.rand(rows, 1) + shift
    s = scores.numpy().astype(np.float64)
    best = -np.sort(-s, axis=1)
    density = best[:, :10].mean(1)
    median = np.sort(density)[(rows - 1) // 2]
    counts = np.clip(np.round(10 * density / median), 5, 20).astype(int) if median > 0 else np.full(rows, 10)
    assert shift < 0 or len(set(counts)) > 2
    of_rows = np.array([row[:count].mean() for row, count in zip(best, counts)])
    of_columns = -np.sort(-s, axis=0)[:10].mean(0)
    np.testing.assert_allclose(adaptive_csls(scores), 2 * s - of_rows[:, None] - of_columns, **CLOSE)


@pytest.mark.parametrize("rows, columns, neighbours", [(14, 20, 3), (20, 14, 5), (6, 4, 10)])
def test_mutual_neighbours_against_numpy(rows, columns, neighbours, seed):
    scores = torch.randn(rows, columns)
    s, result = scores.numpy(), mutual(scores, neighbours).numpy()
    for i, j in itertools.product(range(rows), range(columns)):
        is_mutual = (s[i] > s[i, j]).sum() < neighbours and (s[:, j] > s[i, j]).sum() < neighbours
        assert (result[i, j] > s.max()) == is_mutual
    of_row = lambda row, chosen: np.argsort(-row[chosen])  # noqa: E731
    for row, raised in zip(s, result):
        for chosen in (raised > s.max(), raised <= s.max()):
            np.testing.assert_array_equal(of_row(row, chosen), of_row(raised, chosen))


@pytest.mark.parametrize("rows, columns", [(6, 6), (4, 6), (6, 4)])
def test_hungarian_is_the_best_of_all_assignments(rows, columns, seed):
    scores = torch.randn(rows, columns)
    s, result = scores.numpy(), hungarian(scores).numpy()
    few, many = (s, range(columns)) if rows <= columns else (s.T, range(rows))
    best = max(sum(few[i, j] for i, j in enumerate(chosen)) for chosen in itertools.permutations(many, len(few)))
    assigned = result > s.max()
    assert assigned.sum() == len(few) and max(*assigned.sum(0), *assigned.sum(1)) == 1
    assert s[assigned].sum() == pytest.approx(best, abs=1e-5)
    np.testing.assert_array_equal(result[~assigned], s[~assigned])


def test_rescoring_lowers_an_image_that_is_near_to_all(seed):
    scores = torch.eye(20) + 0.1 * torch.rand(20, 20)
    scores[:, 3] += 1.5
    assert top1(scores) == 0.05
    for step in (csls, adaptive_csls, sinkhorn, hungarian):
        assert top1(step(scores)) > 0.9, step


@pytest.mark.parametrize(
    "name", [*rescoring.INFORMATION, "whitening,procrustes,adaptive_csls,sinkhorn,mutual,hungarian"]
)
def test_no_step_knows_which_image_is_right(name, seed):
    """Scores follow a change of the gallery's order, and equal embeddings score nothing."""
    brain, image = unit(25, 8), unit(30, 8)
    scoring, order = Scoring(rescoring=name), torch.randperm(30)
    both = (similarity(embeddings(brain, each), scoring) for each in (image[order], image))
    torch.testing.assert_close(next(both), next(both)[:, order], rtol=1e-3, atol=1e-3)
    collapsed = unit(1, 8).expand(12, 8)
    assert top1(similarity(embeddings(collapsed, collapsed), scoring)) == 0
    assert top1(similarity(embeddings(collapsed, unit(12, 8)), scoring)) < 0.5


@pytest.mark.parametrize("name", [*rescoring.INFORMATION, "whitening,procrustes,csls,sinkhorn,mutual,hungarian"])
@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 5), (5, 1), (2, 7), (9, 4)])
def test_small_test_sets_have_finite_scores(name, rows, columns, seed):
    scores = similarity(embeddings(unit(rows, 6), unit(columns, 6)), Scoring(rescoring=name))
    assert scores.shape == (rows, columns) and scores.isfinite().all()
    if (rows, columns) == (1, 1):
        assert top1(scores) == 1


def test_an_invalid_embedding_is_named():
    valid, invalid = torch.eye(4), torch.eye(4)
    invalid[2, 1] = float("nan")
    for name in list(rescoring.INFORMATION)[1:]:
        with pytest.raises(UserError, match="the embedding of recording 2 is NaN or infinite"):
            similarity(embeddings(invalid, valid), Scoring(rescoring=name))
        with pytest.raises(UserError, match="the embedding of image 2 is NaN or infinite"):
            similarity(embeddings(valid, invalid), Scoring(rescoring=name))


def test_steps_are_applied_in_order(seed):
    brain, image = unit(20, 6), unit(25, 6)
    expected = hungarian(csls(procrustes(whitening(brain, image), image) @ image.T))
    scoring = Scoring(rescoring="whitening, procrustes,csls,hungarian")
    torch.testing.assert_close(similarity(embeddings(brain, image), scoring), expected, rtol=1e-4, atol=1e-5)
    assert scoring.protocol()["rescoring"] == "whitening,procrustes,csls,hungarian"
    assert scoring.information == "label-free transductive, assumes a bijection"
    assert Scoring("paper", rescoring="hungarian").information == "uses labels"


@pytest.mark.parametrize(
    "names, message",
    {
        "whitening,": "unknown rescoring ''; choose one of none, whitening",
        "whitening,cls": "unknown rescoring 'cls'; did you mean 'csls'",
        "none,csls": "none stands alone",
        "csls,csls": "csls is named twice",
        "csls,whitening": "whitening changes embeddings, and csls the scores made of them; name whitening first",
        "procrustes,whitening": "whitening moves what procrustes has aligned with the images; name whitening first",
        "csls,adaptive_csls": "csls and adaptive_csls are two versions of one step; name one",
        "sinkhorn,csls": "sinkhorn leaves a plan of equal masses, with no hubs to lower; name csls before it",
        "mutual,sinkhorn": "mutual sets two kinds of pairs apart, whose scores have no common scale; name sinkhorn",
        "whitening,hungarian,mutual": "hungarian has decided on an image for each recording; name mutual before it",
    }.items(),
)
def test_lists_that_make_no_sense_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        Scoring(rescoring=names)
