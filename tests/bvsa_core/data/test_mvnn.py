"""Noise normalisation, against scikit-learn's covariances one by one and scipy's matrix power."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from sklearn.covariance import ledoit_wolf

from bvsa_core.data import mvnn


def recordings(conditions=4, repetitions=3, channels=5, time=40) -> np.ndarray:
    """Channels that share noise, with means and units of their own."""
    noise = np.random.standard_normal((conditions, repetitions, channels, time))
    mixing = np.random.standard_normal((channels, channels)) * 10.0 ** np.arange(-channels, 0)[:, None]
    return mixing @ noise + np.arange(channels)[:, None] / 100


def one_by_one(data: np.ndarray, over: str) -> np.ndarray:
    """The definition: a covariance at a time, over standardised channels and back."""
    items = (
        data.reshape(-1, *data.shape[2:])
        if over == "epochs"
        else data.transpose(0, 3, 2, 1).reshape(-1, data.shape[2], data.shape[1])
    )
    found = []
    for item in items:
        spread = item.std(axis=1)
        standard = (item - item.mean(axis=1, keepdims=True)) / spread[:, None]
        found.append(ledoit_wolf(standard.T)[0] * np.outer(spread, spread))
    return np.mean(found, axis=0)


# More samples than channels, fewer, two repetitions as in training, and a single channel.
@pytest.mark.parametrize("shape", [{}, {"channels": 9, "time": 6}, {"repetitions": 2, "time": 7}, {"channels": 1}])
@pytest.mark.parametrize("over", ["epochs", "time"])
def test_it_is_scikit_learns(seed, monkeypatch, shape, over):
    monkeypatch.setattr(mvnn, "_BLOCK", 300)  # conditions in more than one block
    data = recordings(**shape)
    expected = one_by_one(data, over)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(mvnn.noise_covariance(data, over) / scale, expected / scale, rtol=0, atol=1e-10)


def test_units_do_not_matter_and_a_channel_flat_in_one_epoch_is_without_variance_there(seed):
    data = recordings()
    data[1, 2, 3] = 7.1
    units = 10.0 ** np.arange(5)[:, None]
    covariance = mvnn.noise_covariance(data)
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    np.testing.assert_allclose(
        mvnn.noise_covariance(data * units) / units / units.T / scale, covariance / scale, rtol=0, atol=1e-10
    )
    # Shrinkage leaves a channel its variance, so the flat epoch adds nothing to the sum.
    there = data[..., 3, :].var(axis=-1)
    assert there[1, 2] < 1e-25 and covariance[3, 3] == pytest.approx(there.mean(), rel=1e-10)


def test_the_whitener_is_the_inverse_square_root(seed):
    root = np.random.standard_normal((6, 6))
    covariance = 1e-10 * (root @ root.T + np.eye(6))  # volts squared, well conditioned
    whitener = mvnn.whitener(covariance)
    np.testing.assert_array_equal(whitener, whitener.T)
    np.testing.assert_allclose(
        whitener, scipy.linalg.fractional_matrix_power(covariance, -0.5), rtol=0, atol=1e-11 * whitener.max()
    )


def test_a_flat_channel_cannot_be_whitened(seed):
    data = recordings()
    data[:, :, 2] = 0.3
    with pytest.raises(ValueError, match="singular"):
        mvnn.whitener(mvnn.noise_covariance(data))
