"""Reliability, covariance and evoked responses against closed forms and numpy."""

import math

import numpy as np
import pytest

from bvsa_core.data.quality import reliability as module
from bvsa_core.data.quality.reliability import peaks, quality, spearman_brown


def simulated(seed: int, conditions=400, repetitions=6, channels=5, samples=20, ratio=0.5) -> np.ndarray:
    """Return responses of variance `ratio` at every channel and time, plus noise of variance 1, all independent."""
    rng = np.random.default_rng(seed)
    responses = rng.standard_normal((conditions, 1, channels, samples)) * math.sqrt(ratio)
    return (responses + rng.standard_normal((conditions, repetitions, channels, samples))).astype(np.float32)


@pytest.mark.parametrize("repetitions", [2, 5, 6, 12])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
def test_reliability_is_that_of_the_simulated_signal(seed, repetitions, ratio):
    estimate = quality(simulated(seed, repetitions=repetitions, ratio=ratio))
    of_half, expected = (ratio / (ratio + 1 / n) for n in (repetitions // 2, repetitions))
    # A correlation over n conditions has the standard deviation (1 - r^2) / sqrt(n) and a bias below 1 / n; 100 of them
    # are averaged after a correction whose slope is at most `times` / (1 + (times - 1) r)^2 nearby.
    times = repetitions / (repetitions // 2)
    slope = times / (1 + (times - 1) * of_half) ** 2
    tolerance = slope * (5 * (1 - of_half**2) / math.sqrt(400 * 100) + 2 / 400)
    assert estimate.reliability.mean() == pytest.approx(expected, abs=tolerance)
    np.testing.assert_allclose(estimate.ceiling, np.sqrt(np.clip(estimate.reliability, 0, None)))


def test_halves_are_disjoint_and_all_different():
    rng = np.random.default_rng(0)
    for repetitions, count in ((2, 1), (3, 3), (4, 3), (6, 10), (80, 20)):
        halves = module._halves(repetitions, 20, rng)
        assert len(halves) == count and len({(frozenset(a), frozenset(b)) for a, b in halves}) == count
        assert all(len(a) == len(b) == repetitions // 2 and not set(a) & set(b) for a, b in halves)
    assert module._halves(1, 20, rng) == []


def test_correlations_equal_numpys(seed):
    data = simulated(seed, conditions=7, repetitions=2, channels=2, samples=3) * 1e-6 + 5e-6  # volts, and an offset
    estimate = quality(data)
    for channel, sample in np.ndindex(2, 3):
        r = np.corrcoef(data[:, :, channel, sample].T.astype(np.float64))[0, 1]
        expected = spearman_brown(np.clip(r, -0.5, 1), 2)
        assert estimate.reliability[channel, sample] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_evoked_responses_and_covariance_equal_numpys_at_any_block_size(seed, monkeypatch):
    data = (simulated(seed, conditions=30, ratio=1) @ np.diag(np.linspace(1, 3, 20))).astype(np.float16)
    wide = data.astype(np.float64)
    residual = wide - wide.mean(axis=1, keepdims=True)
    expected = np.einsum("crit,crjt->ij", residual, residual) / (30 * 5 * 20)
    whole = quality(data)
    monkeypatch.setattr(module, "_BLOCK", 700)
    for estimate in (whole, quality(data)):
        np.testing.assert_allclose(estimate.evoked, wide.mean(axis=(0, 1)), atol=1e-5)
        np.testing.assert_allclose(estimate.covariance, expected, atol=1e-4)
    np.testing.assert_allclose(estimate.reliability, whole.reliability, atol=1e-6)


def test_one_repetition_has_no_reliability_and_covaries_around_the_evoked_response(seed):
    data = simulated(seed, conditions=50, repetitions=1) + 3
    estimate = quality(data)
    residual = (data - data.mean(axis=0))[:, 0].astype(np.float64)
    expected = np.einsum("cit,cjt->ij", residual, residual) / (49 * 20)
    assert estimate.reliability is None and estimate.ceiling is None
    np.testing.assert_allclose(estimate.covariance, expected, atol=1e-4)


def test_a_flat_channel_has_no_reliability(seed):
    data = simulated(seed)
    data[:, :, 1] = 2
    assert (quality(data).reliability[1] == 0).all()


def test_peaks_are_distant_and_in_order():
    evoked = np.zeros((2, 100))
    evoked[0, [10, 12, 50, 90]] = [3, 2, 5, 4]
    assert peaks(evoked) == [10, 50, 90]
    assert peaks(evoked, count=1) == [50]
