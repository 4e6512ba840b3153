"""Recordings for training and evaluation: selected channels and times, averaged repetitions, on one device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bvsa_core.data.dataset import Dataset, RecordingAxes, Recordings
from bvsa_core.data.things_eeg import OCCIPITAL_CHANNELS
from bvsa_core.errors import UserError

_TENSORS = ("recordings", "image_of", "subject_of")  # the fields of a split with a row for each sample


@dataclass(frozen=True)
class Split:
    """Samples of one split, of one or several subjects. Sample i is recordings[i], of image images[image_of[i]]."""

    recordings: Tensor  # (samples, channels, time) float32
    image_of: Tensor  # (samples,) int64, into images
    images: list[str]  # distinct, in the order of the file
    concepts: list[str]  # (images,) what each image shows
    channels: list[str]
    repetitions: int  # averaged into one sample; 1 if samples are single trials
    subject_of: Tensor  # (samples,) int64, into subjects
    subjects: list[str]
    modality: str = "EEG"  # or MEG
    times: list[float] = field(default_factory=list)  # (time,) seconds after image onset
    repeated: int = 0  # conditions that were averaged into another of the same image
    source: str | None = None  # of the recordings, see `Recordings`

    @property
    def axes(self) -> RecordingAxes:
        """Channels and times."""
        return RecordingAxes(tuple(self.channels), tuple(self.times))

    def shown(self) -> tuple[tuple[str, str], ...]:
        """Return image and concept of everything that a sample shows."""
        return tuple((self.images[i], self.concepts[i]) for i in self.image_of.unique().tolist())

    def __len__(self) -> int:
        return len(self.recordings)

    def to(self, device: torch.device) -> Split:
        """Move the tensors to a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})

    def take(self, samples: Tensor) -> Split:
        """Select samples, by number or mask; the lists stay as they are."""
        return replace(self, **{name: getattr(self, name)[samples] for name in _TENSORS})

    def subject_indices(self, subjects: list[str]) -> Tensor:
        """Return the index (samples,) int64 of each sample's subject in `subjects`, or -1."""
        index = [subjects.index(name) if name in subjects else -1 for name in self.subjects]
        return torch.tensor(index, device=self.subject_of.device)[self.subject_of]


def fold_concept(concept: str) -> str:
    """Return the form in which equal concepts are equal: case and underscores do not count.

    >>> fold_concept("Ice_cream") == fold_concept("ice cream")
    True
    """
    return " ".join(concept.replace("_", " ").casefold().split())


def hold_out(split: Split, images: int, seed: int) -> tuple[Split, Split]:
    """Split samples into those to train on and those of held-out concepts, drawn until they have `images` images.

    Raises:
        UserError: nothing would be left to train on.
    """
    counts = Counter(split.concepts)
    order = np.random.default_rng(seed).permutation(sorted(counts)).tolist()
    drawn = int(np.searchsorted(np.cumsum([counts[concept] for concept in order]), images)) + 1
    if drawn >= len(order):
        count = len(split.images)
        raise UserError(f"validation is {images}; that leaves none of {count} training images, hold out fewer")
    chosen = set(map(fold_concept, order[:drawn]))
    held = torch.tensor([fold_concept(name) in chosen for name in split.concepts], device=split.image_of.device)[
        split.image_of
    ]
    return split.take(~held), split.take(held)


def load_split(
    dataset: Dataset,
    subjects: list[str],
    split: str,
    channels: str | list[str] = "standard",
    window: tuple[float, float] | None = None,
    average: bool = True,
    repetitions: int | None = None,
    axes: RecordingAxes | None = None,
) -> Split:
    """Load one split.

    Args:
        dataset: the data set.
        subjects: names such as "sub-01"; their samples are concatenated.
        split: train or test.
        channels: "standard" (the 17 occipital and parietal ones of THINGS-EEG, all of MEG), "all", or names.
        window: first and last time to keep, in seconds after image onset; default: all.
        average: average the repetitions of an image into one sample; conditions of the same image are repetitions.
        repetitions: how many of them are taken, from the first; default: all.
        axes: channels and times that the recordings must have, such as those of training; channels are taken by name.

    Raises:
        UserError: a subject, channel, time or repetition is missing, or recordings do not fit together.
    """
    parts = ((dataset.path(subject, split), dataset.load(subject, split)) for subject in subjects)  # one at a time
    return make_split(parts, subjects, channels, window, average, repetitions, axes)


