"""Noise normalisation against scikit-learn's covariances, one at a time, and scipy's matrix power."""

import numpy as np
import pytest
import scipy.linalg
from sklearn.covariance import ledoit_wolf

from bvsa_core.data import mvnn


def recordings(conditions=4, repetitions=3, channels=5, time=40) -> np.ndarray:
    """Recordings whose channels share noise and differ in mean and unit."""
    noise = np.random.standard_normal((conditions, repetitions, channels, time))
    mixing = np.random.standard_normal((channels, channels)) * 10.0 ** np.arange(-channels, 0)[:, None]
    return mixing @ noise + np.arange(channels)[:, None] / 100


def one_by_one(data: np.ndarray, over: str) -> np.ndarray:
    """Mean of covariances by definition: each is of standardised channels, scaled back."""
    data = data if over == "epochs" else data.transpose(0, 3, 2, 1)
    covariances = []
    for item in data.reshape(-1, *data.shape[2:]):
        std = item.std(axis=1)
        standard = (item - item.mean(axis=1, keepdims=True)) / std[:, None]
        covariances.append(ledoit_wolf(standard.T)[0] * np.outer(std, std))
    return np.mean(covariances, axis=0)


# More samples than channels, fewer, two repetitions as in training, and a single channel.
@pytest.mark.parametrize("shape", [{}, {"channels": 9, "time": 6}, {"repetitions": 2, "time": 7}, {"channels": 1}])
@pytest.mark.parametrize("over", ["epochs", "time"])
def test_covariances_are_those_of_scikit_learn(seed, monkeypatch, shape, over):
    monkeypatch.setattr(mvnn, "_BLOCK", 300)  # conditions in more than one block
    data = recordings(**shape)
    expected = one_by_one(data, over)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(mvnn.noise_covariance(data, over) / scale, expected / scale, rtol=0, atol=1e-10)


def test_units_do_not_matter_and_a_flat_epoch_adds_no_variance(seed):
    data = recordings()
    data[1, 2, 3] = 7.1
    units = 10.0 ** np.arange(5)[:, None]
    covariance = mvnn.noise_covariance(data)
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    scaled_back = mvnn.noise_covariance(data * units) / units / units.T
    np.testing.assert_allclose(scaled_back / scale, covariance / scale, rtol=0, atol=1e-10)
    # Shrinkage does not change the variance of a channel, so the flat epoch adds nothing to the sum.
    variance = data[..., 3, :].var(axis=-1)
    assert variance[1, 2] < 1e-25 and covariance[3, 3] == pytest.approx(variance.mean(), rel=1e-10)


def test_the_whitener_is_the_inverse_square_root(seed):
    root = np.random.standard_normal((6, 6))
    covariance = 1e-10 * (root @ root.T + np.eye(6))  # volts squared, well conditioned
    whitener = mvnn.whitener(covariance)
    np.testing.assert_array_equal(whitener, whitener.T)
    expected = scipy.linalg.fractional_matrix_power(covariance, -0.5)
    np.testing.assert_allclose(whitener, expected, rtol=0, atol=1e-11 * whitener.max())


def test_a_flat_channel_cannot_be_whitened(seed):
    data = recordings()
    data[:, :, 2] = 0.3
    with pytest.raises(ValueError, match="singular"):
        mvnn.whitener(mvnn.noise_covariance(data))
