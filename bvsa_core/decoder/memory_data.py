"""Recordings in memory with images from anywhere, or with features of images, as the data of a training."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bvsa_core.data.dataset import SYNTHETIC, Dataset, RecordingAxes, Recordings
from bvsa_core.data.leaks import shared_concepts
from bvsa_core.data.split import Split, make_split
from bvsa_core.data.store import sha256_of
from bvsa_core.errors import UserError, first_few
from bvsa_core.methods.base import Method
from bvsa_core.training.config import RunConfig
from bvsa_core.training.run_data import RunData
from bvsa_core.vision.encoder import VisionEncoder
from bvsa_core.vision.layers import OUTPUT
from bvsa_core.vision.loading import load_vision_encoder
from bvsa_core.vision.multilevel import Fusion
from bvsa_core.vision.tuned import TunedVision
from bvsa_core.vision.views import SHARP, BankedViews, Level, Views


@dataclass(frozen=True)
class TrainingSet:
    """What a method was trained on, as far as scoring and a model card need it."""

    dataset: str
    encoder: str  # of the images
    modality: str
    units: str
    subjects: list[str]
    axes: RecordingAxes
    repetitions: int  # averaged into a sample
    samples: int
    concepts: list[str]
    images: list[str]  # SHA-256 of the files or features

    def split(self) -> Split:
        """Return the training split without its samples."""
        none = torch.empty(0, dtype=torch.int64)
        recordings = torch.empty(0, len(self.axes.channels), len(self.axes.times))
        names = list(self.axes.channels), self.repetitions, none, self.subjects
        return Split(recordings, none, [], [], *names, self.modality, list(self.axes.times))

    def leak(self, test: Split, digests: Sequence[str]) -> str | None:
        """Return which concepts and images of a test set were trained on; None if none were."""
        seen = set(self.images)
        images = [name for name, digest in zip(test.images, digests) if digest in seen]
        shared = {"concept(s)": shared_concepts(self.concepts, test.concepts), "image(s)": images}
        parts = [f"{len(names)} {kind} ({first_few(names)})" for kind, names in shared.items() if names]
        return f"the training data have {' and '.join(parts)} of the test set" if parts else None


_load_encoder = functools.lru_cache(maxsize=1)(load_vision_encoder)


class _NamedImages(Dataset):
    """Images by name, in place of the folder of a data set."""

    def __init__(self, name: str, paths: Mapping[str, Path]):
        self._name, self._paths = name, paths

    @property
    def name(self) -> str:
        """Name in tables."""
        return self._name

    def image_path(self, image: str) -> Path:
        """Return the path of an image."""
        return self._paths[image]


class MemoryData(RunData):
    """Data of a training or a test, of which nothing but the features of images is on disk.

    Args:
        config: as of RunData; its bank keeps the features.
        recordings: of every subject.
        images: files of the images that the recordings name.
        seen: what the method was trained on, if this is a test.

    Raises:
        UserError: recordings do not fit together.
    """

    config: RunConfig

    def __init__(
        self,
        config: RunConfig,
        recordings: Mapping[str, Recordings],
        images: Mapping[str, Path],
        seen: TrainingSet | None = None,
    ):
        super().__init__(config)
        self.recordings, self.images, self.seen = recordings, images, seen
        average, repetitions = (True, config.repetitions) if seen else (config.average, None)
        self._chosen = config.channels, config.window, average, repetitions, seen.axes if seen else None

    @functools.cached_property
    def dataset(self) -> Dataset:
        """Name of the data set, and files of its images."""
        names = [part.dataset or "own recordings" for part in self.recordings.values()]
        return _NamedImages(", ".join(dict.fromkeys(names)), self.images)

    @functools.cached_property
    def encoder(self) -> VisionEncoder:
        """The image encoder, kept for the next data."""
        return _load_encoder(self.config.vision, self.config.weights, self.config.cache_dir, self.device)

    @functools.cached_property
    def samples(self) -> Split:
        """The recordings of all subjects."""
        parts = [(Path(name), part) for name, part in self.recordings.items()]
        return make_split(parts, list(self.recordings), *self._chosen).to(self.device)

    def training_subjects(self, config: RunConfig) -> list[str]:
        """Return all subjects."""
        return list(self.recordings)

    def split(
        self,
        subjects: str | Sequence[str],
        split: str,
        repetitions: int | None = None,
        axes: RecordingAxes | None = None,
    ) -> Split:
        """Return the recordings of all subjects."""
        return self.samples

    def test_split(self, config: RunConfig, train: Split, held_out: Split | None) -> tuple[Split, str | None]:
        """Return the test set, and a leak that config.allow_leak allows; while training there are no test data."""
        if self.seen is None:
            return train.take(torch.empty(0, dtype=torch.int64, device=self.device)), None
        leak = self.seen.leak(self.samples, self.digests(self.samples.images))
        if leak and not config.allow_leak:
            remedy = "test on others, say what images show with concepts=, or allow it with allow_leak=True"
            raise UserError(f"images: {leak}; {remedy}, which the protocol says")
        return self.samples, leak

    def digests(self, images: Sequence[str]) -> list[str]:
        """Return the SHA-256 of images."""
        return [sha256_of(self.images[name]) for name in images]

    def training_set(self, samples: int) -> TrainingSet:
        """Describe the recordings; `samples` of them were trained on, and others held out."""
        split, first = self.samples, next(iter(self.recordings.values()))
        about = (
            SYNTHETIC if split.source == SYNTHETIC else self.dataset.name,
            self.encoder_name,
            split.modality,
            first.units,
            split.subjects,
            split.axes,
            split.repetitions,
        )
        return TrainingSet(*about, samples, sorted(set(split.concepts)), sorted(self.digests(split.images)))


class FeatureData(MemoryData):
    """The same with given features in place of images: sharp images and no texts.

    Args:
        features: (M, D) of the images.
        images: rows of the images that the recordings name.
    """

    ENCODER = "given features"

    def __init__(
        self,
        config: RunConfig,
        recordings: Mapping[str, Recordings],
        images: Mapping[str, int],
        features: Tensor,
        seen: TrainingSet | None = None,
    ):
        super().__init__(config, recordings, {}, seen)
        self.rows, self.features = images, features

    @property
    def encoder_name(self) -> str:
        """What tables call the features."""
        return self.ENCODER

    def with_target(self, target: str) -> NoReturn:
        """Refuse another target, which an image encoder has."""
        raise UserError("target is an array of features; select_layer needs an image encoder")

    def _features_of(self, images: Sequence[str]) -> Tensor:
        return self.features[[self.rows[name] for name in images]]

    def fusion(self) -> Fusion | None:
        """Refuse targets of several levels or layers, which an image encoder has."""
        if self.config.target_levels or self.config.target != OUTPUT:
            raise UserError("target is an array of features; target_levels and layers need an image encoder")
        return None

    def tuned_vision(self, config: RunConfig) -> TunedVision:
        """Refuse to train an image encoder."""
        raise UserError("target is an array of features; vision_lora trains an image encoder, such as ViT-B-32")

    def views(
        self,
        images: Sequence[str],
        levels: Sequence[Level],
        method: Method | None = None,
        vision: TunedVision | None = None,
    ) -> Views:
        """Return the features as those of sharp images; other levels are refused."""
        if self.config.learn_blur != "off":
            raise UserError("target is an array of features; learn_blur needs an image encoder, such as RN50")
        if method is not None:
            return super().views(images, levels, method)
        if blurred := [level for level in levels if level.kernel_size != SHARP.kernel_size]:
            problem = f"the method sees images at {len(blurred)} blur level(s)"
            raise UserError(f"target is an array of features, and {problem}; choose vanilla or nice, or an encoder")
        return BankedViews(normalize(self._features_of(images).float(), dim=1)[None].to(self.device), [SHARP])

    def part_widths(self) -> list[int]:
        """Return the width of the features."""
        return [self.features.shape[1]]

    def text_width(self) -> int:
        """Return 0: there are no texts."""
        return 0

    def texts(self, images: Sequence[str], concepts: Sequence[str]) -> Tensor:
        """Return zeros (images, D): methods that read texts are refused before."""
        return torch.zeros(len(images), self.features.shape[1], device=self.device)

    def digests(self, images: Sequence[str]) -> list[str]:
        """Return the SHA-256 of features."""
        rows = self._features_of(images).float().numpy()
        return [hashlib.sha256(row.tobytes()).hexdigest() for row in rows]
