"""Concepts and images that the test set shares with the training data."""

import shutil

import pytest
import torch
from PIL import Image

from bvsa_core.data.dataset import Dataset
from bvsa_core.data.leaks import find_leak, shared_concepts, shared_images
from bvsa_core.data.split import Split, hold_out, load_split


def test_case_and_underscores_of_concepts_do_not_count():
    assert shared_concepts(["Hot_dog", "CAT", "bat1"], ["hot dog", "cat", "bat2"]) == ["cat", "hot dog"]
    assert shared_concepts([], ["cat"]) == shared_concepts(["cat"], []) == []


def test_images_are_compared_by_content(tmp_path):
    for name, size in (("a", 4), ("b", 5), ("other", 4)):
        Image.new("RGB", (size, size), (10 * size, len(name), 0)).save(tmp_path / f"{name}.png")
    copy = shutil.copy(tmp_path / "a.png", tmp_path / "copy.png")
    known = [tmp_path / "a.png", tmp_path / "b.png"]
    assert shared_images(known, [copy, tmp_path / "other.png", tmp_path / "b.png"]) == [tmp_path / "b.png", copy]


@pytest.fixture
def splits(small_data) -> tuple[Dataset, Split, Split]:
    dataset = Dataset(small_data)
    return dataset, load_split(dataset, ["sub-01"], "train"), load_split(dataset, ["sub-01"], "test")


def test_held_out_concepts_and_the_test_set_are_no_leak(splits, seed):
    dataset, train, test = splits
    assert find_leak(dataset, train, None, test) is None
    assert find_leak(dataset, *hold_out(train, 6, seed), test) is None


def test_a_leak_is_described(splits, seed):
    dataset, train, test = splits
    known, held = hold_out(train, 6, seed)
    image, concept = held.shown()[0]
    concepts = [concept.upper(), *test.concepts[1:]]
    by_name = Split(**{**vars(test), "concepts": concepts})
    expected = f"the training data have 1 concept(s) ({concept.upper()}) of the test set"
    assert find_leak(dataset, train, None, by_name) == find_leak(dataset, known, held, by_name) == expected
    assert find_leak(dataset, known, None, by_name) is None
    by_image = Split(**{**vars(test), "images": [image, *test.images[1:]]})
    leak = find_leak(dataset, train, None, by_image)
    assert leak == f"the training data have 1 image(s) ({image.rpartition('/')[2]}) of the test set"
    assert (leak := find_leak(dataset, train, held, test)).startswith(
        "the training data have 2 concept(s) ("
    ) and leak.endswith(") of the held-out data")
    assert find_leak(dataset, known, train.take(torch.arange(0)), test) is None
