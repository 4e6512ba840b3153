"""Subjects and images of samples, and concepts held out for validation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bvsa_core.data.dataset import Dataset, Recordings
from bvsa_core.data.split import Split, hold_out, load_split, make_split
from bvsa_core.errors import UserError


def make(concepts: int, images: int, repetitions: int) -> Split:
    """Return a split of one subject with `repetitions` samples of every image."""
    count = concepts * images
    image_of = torch.arange(count).repeat_interleave(repetitions)
    names = [f"concept {i // images}" for i in range(count)]
    recordings, images = image_of[:, None, None].float(), [str(i) for i in range(count)]
    return Split(recordings, image_of, images, names, ["Oz"], 1, torch.zeros_like(image_of), ["sub-01"])


@pytest.mark.parametrize(("requested", "held_images"), [(1, 3), (3, 3), (4, 6), (15, 15)])
def test_whole_concepts_are_held_out(requested, held_images, seed):
    split = make(concepts=6, images=3, repetitions=2)
    train, held = hold_out(split, requested, seed)
    assert len(held) == 2 * held_images and len(train) + len(held) == len(split)
    concepts = [{split.concepts[i] for i in part.image_of} for part in (train, held)]
    assert not concepts[0] & concepts[1]
    for part in (train, held):
        assert torch.equal(part.recordings.flatten(), part.image_of.float()) and part.images == split.images
    again, _ = hold_out(split, requested, seed)
    assert torch.equal(again.image_of, train.image_of)
    assert len({tuple(hold_out(split, requested, other)[1].image_of.tolist()) for other in range(20)}) > 1


def test_nothing_left_to_train_on_is_refused():
    with pytest.raises(UserError, match="validation is 16; that leaves none of 18 training images, hold out fewer"):
        hold_out(make(concepts=6, images=3, repetitions=1), 16, 0)


def test_samples_know_their_subject(small_data):
    dataset = Dataset(small_data)
    split = load_split(dataset, ["sub-02", "sub-01"], "test")
    assert split.subjects == ["sub-02", "sub-01"] and split.subject_of.tolist() == [0] * 12 + [1] * 12
    assert split.subject_indices(["sub-01", "sub-09"]).tolist() == [-1] * 12 + [0] * 12
    assert split.take(torch.arange(10, 14)).subject_of.tolist() == [0, 0, 1, 1]
    assert len(load_split(dataset, ["sub-01"], "test", average=False).subject_of) == 72


def test_subjects_with_different_images_share_the_indices_of_common_ones():
    seen = {"sub-01": ["x", "y"], "sub-02": ["z", "y", "x"]}
    channels, times = [str(i) for i in range(271)], np.arange(3) / 200
    data = [np.full((len(images), 2, 271, 3), number, np.float16) for number, images in enumerate(seen.values())]
    recordings = [Recordings(part, seen[name], seen[name], channels, times, "MEG") for name, part in zip(seen, data)]
    split = make_split(list(zip(map(Path, seen), recordings)), list(seen), average=False, repetitions=1)
    assert split.images == split.concepts == ["x", "y", "z"] and split.image_of.tolist() == [0, 1, 2, 1, 0]
    assert split.subject_of.tolist() == [0, 0, 1, 1, 1] and split.recordings[:, 0, 0].tolist() == [0, 0, 1, 1, 1]
    assert split.modality == "MEG" and len(split.channels) == 271  # 'standard' is every sensor
