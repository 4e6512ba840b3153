"""A small synthetic data set, made once for the whole session."""

from __future__ import annotations

from pathlib import Path

import pytest

from bvsa_core.data.synthetic import SyntheticConfig, make_dataset

SMALL = SyntheticConfig(
    subjects=2,
    train_concepts=30,
    images_per_concept=3,
    train_repetitions=2,
    test_concepts=12,
    test_repetitions=6,
    samples=100,
    signal_to_noise=1.0,
)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """A data set of SMALL; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("data") / "small"
    make_dataset(folder, SMALL)
    return folder
