"""Ranks, scores, gates and intervals against plain numpy, and the properties that make a number honest."""

import numpy as np
import pytest
import results
import torch

from bvsa_core.errors import UserError
from bvsa_core.retrieval import rescoring as steps
from bvsa_core.retrieval.gates import INFORMATION, Reliability, gates, learn_reliability
from bvsa_core.retrieval.scoring import Embeddings, Scoring, ranks, score, similarity
from bvsa_core.retrieval.statistics import crossed_bootstrap

RELIABILITY = Reliability("margin", 0.1)


def random_embeddings(n: int = 30, m: int = 30, d: int = 8) -> Embeddings:
    unit = lambda rows: torch.nn.functional.normalize(torch.randn(rows, d), dim=1)  # noqa: E731
    return Embeddings(unit(n), unit(m), unit(n), unit(m))


def test_scores_are_those_of_a_sorted_list(seed):
    scores = torch.randn(50, 50)
    order = np.argsort(-scores.numpy(), axis=1)
    position = np.array([list(order[i]).index(i) + 1 for i in range(50)])
    ours = score(ranks(scores))
    assert ours.top1 == pytest.approx((position == 1).mean()) and ours.top5 == pytest.approx((position <= 5).mean())
    assert ours.map == pytest.approx((1 / position).mean()) and ours.median_rank == pytest.approx(np.median(position))
    assert ours.n == 50


def test_a_collapsed_encoder_scores_nothing():
    assert score(ranks(torch.zeros(10, 10))).top5 == 0 and score(ranks(torch.eye(10))).top1 == 1


def test_invalid_scores_are_refused():
    with pytest.raises(UserError, match="query 1 are NaN"):
        ranks(torch.tensor([[1.0, 0.0], [float("nan"), 1.0]]))
    with pytest.raises(UserError, match="3 queries and 2 images"):
        ranks(torch.zeros(3, 2))


def test_gates_follow_their_formulas(seed):
    brain_text, text = torch.randn(40, 9), torch.randn(40, 9)
    diagonal = (brain_text @ text.T).diagonal().numpy()
    for gate, alpha, reach in (
        ("paper", 0.10, 1.6448536), ("paper", 0.5, 0.6744898), ("code", 0.5, 1.9599640 / np.sqrt(40)),
    ):  # fmt: skip
        rows, columns = gates(gate, brain_text, text, alpha=alpha)
        expected = diagonal >= diagonal.mean() - reach * diagonal.std(ddof=1)
        np.testing.assert_array_equal(rows.numpy().astype(bool), expected)
        assert columns is None if gate == "code" else torch.equal(rows, columns)
    same = torch.ones(4, 1)  # the threshold is the similarity itself: paper opens at it, code above it
    assert gates("paper", same, same)[0].all() and not gates("code", same, same)[0].any()


def test_the_protocol_has_an_unusual_alpha_of_the_gate_paper():
    alphas = [Scoring(gate, alpha=alpha).protocol()["alpha"] for gate in ("paper", "code") for alpha in (0.5, 0.10)]
    assert alphas == [0.5, None, None, None]
    assert results.protocol(gate="paper", alpha=0.5).scoring() == Scoring("paper", alpha=0.5)
    assert results.protocol(gate="paper").scoring() == Scoring("paper")


@pytest.mark.parametrize("kind", ["margin", "max"])
def test_label_free_opens_for_clear_recordings(kind, seed):
    e = random_embeddings(20, 50)
    repeated = torch.cat([e.text, e.text[:7]])  # images of one concept share a text, which does not lower the margin
    sorted_ = np.sort((e.brain_text @ e.text.T).numpy(), axis=1)
    value = sorted_[:, -1] - (sorted_[:, -2] if kind == "margin" else 0)
    threshold = float(np.median(value))
    rows, columns = gates("label_free", e.brain_text, repeated, Reliability(kind, threshold + 1e-4))
    np.testing.assert_array_equal(rows.numpy(), value >= threshold + 1e-4)
    assert columns is None
    with pytest.raises(UserError, match="needs the reliability learnt on training recordings"):
        gates("label_free", e.brain_text, e.text)


