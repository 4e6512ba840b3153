"""Ranks, figures, gates and intervals against plain numpy, and the properties that make a number honest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bvsa_core.errors import UserError
from bvsa_core.retrieval.bootstrap import crossed_bootstrap
from bvsa_core.retrieval.evaluate import Embeddings, ranks, score, similarity
from bvsa_core.retrieval.gates import INFORMATION, gates


def random_embeddings(n: int = 30, m: int = 30, d: int = 8) -> Embeddings:
    unit = lambda rows: torch.nn.functional.normalize(torch.randn(rows, d), dim=1)  # noqa: E731
    return Embeddings(unit(n), unit(m), unit(n), unit(m))


def test_figures_are_those_of_a_sorted_list(seed):
    scores = torch.randn(50, 50)
    order = np.argsort(-scores.numpy(), axis=1)
    position = np.array([list(order[i]).index(i) + 1 for i in range(50)])
    ours = score(ranks(scores))
    assert ours.top1 == pytest.approx((position == 1).mean()) and ours.top5 == pytest.approx((position <= 5).mean())
    assert ours.map == pytest.approx((1 / position).mean()) and ours.median_rank == pytest.approx(np.median(position))
    assert ours.n == 50


def test_a_collapsed_encoder_earns_nothing():
    assert score(ranks(torch.zeros(10, 10))).top5 == 0 and score(ranks(torch.eye(10))).top1 == 1


def test_scores_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match="query 1 are NaN"):
        ranks(torch.tensor([[1.0, 0.0], [float("nan"), 1.0]]))
    with pytest.raises(UserError, match="3 queries and 2 pictures"):
        ranks(torch.zeros(3, 2))


def test_gates_follow_their_formulas(seed):
    to_text = torch.randn(40, 40)
    diagonal = to_text.diagonal().numpy()
    rows, columns = gates("paper", to_text)
    expected = diagonal >= diagonal.mean() - 1.6448536 * diagonal.std(ddof=1)
    np.testing.assert_array_equal(rows.numpy().astype(bool), expected)
    assert torch.equal(rows, columns)
    rows, columns = gates("code", to_text)
    np.testing.assert_array_equal(rows.numpy().astype(bool), diagonal >= diagonal.mean() - 1.96 * diagonal.std(ddof=1) / np.sqrt(40))
    assert (columns == 1).all()


@pytest.mark.parametrize("gate", INFORMATION)
def test_modulation_is_the_published_product(gate, seed):
    e = random_embeddings()
    to_image, to_text = e.brain_image @ e.image.T, e.brain_text @ e.text.T
    rows, columns = gates(gate, to_text)
    expected = to_image + torch.outer(rows, columns) * to_image * to_text
    torch.testing.assert_close(similarity(e, gate), expected)


@pytest.mark.parametrize("gate", [name for name, information in INFORMATION.items() if information == "inductive"])
def test_inductive_scores_do_not_depend_on_the_other_queries(gate, seed):
    e = random_embeddings()
    chosen = torch.randperm(30)[:11]
    fewer = Embeddings(e.brain_image[chosen], e.image, e.brain_text[chosen], e.text)
    torch.testing.assert_close(similarity(fewer, gate), similarity(e, gate)[chosen])


def test_gates_that_read_labels_say_so_and_need_a_square(seed):
    assert INFORMATION["paper"] == INFORMATION["code"] == "uses labels"
    for gate in ("paper", "code"):
        with pytest.raises(UserError, match="3 recordings and 5 texts"):
            gates(gate, torch.randn(3, 5))
    with pytest.raises(UserError, match="unknown gate 'papr'; did you mean 'paper'"):
        gates("papr", torch.randn(3, 3))


def test_bootstrap_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        subject, picture = rng.normal(0, 1, (12, 1, 1)), rng.normal(0, 1, (1, 1, 60))
        low, high = crossed_bootstrap(subject + picture + rng.normal(0, 1, (12, 4, 60)), resamples=400, seed=trial)
        covered += low <= 0 <= high
    assert 0.86 < covered / 200 < 1


def test_bootstrap_counts_a_picture_that_is_hard_for_everyone_as_one(seed):
    hard = np.zeros((5, 3, 100))
    hard[:, :, :50] = 1  # the same fifty are right in every cell
    low, high = crossed_bootstrap(hard)
    assert high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)  # that of 100 pictures, not of 1,500
