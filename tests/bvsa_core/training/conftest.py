"""Data that the trainings of a file share."""

import pytest

from bvsa_core.training.config import RunDataConfig
from bvsa_core.training.run_data import RunData


@pytest.fixture(scope="module")
def run_data(small_data) -> RunData:
    return RunData(RunDataConfig(data=small_data))