def test_reliability_is_learnt_where_the_modulation_helps(seed):
    """The gain of opening grows with the margin and is negative below 0.3; the maximum is uninformative."""
    margin, largest = torch.rand(400), torch.rand(400)
    helps = margin >= 0.3
    closed, opened = torch.where(helps, 5, 1), torch.where(helps, 1, 5)
    parts = [slice(0, 150), slice(150, 400)]
    learnt = learn_reliability(
        (closed[part], opened[part], {"margin": margin[part], "max": largest[part]}) for part in parts
    )
    assert learnt.kind == "margin" and learnt.threshold == margin[helps].min().item()
    never = learn_reliability([(torch.ones(9), torch.full((9,), 2), {"margin": margin[:9], "max": largest[:9]})])
    assert not (margin[:9] >= never.threshold).any()


@pytest.mark.parametrize("gate", INFORMATION)
def test_modulation_is_the_published_product(gate, seed):
    e = random_embeddings()
    to_image, to_text = e.brain_image @ e.image.T, e.brain_text @ e.text.T
    rows, columns = (torch.ones(30) if x is None else x for x in gates(gate, e.brain_text, e.text, RELIABILITY))
    expected = to_image + torch.outer(rows, columns) * to_image * to_text
    torch.testing.assert_close(similarity(e, Scoring(gate, RELIABILITY)), expected)


@pytest.mark.parametrize("rescoring", [*steps.INFORMATION, "whitening,csls,mutual"])
@pytest.mark.parametrize("gate", INFORMATION)
def test_scores_are_independent_of_other_queries_exactly_if_inductive(gate, rescoring, seed):
    e, scoring = random_embeddings(), Scoring(gate, RELIABILITY, rescoring)
    chosen = torch.randperm(30)[:11]
    fewer = Embeddings(e.brain_image[chosen], e.image, e.brain_text[chosen], e.text)
    if gate in ("paper", "code"):
        assert scoring.information == "uses labels"
        return
    same = torch.allclose(similarity(fewer, scoring), similarity(e, scoring)[chosen], rtol=1e-5, atol=1e-6)
    assert same == (scoring.information == "inductive") == (rescoring == "none")
    bijection = ", assumes a bijection" if rescoring == "hungarian" else ""
    assert scoring.information in ("inductive", f"label-free transductive{bijection}")


def test_gates_that_read_labels_are_marked_and_need_a_square(seed):
    assert INFORMATION["paper"] == INFORMATION["code"] == "uses labels"
    for gate in ("paper", "code"):
        with pytest.raises(UserError, match="3 recordings and 5 texts"):
            gates(gate, torch.randn(3, 4), torch.randn(5, 4))
    with pytest.raises(UserError, match="unknown gate 'papr'; did you mean 'paper'"):
        Scoring("papr")
    with pytest.raises(UserError, match="unknown rescoring 'cls'; did you mean 'csls'"):
        Scoring(rescoring="cls")
    with pytest.raises(UserError, match="write margin:THRESHOLD or max:THRESHOLD"):
        Reliability.parse("margin:much")
    assert Reliability.parse("max:0.25") == Reliability("max", 0.25, by_hand=True)


def test_shuffled_texts_are_a_derangement(seed):
    e = random_embeddings()
    scoring = Scoring("always", shuffle_texts=True)
    to_image = e.brain_image @ e.image.T
    to_text = similarity(e, scoring) / to_image - 1
    texts = (e.brain_text @ e.text.T).T
    given = [int((texts - column).abs().amax(1).argmin()) for column in to_text.T]
    assert sorted(given) == list(range(30)) and all(own != other for own, other in enumerate(given))
    assert scoring.protocol()["texts"] == "shuffled"


def test_bootstrap_intervals_have_their_coverage():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        subject, image = rng.normal(0, 1, (12, 1, 1)), rng.normal(0, 1, (1, 1, 60))
        low, high = crossed_bootstrap(subject + image + rng.normal(0, 1, (12, 4, 60)), resamples=400, seed=trial)
        covered += low <= 0 <= high
    assert 0.86 < covered / 200 < 1


def test_bootstrap_counts_an_image_that_is_hard_for_all_once(seed):
    hard = np.zeros((5, 3, 100))
    hard[:, :, :50] = 1  # the same fifty are right in every cell
    low, high = crossed_bootstrap(hard)
    assert high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)  # that of 100 images, not of 1,500
