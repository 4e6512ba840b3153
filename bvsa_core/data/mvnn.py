"""Multivariate noise normalisation (MVNN; Guggenmos et al., NeuroImage 2018) as in Gifford et al. (NeuroImage 2022).

Recordings are multiplied by the inverse square root of the channels' noise covariance. It is the covariance of an epoch
over time, shrunk after Ledoit and Wolf (2004), and averaged over epochs. As in scikit-learn's discriminant analysis,
shrinkage acts on channels of unit variance, so that units do not matter.
"""

import math

import numpy as np

_BLOCK = 2**22  # samples processed at once


def noise_covariance(recordings: np.ndarray, over: str = "epochs") -> np.ndarray:
    """Return the mean shrunk covariance (channels, channels) float64 of the channels.

    A channel that is constant in an epoch has no variance there.

    Args:
        recordings: (conditions, repetitions, channels, time); read in blocks of conditions, so it may be memory-mapped.
        over: samples of one covariance: the time points of an epoch ("epochs", the original's default), or the
            repetitions of a condition at a time point ("time").
    """
    order = {"epochs": (0, 1, 2, 3), "time": (0, 3, 2, 1)}[over]
    conditions, per_condition, channels, _ = (recordings.shape[axis] for axis in order)
    step = max(1, _BLOCK // math.prod(recordings.shape[1:]))
    total = np.zeros((channels, channels))
    for start in range(0, conditions, step):
        block = np.asarray(recordings[start : start + step], np.float64).transpose(order)
        total += _sum_of_covariances(block.reshape(-1, *block.shape[2:]))
    return total / (conditions * per_condition)


def whitener(covariance: np.ndarray) -> np.ndarray:
    """Return the symmetric inverse square root of a covariance.

    Raises:
        ValueError: it is not positive definite, for example because a channel is flat throughout.
    """
    values, vectors = np.linalg.eigh(covariance)
    if not values[0] > len(values) * np.finfo(values.dtype).eps * values[-1]:
        raise ValueError("the covariance is singular")
    root = vectors * values**-0.25
    return root @ root.T


def _sum_of_covariances(items: np.ndarray) -> np.ndarray:
    """Sum the shrunk covariances of (items, channels, samples) without forming each of them.

    An item's estimate is (1 - s) S + s mu D, with its covariance S, the diagonal D of S, its shrinkage s, and the mean
    variance mu after standardisation, which is 1 unless a channel is constant.
    """
    _, channels, samples = items.shape
    mean = items.mean(-1, keepdims=True)
    centred = items - mean
    variance = np.square(centred).mean(-1)
    rounding = samples * np.finfo(variance.dtype).eps
    variance[variance <= rounding * variance + (rounding * mean[..., 0]) ** 2] = 0
    inverse = np.divide(1, np.sqrt(variance), out=np.zeros_like(variance), where=variance > 0)
    shrinkage, mu = _shrinkage(centred * inverse[..., None])
    weighted = (centred * np.sqrt((1 - shrinkage) / samples)[:, None, None]).transpose(1, 0, 2).reshape(channels, -1)
    return weighted @ weighted.T + np.diag((shrinkage * mu) @ variance)


def _shrinkage(items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Ledoit and Wolf's shrinkage and mean variance, both (items,), of centred (items, channels, samples)."""
    _, channels, samples = items.shape
    power = np.square(items).sum(1)
    mu = power.sum(-1) / samples / channels
    # |S|^2 over channels or over samples, whichever matrix is smaller.
    product = items @ items.swapaxes(1, 2) if channels <= samples else items.swapaxes(1, 2) @ items
    norm = np.square(product).sum((1, 2)) / samples**2
    dispersion = norm / channels - mu**2
    error = np.minimum((np.square(power).sum(-1) / samples - norm) / (channels * samples), dispersion)
    return np.clip(np.divide(error, dispersion, out=np.zeros_like(error), where=error != 0), 0, 1), mu
