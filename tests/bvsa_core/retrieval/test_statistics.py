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


def hits_of(*counts: int, seeds: int = 2, images: int = 10) -> np.ndarray:
    """Hits (subjects, seeds, images) of which the first so many of each subject are true."""
    return np.array([[np.arange(images) < count] * seeds for count in counts])


def test_methods_are_compared_across_subjects_if_they_are_enough():
    hits = {"a": hits_of(3, 4, 5, 6, 7, 8), "b": hits_of(0, 1, 2, 3, 4, 5), "c": hits_of(1, 1, 2, 2, 3, 3)}
    (one,) = compare(hits, [("a", "b")])
    assert (one.first, one.second, one.over) == ("a", "b", "subjects") and one.difference == pytest.approx(0.3)
    assert one.p == 2 / 2**6
    assert {each.over for each in compare(hits, [("a", "b"), ("a", "c"), ("b", "c")])} == {"test images"}


def test_methods_are_compared_across_images_of_few_subjects(seed):
    """Against scipy, whose test is exact without ties; and the interval has those of the images alone."""
    rng = np.random.default_rng(seed)
    hits = {name: rng.random((1, 999, 12)) < rng.random(12) for name in "ab"}
    differences = (hits["a"].mean((0, 1)) - hits["b"].mean((0, 1))).round(12)
    (test,) = compare(hits, [("a", "b")])
    assert test.over == "test images" and test.difference == pytest.approx(differences.mean())
    if len(set(np.abs(differences))) == 12 and differences.all():
        assert test.p == pytest.approx(scipy.stats.wilcoxon(differences, method="exact").pvalue)
    same = {name: np.repeat(rng.random((1, 1, 200)) < 0.5, 3, axis=1) for name in "ab"}
    ((low, high),) = [each.interval for each in compare(same, [("a", "b")])]
    spread = (same["a"][0, 0].astype(float) - same["b"][0, 0]).std()
    assert high - low == pytest.approx(2 * 1.96 * spread / np.sqrt(200), rel=0.1)


def test_methods_are_compared_only_where_a_difference_could_show():
    reason = compare({name: hits_of(1, 2, images=4) for name in "ab"}, [("a", "b")])
    assert "with 2 subject(s), 4 test image(s) and 1 comparison(s)" in reason and "is 0.12, above 0.05" in reason
    assert "nothing to compare" in compare({"a": hits_of(1)}, [])
    assert "differ" in compare({"a": hits_of(1), "b": hits_of(1, seeds=3)}, [("a", "b")])


def test_wilcoxon_has_no_limit_of_pairs():
    """More pairs than a double counts outcomes of; the normal approximation holds there."""
    first = np.random.default_rng(0).normal(0.05, 1, 1200).round(1)
    expected = scipy.stats.wilcoxon(first, method="asymptotic").pvalue
    assert wilcoxon(first, np.zeros(1200)) == pytest.approx(expected, rel=0.02)
