"""Concepts and images that the test set shares with the training data."""

import shutil

import pytest
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
    assert find_leak(dataset, train.shown(), (), test.shown()) is None
    known, held = hold_out(train, 6, seed)
    assert find_leak(dataset, known.shown(), held.shown(), test.shown()) is None


def test_a_leak_is_described(splits, seed):
    dataset, train, test = splits
    known, held = (split.shown() for split in hold_out(train, 6, seed))
    train, test = train.shown(), test.shown()
    image, concept = held[0]
    by_name = ((test[0][0], concept.upper()), *test[1:])
    expected = f"the training data have 1 concept(s) ({concept.upper()}) of the test set"
    assert find_leak(dataset, train, (), by_name) == find_leak(dataset, known, held, by_name) == expected
    assert find_leak(dataset, known, (), by_name) is None
    leak = find_leak(dataset, train, (), ((image, test[0][1]), *test[1:]))
    assert leak == f"the training data have 1 image(s) ({image.rpartition('/')[2]}) of the test set"
    assert (leak := find_leak(dataset, train, held, test)).startswith("the training data have 2 concept(s) (")
    assert leak.endswith(") of the held-out data") and find_leak(dataset, known, (), test) is None