def make_split(
    parts: Iterable[tuple[Path, Recordings]],
    subjects: list[str],
    channels: str | list[str] = "standard",
    window: tuple[float, float] | None = None,
    average: bool = True,
    repetitions: int | None = None,
    axes: RecordingAxes | None = None,
) -> Split:
    """Make a split from the paths (for messages) and contents of recordings files, one a subject; see load_split."""
    samples, image_of, subject_of, sources = [], [], [], []
    index_of: dict[str, int] = {}
    concept_of: dict[str, str] = {}
    origin, owner, repeated = "the run was trained on", -1, 0
    for owner, (path, part) in enumerate(parts):
        if problem := part.axes.problem():
            raise UserError(f"{path}: {problem}")
        kept = _channel_indices(part, channels if axes is None else list(axes.channels), path)
        inside = _time_slice(part, window, path)
        own = RecordingAxes(tuple(part.channels[i] for i in kept), part.axes.times[inside])
        if axes is None:
            axes, origin = own, f"{path} has"
        elif not axes.same_times(own):
            raise UserError(f"{path}: {own}, where {origin} {axes}; cut and resample all alike")
        trials = part.data[:, :repetitions, kept][..., inside]
        taken = trials.shape[1]
        if repetitions is not None and taken < repetitions:
            raise UserError(f"{path}: an image is shown {taken} times, not {repetitions}; ask for fewer repetitions")
        for image, concept in zip(part.images, part.concepts):
            if concept_of.setdefault(image, concept) != concept:
                both = f"{concept_of[image]!r} and {concept!r}"
                raise UserError(f"{path}: the image {image} shows {both}; give it one concept")
        index = np.array([index_of.setdefault(image, len(index_of)) for image in part.images])
        if average:
            means, index = _merge_repeated(trials.mean(1, np.float32), index)
            repeated += len(trials) - len(index)
        else:
            means, index = np.concatenate(trials, dtype=np.float32), np.repeat(index, taken)
        sources.append(part.source)
        samples.append(means)
        image_of.append(index)
        subject_of.append(np.full(len(index), owner))
    assert axes is not None  # there is at least one part
    recordings, image_index, owners = (
        torch.from_numpy(np.concatenate(each)) for each in (samples, image_of, subject_of)
    )
    return Split(
        recordings,
        image_index,
        images=list(index_of),
        concepts=[concept_of[image] for image in index_of],
        channels=list(axes.channels),
        repetitions=taken if average else 1,
        subject_of=owners,
        subjects=subjects,
        modality=part.modality,
        times=list(axes.times),
        repeated=repeated,
        source=" and ".join(dict.fromkeys(filter(None, sources))) or None,
    )


def _merge_repeated(means: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average conditions (conditions, channels, time) of the same image; return them with the index of each image."""
    _, first, group = np.unique(index, return_index=True, return_inverse=True)
    if len(first) == len(index):
        return means, index
    sums = np.zeros((len(first), *means.shape[1:]), np.float32)
    np.add.at(sums, group, means)
    order = np.argsort(first)
    return (sums / np.bincount(group)[:, None, None].astype(np.float32))[order], index[first[order]]


def _channel_indices(part: Recordings, channels: str | list[str], path: object) -> list[int]:
    if channels == "all" or (channels == "standard" and part.modality == "MEG"):
        return list(range(len(part.channels)))
    if isinstance(channels, str):
        channels = list(OCCIPITAL_CHANNELS) if channels == "standard" else [channels]
    missing = [name for name in channels if name not in part.channels]
    if missing:
        raise UserError(f"{path}: no channel {', '.join(missing)}; there are {', '.join(part.channels)}")
    return [part.channels.index(name) for name in channels]


def _time_slice(part: Recordings, window: tuple[float, float] | None, path: object) -> slice:
    if window is None:
        return slice(None)
    tolerance = 1e-6
    inside = np.flatnonzero((part.times >= window[0] - tolerance) & (part.times <= window[1] + tolerance))
    if not len(inside):
        times = f"times run {part.times[0]:g} to {part.times[-1]:g}"
        raise UserError(f"{path}: no sample between {window[0]} and {window[1]} s; {times}")
    return slice(int(inside[0]), int(inside[-1]) + 1)
