"""Statistics of rankings: bootstrap intervals, hubness, smaller galleries, and paired tests of methods."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import scipy  # which imports scipy.stats when it is used: half a second
from numpy.typing import ArrayLike
from torch import Tensor

GALLERIES = (2, 10, 50, 100, 200)  # sizes that the field reports
LEVEL = 0.05  # of significance


def crossed_bootstrap(
    values: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return a percentile interval of the mean of values (subjects, seeds, images).

    Each factor is resampled with replacement, independently of the others (Owen, Annals of Applied Statistics 2007), so
    that an image that is hard for every subject stays hard in a resample.

    >>> crossed_bootstrap([[[1.0, 1.0, 1.0]]])
    (1.0, 1.0)
    """
    values = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    weights = [rng.multinomial(size, np.full(size, 1 / size), size=resamples) / size for size in values.shape]
    means = np.einsum("rs,rk,rn,skn->r", *weights, values, optimize=True)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class HubnessRecord(TypedDict):
    """`Hubness` as plain data."""

    k: int
    skewness: float
    never_retrieved: float


class GalleryAccuracy(TypedDict):
    """Accuracies in random galleries of a size."""

    size: int
    top1: float
    top5: float


class CurvePoint(TypedDict):
    """Accuracies by the number of test repetitions averaged: mean and standard deviation over draws of them."""

    averaged: int
    resamples: int
    top1: float
    top1_std: float
    top5: float
    top5_std: float


class Statistics(TypedDict, total=False):
    """What is known of a ranking beside its scores."""

    hubness: HubnessRecord
    galleries: list[GalleryAccuracy]
    repetitions: list[CurvePoint]


@dataclass(frozen=True)
class Hubness:
    """How unevenly images are retrieved (Radovanovic et al., JMLR 2010)."""

    k: int  # images retrieved for a query
    skewness: float  # of the k-occurrence; 0 if every image is retrieved equally often
    never_retrieved: float  # fraction of the images


def hubness(scores: Tensor, k: int = 10) -> Hubness:
    """Return the hubness of scores (N, M). The k-occurrence of an image counts the queries with it among their k best.

    >>> import torch
    >>> hubness(torch.eye(4), k=1)
    Hubness(k=1, skewness=0.0, never_retrieved=0.0)
    """
    k = min(k, scores.shape[1])
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]  # ties go to the lower index
    occurrence = np.bincount(best.flatten().cpu().numpy(), minlength=scores.shape[1])
    skewness = 0.0 if (occurrence == occurrence[0]).all() else float(scipy.stats.skew(occurrence))
    return Hubness(k, skewness, float((occurrence == 0).mean()))


def small_gallery(ranks: ArrayLike, images: int, size: int, k: int) -> float:
    """Return the expected top-k accuracy in a random gallery of `size` of all `images` that holds the right one.

    An image of rank r is found if fewer than k of the r - 1 images ahead of it are among the size - 1 others: a
    hypergeometric probability. Ranks (N,) count from 1, among all images.

    >>> small_gallery([3], images=5, size=2, k=1)  # two of the four others are ahead
    0.5
    """
    ahead = np.asarray(ranks) - 1
    return float(scipy.stats.hypergeom.cdf(k - 1, images - 1, ahead, size - 1).mean())


def small_galleries(ranks: ArrayLike, images: int) -> list[GalleryAccuracy]:
    """Return the expected Top-1 and Top-5 accuracies for each size of GALLERIES up to the number of images."""
    accuracy = functools.partial(small_gallery, ranks, images)
    return [{"size": n, "top1": accuracy(n, 1), "top5": accuracy(n, 5)} for n in GALLERIES if n <= images]


def wilcoxon(first: ArrayLike, second: ArrayLike) -> float:
    """Return the two-sided p of the signed-rank test (Wilcoxon, 1945) of paired values (subjects,), exact with ties.

    Ours, because scipy's is exact with ties up to 13 pairs only. Equal pairs are dropped; the distribution of the sum
    of ranks is that of all 2^n outcomes of the signs.
    """
    differences = np.subtract(first, second, dtype=np.float64)
    differences = differences[~np.isclose(differences, 0.0, rtol=0.0, atol=1e-12)]
    # Accuracies are multiples of 1 / queries: smaller differences are rounding errors, and ties.
    twice = (2 * scipy.stats.rankdata(np.abs(differences).round(12))).astype(int)
    ways = np.ones(1)
    for rank in twice:
        ways = (np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))) / 2
    positive = int(twice[differences > 0].sum())
    extreme = min(positive, int(twice.sum()) - positive)
    return float(min(1.0, 2 * ways[: extreme + 1].sum()))


