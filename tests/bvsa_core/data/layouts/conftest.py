"""The planted data set, and ways to convert it."""

from pathlib import Path

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
    """Convert a folder; returns the store."""

    def run(modality: str = "EEG", source: Path = tmp_path / "source", store: str = "store", **options) -> Path:
        convert(source, tmp_path / store, modality, ConversionOptions(**options))
        return tmp_path / store

    return run


@pytest.fixture
def refused(converted):
    """Check that converting a folder fails with a message; returns all of it."""

    def run(message: str, modality: str = "EEG", **arguments) -> str:
        with pytest.raises(UserError, match=message) as caught:
            converted(modality, **arguments)
        return str(caught.value)

    return run
