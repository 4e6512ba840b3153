"""Subjects and images of samples, and concepts held out for validation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bvsa_core.data.dataset import Dataset, RecordingAxes, Recordings
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


def test_a_concept_spelt_in_two_ways_is_held_out_whole():
    split = make(concepts=4, images=2, repetitions=1)
    split.concepts[:] = ["ice_cream", "cat", "Ice cream", "dog", "ICE_CREAM", "owl", "fox", "bee"]
    for seed in range(20):
        train, held = hold_out(split, 1, seed)
        assert len({sample in held.image_of.tolist() for sample in (0, 2, 4)}) == 1 and len(train) + len(held) == 8


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


def recorded(images: list[str], channels: list[str], times: np.ndarray, **changes) -> Recordings:
    """Return recordings whose every sample is the number of its channel, plus a tenth of its condition's."""
    data = np.zeros((len(images), 2, len(channels), len(times)), np.float32)
    data += np.array([int(name.removeprefix("c")) for name in channels])[:, None]
    data += np.arange(len(images))[:, None, None, None] / 10
    return Recordings(
        **{"data": data, "images": images, "concepts": images, "channels": channels, "times": times} | changes
    )


TIMES = np.arange(4) / 250


def test_channels_are_aligned_by_name():
    """Whatever the order in their files, as between subjects, or between training and test."""
    train = recorded(["x", "y"], ["c1", "c2", "c3"], TIMES)
    other = recorded(["x", "y"], ["c3", "c9", "c1", "c2"], TIMES + 1e-5)
    for channels in ("all", ["c1", "c2", "c3"]):
        split = make_split([(Path("a"), train), (Path("b"), other)], ["a", "b"], channels)
        assert split.channels == ["c1", "c2", "c3"] and split.axes == train.axes
        expected = torch.tensor([1.0, 2.0, 3.0]).expand(2, 3)
        torch.testing.assert_close(split.recordings[[0, 2], :, 0], expected)
    test = make_split([(Path("b"), other)], ["b"], "all", axes=train.axes)
    assert test.channels == ["c1", "c2", "c3"] and test.recordings[0, :, 0].tolist() == [1, 2, 3]
    assert split.axes.sampling_rate == 250 and RecordingAxes(("c1",), (0.0, 1.0, 2.0)).sampling_rate is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": ["c1", "c2", "c4"]}, "b: no channel c3; there are c1, c2, c4"),
        ({"channels": ["c1", "c3", "c3"]}, "b: channels named twice: c3; make the file again"),
        ({"times": np.arange(4) / 100}, "b: 4 samples from 0 to 0.03 s, where a has 4 samples from 0 to 0.012 s; cut"),
        ({"times": TIMES + 0.1}, "b: 4 samples from 0.1 to 0.112 s, where a has"),
        ({"times": TIMES[::-1]}, "b: times that do not increase, or are not finite; make the file again"),
        ({"times": np.array([0, np.nan, 2, 3])}, "b: times that do not increase, or are not finite"),
        ({"times": np.arange(5) / 250}, "b: 5 samples from 0 to 0.016 s, where a has"),
        ({"concepts": ["x", "z"]}, "b: the image y shows 'y' and 'z'; give it one concept"),
    ],
)
def test_recordings_that_do_not_fit_together_are_refused(changes, message):
    train = recorded(["x", "y"], ["c1", "c2", "c3"], TIMES)
    other = recorded(["x", "y"], changes.pop("channels", train.channels), changes.pop("times", TIMES), **changes)
    with pytest.raises(UserError, match=message):
        make_split([(Path("a"), train), (Path("b"), other)], ["a", "b"], "all")


def test_conditions_of_the_same_image_are_repetitions_of_it():
    part = recorded(["x", "y", "x", "z"], ["c1"], TIMES, concepts=["x", "y", "x", "z"])
    split = make_split([(Path("a"), part)], ["a"], "all")
    assert split.images == ["x", "y", "z"] and split.image_of.tolist() == [0, 1, 2] and split.repeated == 1
    torch.testing.assert_close(split.recordings[:, 0, 0], torch.tensor([1.1, 1.1, 1.3]))
    assert len(make_split([(Path("a"), part)], ["a"], "all", average=False)) == 8
