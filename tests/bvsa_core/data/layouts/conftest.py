"""The planted data set, and ways to convert it."""

from __future__ import annotations

import fake_eeg
import pytest

from bvsa_core.data.layouts.convert import convert
from bvsa_core.data.layouts.source import ConversionOptions
from bvsa_core.errors import UserError


@pytest.fixture(scope="session")
def planted():
    return fake_eeg.plant(0)


@pytest.fixture
def converted(tmp_path):
    """Convert the folder `source` of the test's own folder; returns the store."""

    def run(modality: str = "EEG", **options):
        convert(tmp_path / "source", tmp_path / "store", modality, ConversionOptions(**options))
        return tmp_path / "store"

    return run


@pytest.fixture
def refused(converted):
    """Check that converting the folder `source` fails with a message."""

    def run(message: str, modality: str = "EEG", **options):
        with pytest.raises(UserError, match=message):
            converted(modality, **options)

    return run
