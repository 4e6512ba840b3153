"""Statistics of rankings against scipy, counting and sampling."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from bvsa_core.retrieval.scoring import ranks
from bvsa_core.retrieval.statistics import compare, holm, hubness, least_p, small_galleries, small_gallery, wilcoxon


def test_hubness_counts_how_often_each_image_is_retrieved(seed):
    scores = torch.randn(30, 40) + 2 * torch.randn(40)
    ours = hubness(scores, k=3)
    counts = np.bincount(np.argsort(-scores.numpy(), axis=1)[:, :3].ravel(), minlength=40)
    assert (ours.k, ours.never_retrieved) == (3, (counts == 0).mean())
    centred = counts - counts.mean()
    assert ours.skewness == pytest.approx((centred**3).mean() / (centred**2).mean() ** 1.5)


def test_hubness_of_equal_and_of_collapsed_retrieval():
    assert hubness(torch.eye(6), k=10) == hubness(torch.zeros(6, 6), k=6) and hubness(torch.eye(6)).skewness == 0
    collapsed = hubness(torch.zeros(50, 50), k=10)  # everyone gets the same ten
    assert collapsed.never_retrieved == 0.8 and collapsed.skewness == pytest.approx(1.5)


def test_small_galleries_are_the_mean_over_all_of_them(seed):
    """All galleries of 3 out of 7 images that hold the right one, ranked anew."""
    scores = torch.randn(5, 7)
    ahead = [
        sum(scores[query, other] >= scores[query, query] for other in others)
        for query in range(5)
        for others in itertools.combinations([image for image in range(7) if image != query], 2)
    ]
    for k in (1, 2):
        assert small_gallery(ranks(scores), 7, size=3, k=k) == pytest.approx(np.mean(np.less(ahead, k)))


def test_small_galleries_of_the_whole_gallery_are_the_accuracies(seed):
    rank = torch.randint(1, 201, (50,))
    table, fewer = ({row["size"]: row for row in small_galleries(rank.numpy(), images)} for images in (200, 60))
    assert list(table) == [2, 10, 50, 100, 200] and list(fewer) == [2, 10, 50]
    assert table[200]["top1"] == pytest.approx((rank <= 1).double().mean().item())
    assert table[200]["top5"] == pytest.approx((rank <= 5).double().mean().item())
    assert table[2]["top5"] == 1 and table[2]["top1"] == pytest.approx(1 - ((rank - 1) / 199).double().mean().item())


@pytest.mark.parametrize("subjects", [4, 7, 10])
def test_wilcoxon_is_scipys_exact_one(subjects, seed):
    first, second = np.random.rand(2, subjects)
    expected = scipy.stats.wilcoxon(first, second, method="exact").pvalue
    assert wilcoxon(first, second) == pytest.approx(expected, abs=1e-12)


def test_wilcoxon_with_ties_counts_every_sign(seed):
    differences = np.random.randint(-3, 4, 8) / 200
    size = np.abs(differences[differences != 0])
    midranks = np.array([(size < one).sum() + ((size == one).sum() + 1) / 2 for one in size])
    outcomes = [midranks[list(signs)].sum() for signs in itertools.product([False, True], repeat=len(size))]
    seen = midranks[differences[differences != 0] > 0].sum()
    tail = min(np.mean(np.less_equal(outcomes, seen)), np.mean(np.greater_equal(outcomes, seen)))
    base = np.random.rand(8)
    assert wilcoxon(base + differences, base) == pytest.approx(min(1, 2 * tail))
    assert wilcoxon(base, base) == 1 and wilcoxon([1.0] * 6, [0.0] * 6) == least_p(6)


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_methods_are_compared_only_where_a_difference_could_show(seed):
    accuracy = {"a": np.arange(6) / 10 + 0.3, "b": np.arange(6) / 10, "c": np.arange(6) / 20}
    reason = compare({name: values[:5] for name, values in accuracy.items() if name != "c"})
    assert "with 5 subject(s) and 1 comparison(s)" in reason and "correction is 0.062, above 0.05" in reason
    assert "3 comparison(s)" in compare(accuracy) and "nothing to compare" in compare({"a": [0.1]})
    (one,) = compare({name: accuracy[name] for name in "ab"})
    assert (one.first, one.second) == ("a", "b") and one.difference == pytest.approx(0.3) and one.p == 2 / 2**6
    longer = {name: np.append(values, [0.1, 0.2]) for name, values in accuracy.items()}
    assert [(each.first, each.second) for each in compare(longer, "b")] == [("a", "b"), ("c", "b")]
    assert len(compare(longer)) == 3
