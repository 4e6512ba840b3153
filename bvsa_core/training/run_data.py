"""Recordings, images and features that many runs share, each loaded once."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from bvsa_core.data.dataset import Dataset, RecordingAxes
from bvsa_core.data.leaks import Shown, find_leak
from bvsa_core.data.split import Split, load_split
from bvsa_core.data.stimulus_texts import StimulusTexts, read_texts, stored_texts
from bvsa_core.distributed.processes import ProcessGroup
from bvsa_core.errors import UserError, first_few
from bvsa_core.io.atomic import refuse_links
from bvsa_core.methods.base import Method
from bvsa_core.progress import Progress, no_progress
from bvsa_core.training.config import RunConfig, RunDataConfig
from bvsa_core.vision.bank import FeatureBank
from bvsa_core.vision.encoder import VisionEncoder
from bvsa_core.vision.given_features import GivenFeatures, read_given_features
from bvsa_core.vision.images import read_images
from bvsa_core.vision.layers import LEARNED, OUTPUT, parse_target
from bvsa_core.vision.loading import load_vision_encoder
from bvsa_core.vision.multilevel import Fusion, TargetViews
from bvsa_core.vision.pixels import Pixels
from bvsa_core.vision.tuned import TunedVision
from bvsa_core.vision.views import BankedViews, Falloff, Level, OnlineViews, Views

Data = TypeVar("Data", bound="RunData")


def choose_device(name: str) -> torch.device:
    """Return the device of a run, which must exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        visible = f"{torch.cuda.device_count()} GPUs are visible"
        raise UserError(f"device {name!r} is not there ({visible}); use --device cpu")
    return device


