"""Recordings as training and evaluation take them: chosen channels and times, repetitions averaged, on one device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bvsa_core.data.dataset import Dataset, Recordings
from bvsa_core.data.things_eeg import OCCIPITAL_CHANNELS
from bvsa_core.errors import UserError


@dataclass(frozen=True)
class Split:
    """Samples of one split, of one or several subjects. Sample i is recordings[i], of image images[image_of[i]]."""

    recordings: Tensor  # (samples, channels, time) float32
    image_of: Tensor  # (samples,) int64, into images
    images: list[str]  # distinct images, in the order of the file
    concepts: list[str]  # (images,) what each image shows
    channels: list[str]
    repetitions: int  # averaged into one sample; 1 where single trials are samples
    subject_of: Tensor  # (samples,) int64, into subjects
    subjects: list[str]
    modality: str = "EEG"  # or MEG

    def __len__(self) -> int:
        return len(self.recordings)

    def to(self, device: torch.device) -> Split:
        moved = {name: getattr(self, name).to(device) for name in ("recordings", "image_of", "subject_of")}
        return replace(self, **moved)

    def take(self, samples: Tensor) -> Split:
        """Some of the samples, by number or mask; the lists stay as they are."""
        return replace(
            self, **{name: getattr(self, name)[samples] for name in ("recordings", "image_of", "subject_of")}
        )

    def subject_indices(self, subjects: list[str]) -> Tensor:
        """(samples,) int64: whose each sample is, as a number in another list of subjects; -1 for one that is not in it."""
        number = [subjects.index(name) if name in subjects else -1 for name in self.subjects]
        return torch.tensor(number, device=self.subject_of.device)[self.subject_of]


def hold_out(split: Split, images: int, seed: int) -> tuple[Split, Split]:
    """Samples to train on, and samples held out: those of whole concepts, drawn until they have that many images.

    Raises:
        UserError: nothing would be left to train on.
    """
    counts = Counter(split.concepts)
    order = np.random.default_rng(seed).permutation(sorted(counts)).tolist()
    drawn = int(np.searchsorted(np.cumsum([counts[concept] for concept in order]), images)) + 1
    if drawn >= len(order):
        raise UserError(
            f"validation is {images}; that leaves none of {len(split.images)} training images, hold out fewer"
        )
    chosen = set(order[:drawn])
    held = torch.tensor([concept in chosen for concept in split.concepts], device=split.image_of.device)[split.image_of]
    return split.take(~held), split.take(held)


def load_split(
    dataset: Dataset,
    subjects: list[str],
    split: str,
    channels: str | list[str] = "standard",
    window: tuple[float, float] | None = None,
    average: bool = True,
    repetitions: int | None = None,
) -> Split:
    """Load one split.

    Args:
        subjects: names such as "sub-01"; samples of several are put one after another.
        channels: "standard" (the 17 occipital and parietal ones of THINGS-EEG; of MEG all), "all", or names.
        window: first and last time to keep, in seconds after the image appears; None keeps all.
        average: whether the repetitions of an image are averaged into one sample.
        repetitions: how many of them are taken, from the first; None takes all.

    Raises:
        UserError: a subject, channel, time or repetition that is not there, or subjects that do not fit together.
    """
    parts = (
        (dataset.path(subject, split), dataset.load(subject, split)) for subject in subjects
    )  # one in memory at a time
    return make_split(parts, list(subjects), channels, window, average, repetitions)


def make_split(
    parts: Iterable[tuple[Path, Recordings]],
    subjects: list[str],
    channels: str | list[str] = "standard",
    window: tuple[float, float] | None = None,
    average: bool = True,
    repetitions: int | None = None,
) -> Split:
    """A split from the contents of recordings files, the paths they are called by, and whose they are; see load_split."""
    samples, images_of, paths = [], [], []
    subject_of: list[np.ndarray] = []
    number: dict[str, int] = {}
    concept: dict[str, str] = {}
    for path, part in parts:
        chosen = part.data[:, :repetitions, _channel_indices(part, channels, path)][
            ..., _time_slice(part, window, path)
        ]
        conditions, taken = chosen.shape[:2]
        if repetitions is not None and taken < repetitions:
            raise UserError(f"{path}: an image is shown {taken} times, not {repetitions}; ask for fewer repetitions")
        index = np.array([number.setdefault(image, len(number)) for image in part.images])
        concept |= zip(part.images, part.concepts)
        if average:
            samples.append(chosen.mean(axis=1, dtype=np.float32))
        else:
            samples.append(chosen.reshape(conditions * taken, *chosen.shape[2:]).astype(np.float32))
            index = np.repeat(index, taken)
        images_of.append(index)
        subject_of.append(np.full(len(index), len(subject_of)))
        paths.append(path)
        if samples[-1].shape[1:] != samples[0].shape[1:]:
            raise UserError(
                f"{path}: recordings are {samples[-1].shape[1:]} and those of {paths[0]} {samples[0].shape[1:]}"
            )
    return Split(
        recordings=torch.from_numpy(np.concatenate(samples)),
        image_of=torch.from_numpy(np.concatenate(images_of)),
        images=list(number),
        concepts=[concept[image] for image in number],
        channels=[part.channels[i] for i in _channel_indices(part, channels, path)],
        repetitions=taken if average else 1,
        subject_of=torch.from_numpy(np.concatenate(subject_of)),
        subjects=list(subjects),
        modality=part.modality,
    )


def _channel_indices(part: Recordings, channels: str | list[str], path: object) -> list[int]:
    if channels == "all" or (channels == "standard" and part.modality == "MEG"):
        return list(range(len(part.channels)))
    wanted = (
        list(OCCIPITAL_CHANNELS) if channels == "standard" else [channels] if isinstance(channels, str) else channels
    )
    missing = [name for name in wanted if name not in part.channels]
    if missing:
        raise UserError(f"{path}: no channel {', '.join(missing)}; there are {', '.join(part.channels)}")
    return [part.channels.index(name) for name in wanted]


def _time_slice(part: Recordings, window: tuple[float, float] | None, path: object) -> slice:
    if window is None:
        return slice(None)
    tolerance = 1e-6
    inside = np.flatnonzero((part.times >= window[0] - tolerance) & (part.times <= window[1] + tolerance))
    if not len(inside):
        raise UserError(
            f"{path}: no sample between {window[0]} and {window[1]} s; times run {part.times[0]:g} to {part.times[-1]:g}"
        )
    return slice(int(inside[0]), int(inside[-1]) + 1)