@dataclass(frozen=True)
class PairedHits:
    """Which of the same test images two runs find."""

    both: int
    only_first: int
    only_second: int
    neither: int
    p: float  # two-sided, of McNemar's test, exact: binomial over the images that one run alone finds


def compare_hits(first: ArrayLike, second: ArrayLike) -> PairedHits:
    """Compare the hits (images,) bool of two runs (McNemar, Psychometrika 1947).

    >>> compare_hits([True, True, True, False], [False, False, True, False])
    PairedHits(both=1, only_first=2, only_second=0, neither=1, p=0.5)
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    p = float(scipy.stats.binomtest(one, one + other).pvalue) if one + other else 1.0
    return PairedHits(both, one, other, neither, p)


def least_p(subjects: int) -> float:
    """Return the smallest p that `wilcoxon` can give: all subjects agree.

    >>> least_p(5)
    0.0625
    """
    return min(1.0, 2.0 ** (1 - subjects))


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p values for multiple tests (Holm, 1979).

    >>> holm([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    """
    order, places = np.argsort(p), np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.sort(p) * places).clip(max=1)
    return adjusted.tolist()


@dataclass(frozen=True)
class Comparison:
    """Paired comparison of two methods on the same subjects and test images."""

    first: str
    second: str
    difference: float  # of accuracies, first minus second, mean over subjects, seeds and images
    interval: tuple[float, float]  # of the difference, 95 %, crossed bootstrap
    p: float  # of Wilcoxon's test, adjusted for all comparisons of the table
    over: str  # what the test's pairs are: subjects, or test images


def compare(hits: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]]) -> list[Comparison] | str:
    """Compare methods by the interval of their difference and by `wilcoxon`, adjusted by `holm`.

    The pairs of the test are subjects, of whom the means over seeds and images are compared; if they are so few that no
    p could reach LEVEL they are the test images, and the test speaks of other images of the same subjects.

    Args:
        hits: (subjects, seeds, images) bool of each method: whether the right image was found.
        pairs: names of the methods to compare.

    Returns:
        The comparisons, or the reason why there are none.
    """
    if not pairs:
        return "no test: there is nothing to compare"
    if len({hits[name].shape for pair in pairs for name in pair}) > 1:
        return "no test: numbers of subjects, seeds or test images differ"
    subjects, _, images = hits[pairs[0][0]].shape
    least = {count: least_p(count) * len(pairs) for count in (subjects, images)}
    if min(least.values()) > LEVEL:
        counts = f"{subjects} subject(s), {images} test image(s) and {len(pairs)} comparison(s)"
        return (
            f"no test: with {counts} the least p of Wilcoxon's test with Holm's correction is "
            f"{min(1.0, *least.values()):.2g}, above {LEVEL:g} whatever the data"
        )
    over, others = ("subjects", (1, 2)) if least[subjects] <= LEVEL else ("test images", (0, 1))
    means = {name: values.mean(axis=others) for name, values in hits.items()}
    adjusted = holm([wilcoxon(means[one], means[other]) for one, other in pairs])
    differences = [hits[one].astype(float) - hits[other] for one, other in pairs]
    return [
        Comparison(one, other, float(values.mean()), crossed_bootstrap(values), p, over)
        for (one, other), values, p in zip(pairs, differences, adjusted)
    ]


def statistics_of(scores: Tensor, ranks: Tensor) -> Statistics:
    """Return hubness and accuracies in smaller galleries as plain data, from scores (N, M) and ranks (N,)."""
    hubs = hubness(scores)
    record = HubnessRecord(k=hubs.k, skewness=hubs.skewness, never_retrieved=hubs.never_retrieved)
    return {"hubness": record, "galleries": small_galleries(ranks.cpu().numpy(), scores.shape[1])}