class RunData:
    """Recordings, images and features, loaded once and shared by runs that use the same data and encoder.

    Args:
        config: which data, encoder and blur.
        progress: reports reading and encoding.
        processes: those that train together, each with its own RunData.

    Raises:
        UserError: data or weights are missing or damaged.
    """

    def __init__(
        self, config: RunDataConfig, progress: Progress = no_progress, processes: ProcessGroup = ProcessGroup()
    ):
        self.config, self.progress, self.processes = config, progress, processes
        self.device = choose_device(config.device)
        self._split_of_one = functools.cache(self._split)
        self._split_of_several = functools.lru_cache(maxsize=1)(self._split)  # takes the most memory
        self._sealed = False
        self._bank_of = functools.cache(lambda images: self.bank_for_paths(self._paths(images)))
        self._kept: dict[tuple[str, ...], Pixels] = {}  # of images that views are made of online
        self._leak = functools.lru_cache(maxsize=8)(self._find_leak)

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The data set."""
        return Dataset(self.config.data)

    @functools.cached_property
    def clip(self) -> VisionEncoder:
        """The image encoder, or features that are given in place of one, with the layers of the target."""
        parts = parse_target(self.config.target, lambda: self.encoder.layer_count)
        given = self.config.features is not None and self.config.target == LEARNED
        return self.encoder.with_layers(parts[1:] if given else parts)  # features have no output

    @functools.cached_property
    def encoder(self) -> VisionEncoder:
        """The same, whatever the target."""
        if self.config.features is not None:
            return self._given
        self.progress("image encoder", 0, 1, self.config.vision)
        encoder = load_vision_encoder(self.config.vision, self.config.weights, self.config.cache_dir, self.device)
        self.progress("image encoder", 1, 1, self.config.vision)
        return encoder

    @functools.cached_property
    def _given(self) -> GivenFeatures:
        parts = (self.dataset.load(self.dataset.subjects[0], split).images for split in ("train", "test"))
        train, test = (list(dict.fromkeys(images)) for images in parts)
        return read_given_features(self.config.feature_files(), self.config.features_images, train, test)

    def with_target(self: Data, target: str) -> Data:
        """Return the same data with another target; recordings, images and the image encoder are loaded once."""
        other = copy.copy(self)
        other.config = copy.copy(self.config)
        other.config.target = target
        other.encoder = self.encoder
        for name in ("clip", "_widths"):  # of this target
            other.__dict__.pop(name, None)
        other._bank_of = functools.cache(lambda images: self.bank(images).with_encoder(other.clip))
        return other

    def tuned_vision(self, config: RunConfig) -> TunedVision:
        """Return the image encoder with trainable updates, which a run trains with its method."""
        options = config.vision_lora, config.vision_dropout, config.checkpoint_vision
        return TunedVision(self.clip, *options)

    @property
    def encoder_name(self) -> str:
        """Name of the image encoder and of its layers if they are the target, for tables."""
        return self.clip.name if self.config.target == OUTPUT else f"{self.clip.name} {self.config.target}"

    def fusion(self) -> Fusion | None:
        """Return untrained weights of a target of several levels or layers, if the configuration has one."""
        levels = [Level(*level) for level in self.config.target_levels]
        if self.config.target == OUTPUT and not levels:
            return None
        widths = self.part_widths()
        return Fusion(widths, levels).to(self.device) if levels or len(widths) > 1 else None

    @property
    def falloff(self) -> Falloff:
        """How acuity falls with eccentricity."""
        return Falloff(self.config.decay, self.config.falloff)

    @contextmanager
    def sealed(self) -> Iterator[None]:
        """Forbid reading the test set: training and selection must not know it."""
        before, self._sealed = self._sealed, True
        try:
            yield
        finally:
            self._sealed = before

    def split(
        self,
        subjects: str | Sequence[str],
        split: str,
        repetitions: int | None = None,
        axes: RecordingAxes | None = None,
    ) -> Split:
        """Return the recordings of one or several subjects; repetitions of test images are averaged.

        Args:
            subjects: names.
            split: train or test.
            repetitions: how many of an image are taken, from the first; default: all.
            axes: channels and times that the recordings must have, those of training; default: what the files have.

        Raises:
            RuntimeError: the test set is sealed.
        """
        if split == "test" and self._sealed:
            raise RuntimeError("the test set is read before training has ended; only selection 'oracle' may do that")
        subjects = (subjects,) if isinstance(subjects, str) else tuple(subjects)
        return (self._split_of_one if len(subjects) == 1 else self._split_of_several)(
            subjects, split, repetitions, axes
        )

    def clear_cache(self) -> None:
        """Drop cached recordings, to make room for other subjects."""
        self._split_of_one.cache_clear()
        self._split_of_several.cache_clear()

    def test_split(self, config: RunConfig, train: Split, held_out: Split | None) -> tuple[Split, str | None]:
        """Return the test set of a run, which must fit what it trains on, and a leak that config.allow_leak allows.

        Raises:
            UserError: the test set has other channels or times, or is no test for what is trained on.
        """
        test = self.split(config.subject, "test", config.repetitions, train.axes)
        leak = self._leak(train.shown(), held_out.shown() if held_out else (), test.shown())
        if leak and not config.allow_leak:
            remedy = "take them out, or give --allow_leak true, which every table and page will say"
            raise UserError(f"{self.config.data}: {leak}; {remedy}")
        return test, leak

    def _split(
        self, subjects: tuple[str, ...], split: str, repetitions: int | None, axes: RecordingAxes | None
    ) -> Split:
        average = self.config.average or split == "test"
        chosen = self.config.channels, self.config.window, average, repetitions, axes
        dataset, task, note = self.dataset, f"{split} recordings", first_few(subjects)
        self.progress(task, 0, len(subjects), note)
        loaded = load_split(dataset, list(subjects), split, *chosen).to(self.device)
        self.progress(task, len(subjects), len(subjects), note)
        return loaded

    def training_subjects(self, config: RunConfig) -> list[str]:
        """Return the subjects a run trains on; the setting inter needs others than the tested one."""
        return [config.subject] if config.setting == "intra" else self.dataset.others(config.subject)

    def views(
        self,
        images: Sequence[str],
        levels: Sequence[Level],
        method: Method | None = None,
        vision: TunedVision | None = None,
    ) -> Views:
        """Return the features of images, at least at these levels.

        Args:
            method: gives its targets of the features, with the image encoder that it trains.
            vision: the image encoder that a method trains; default: the frozen one.
        """
        if method is not None:
            if method.fusion is None and method.image_map is None:
                return self.views(images, levels, vision=method.vision)
            fixed = method.fusion.levels if method.fusion is not None else []
            parts = (self.views(images, each, vision=method.vision) for each in (levels, fixed or levels))
            return TargetViews(method.image_targets, fixed, *parts)
        if vision is not None:
            return self.processes.shard_rows(self._online(images, vision.encoder), vision, self.device)
        if isinstance(self.clip, GivenFeatures):
            return self.clip.views(images, levels, self.device)
        if self.config.views == "online":
            return functools.partial(self.processes.map_rows, self._online(images, self.clip))
        bank = self.bank(images)
        bank.fill(levels, self.progress, processes=self.processes)
        return BankedViews(bank.load(levels).to(self.device), levels, self.part_widths())

    def part_widths(self) -> list[int]:
        """Return the widths of the parts of the features of images; loads the image encoder, and writes nothing."""
        return self._widths

    @functools.cached_property
    def _widths(self) -> list[int]:
        return self.clip.widths()

    def part_layers(self) -> tuple[int, ...]:
        """Return the layer of every part of the features of images; the output comes after the last layer."""
        if len(self.part_widths()) == 1:
            return (0,)  # also of an encoder whose layers are not known
        numbers = (part.partition(".")[0] for part in self.clip.layers)
        return tuple(self.clip.layer_count if number == OUTPUT else int(number) for number in numbers)

    def check_texts(self) -> None:
        """Check that there are features of texts, for a method that reads them.

        Raises:
            UserError: the image encoder has no text encoder.
        """
        if not self.clip.has_texts:
            remedy = "choose a method that reads none, such as vanilla or ubp, or an encoder with texts, such as RN50"
            raise UserError(f"the method reads texts, and {self.clip.name} has no text encoder; {remedy}")

    def text_width(self) -> int:
        """Return the width of the features of texts, 0 if there are none; loads the encoder, and writes nothing."""
        return self.clip.encode_texts([self.config.prompt]).shape[1] if self.clip.has_texts else 0

    def texts(self, images: Sequence[str], concepts: Sequence[str]) -> Tensor:
        """Return features (images, D) of the texts that name what images show; zeros of an encoder without texts."""
        if not self.clip.has_texts:
            return torch.zeros(len(images), self.text_width(), device=self.device)
        prompts = self.prompts(images, concepts)  # which may be missing: before the bank makes its folder
        return self.bank(images).texts(prompts).to(self.device)

    @functools.cached_property
    def stimulus_texts(self) -> StimulusTexts | None:
        """Captions or words: those of the configuration, else of the data folder; None if prompts name concepts."""
        return read_texts(self.config.texts, self.config.concepts) or stored_texts(self.config.data)

    def prompts(self, images: Sequence[str], concepts: Sequence[str]) -> list[str]:
        """Return the texts of images: captions, or prompts with words or names of concepts."""
        given, text = self.stimulus_texts, self.config.prompt
        if given and given.captions:
            return given.captions_of(images, concepts)
        if given:
            concepts = [word.replace(" ", "_") for word in given.words_of(concepts)]
        return [text.replace("{object}", name.replace("_", " ")).replace("{concept}", name) for name in concepts]

    def bank(self, images: Sequence[str], vision: TunedVision | None = None) -> FeatureBank:
        """Return the feature bank of the data set's images; see `views`."""
        return self._bank_of(tuple(images)) if vision is None else self.bank_for_paths(self._paths(images), vision)

    def bank_for_paths(self, paths: Sequence[Path], vision: TunedVision | None = None) -> FeatureBank:
        """Return the feature bank of any images; see `views`.

        Raises:
            UserError: features are given, which are of the images of the data set only.
        """
        if self.config.features is not None:
            raise UserError(
                f"{self.clip.name} are of the data set's own images; train with an image encoder for others"
            )
        bank = self.config.bank or self.config.data / "Image_feature"
        if not self.config.bank:
            refuse_links(bank, remedy="name the folder of features with --bank")
        return FeatureBank(bank, self.clip if vision is None else vision.fingerprinted(), paths, self.falloff)

    def _find_leak(self, *shown: Shown) -> str | None:
        given = self.encoder if self.config.features is not None else None  # a layer may not be chosen yet
        train, held_out, test = shown
        shared = given.shared if isinstance(given, GivenFeatures) else None
        return find_leak(self.dataset, train, held_out, test, shared)

    def _paths(self, images: Sequence[str]) -> list[Path]:
        return [self.dataset.image_path(image) for image in images]

    def _online(self, images: Sequence[str], encoder: VisionEncoder) -> OnlineViews:
        names = tuple(images)
        if names not in self._kept:
            pixels = read_images(self._paths(names), self.clip.image_size, self.progress)
            self._kept[names] = Pixels(pixels, self.device)
        return OnlineViews(encoder, self._kept[names], self.falloff, chunk=self.config.chunk)

    def prefetch(self, images: Sequence[str]) -> Callable[[Tensor], None] | None:
        """Return what copies a batch of images (B,), numbers on the CPU, ahead of it; None if there is nothing to copy.

        Only images that online views were asked for, and that are not all on the device, are copied.
        """
        pixels = self._kept.get(tuple(images))
        if pixels is None or pixels.resident:
            return None
        return lambda indices: pixels.prefetch(indices[self.processes.rows(len(indices))[1]])
