"""An encoder, images of the small data set, and a bank for them."""

import pytest

from bvsa_core.data.dataset import Dataset
from bvsa_core.vision.bank import FeatureBank
from bvsa_core.vision.clip import load_clip


@pytest.fixture(scope="session")
def clip():
    return load_clip("tiny")


@pytest.fixture(scope="session")
def paths(small_data):
    dataset = Dataset(small_data)
    return [dataset.image_path(image) for image in dataset.load("sub-01", "train").images[:40]]


@pytest.fixture
def bank(tmp_path, clip, paths) -> FeatureBank:
    return FeatureBank(tmp_path / "bank", clip, paths)
