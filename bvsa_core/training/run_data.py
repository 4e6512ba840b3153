"""The data that many runs share: recordings, images and their features, each loaded once."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bvsa_core.data.dataset import Dataset
from bvsa_core.data.split import Split, load_split
from bvsa_core.distributed.processes import ProcessGroup
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress, no_progress
from bvsa_core.training.config import RunConfig, RunDataConfig
from bvsa_core.vision.bank import FeatureBank
from bvsa_core.vision.clip import Clip, load_clip
from bvsa_core.vision.images import read_images
from bvsa_core.vision.multilevel import Fusion, MultiLevelViews
from bvsa_core.vision.views import BankedViews, Falloff, Level, OnlineViews, Views


def choose_device(name: str) -> torch.device:
    """The device a run goes to.

    Raises:
        UserError: an unknown device, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(
            f"device {name!r} is not there ({torch.cuda.device_count()} GPUs are visible); use --device cpu"
        )
    return device


class RunData:
    """Recordings, images and features, loaded once and shared by runs that use the same data and encoder.

    Args:
        processes: processes that train together, each with materials of its own.

    Raises:
        UserError: data or weights that are missing or damaged.
    """

    def __init__(
        self, config: RunDataConfig, progress: Progress = no_progress, processes: ProcessGroup = ProcessGroup()
    ):
        self.config, self.progress, self.processes = config, progress, processes
        self.device = choose_device(config.device)
        self._split_of_one = functools.cache(self._split)
        self._split_of_several = functools.lru_cache(maxsize=1)(self._split)  # as large as all the others together
        self._sealed = False
        self._bank_of = functools.cache(self._make_bank)
        self._online = functools.cache(self._make_online)

    @functools.cached_property
    def dataset(self) -> Dataset:
        return Dataset(self.config.data)

    @functools.cached_property
    def clip(self) -> Clip:
        clip = load_clip(self.config.vision, self.config.weights, self.config.cache_dir, self.device)
        return clip.with_layers(self.config.target_layers)

    def fusion(self) -> Fusion | None:
        """Learnt weights of multi-level targets, where the configuration asks for them."""
        if not self.config.target_levels and not self.config.target_layers:
            return None
        return Fusion(self.clip.widths(), [Level(*level) for level in self.config.target_levels]).to(self.device)

    @property
    def falloff(self) -> Falloff:
        return Falloff(self.config.decay, self.config.falloff)

    @contextmanager
    def sealed(self) -> Iterator[None]:
        """Inside, nobody can read the test set: what trains and chooses weights must not know it."""
        self._sealed = True
        try:
            yield
        finally:
            self._sealed = False

    def split(self, subjects: str | Sequence[str], split: str, repetitions: int | None = None) -> Split:
        """Recordings of one or several subjects, and of an image the first so many repetitions; those of tests are averaged.

        Raises:
            RuntimeError: the test set is sealed.
        """
        if split == "test" and self._sealed:
            raise RuntimeError("the test set is read before training has ended; only selection 'oracle' may do that")
        subjects = (subjects,) if isinstance(subjects, str) else tuple(subjects)
        return (self._split_of_one if len(subjects) == 1 else self._split_of_several)(subjects, split, repetitions)

    def clear_cache(self) -> None:
        """Make room for other subjects; whoever holds a split keeps it."""
        self._split_of_one.cache_clear()
        self._split_of_several.cache_clear()

    def _split(self, subjects: tuple[str, ...], split: str, repetitions: int | None) -> Split:
        average = self.config.average or split == "test"
        chosen = self.config.channels, self.config.window, average, repetitions
        return load_split(self.dataset, list(subjects), split, *chosen).to(self.device)

    def training_subjects(self, config: RunConfig) -> list[str]:
        """The subjects whose recordings a run trains on.

        Raises:
            UserError: there is nobody else to train on.
        """
        return [config.subject] if config.setting == "intra" else self.dataset.others(config.subject)

    def views(self, images: Sequence[str], levels: Sequence[Level], fusion: Fusion | None = None) -> Views:
        """Features of images, at least at these levels; with a fusion, multi-level ones."""
        if fusion is not None:
            return MultiLevelViews(fusion, self.views(images, levels), self.views(images, fusion.levels or levels))
        if self.config.views == "online":
            return functools.partial(self.processes.map_rows, self._online(tuple(images)))
        bank = self.bank(images)
        bank.fill(levels, self.progress, processes=self.processes)
        return BankedViews(bank.load(levels).to(self.device), levels)

    def texts(self, images: Sequence[str], concepts: Sequence[str]) -> Tensor:
        """Features (images, D) of the prompts that name what images show."""
        return self.bank(images).texts(self.prompts(concepts)).to(self.device)

    def prompts(self, concepts: Sequence[str]) -> list[str]:
        """The texts that name concepts."""
        return [self.config.prompt.format(object=name.replace("_", " ")) for name in concepts]

    def bank(self, images: Sequence[str]) -> FeatureBank:
        """The feature bank of images."""
        return self._bank_of(tuple(images))

    def _make_bank(self, images: tuple[str, ...]) -> FeatureBank:
        return self.bank_for_paths([self.dataset.image_path(image) for image in images])

    def bank_for_paths(self, paths: Sequence[Path]) -> FeatureBank:
        """The feature bank of images that need not be the data set's."""
        return FeatureBank(self.config.bank or self.config.data / "Image_feature", self.clip, paths, self.falloff)

    def _make_online(self, names: tuple[str, ...]) -> OnlineViews:
        paths = [self.dataset.image_path(image) for image in names]
        images = read_images(paths, self.clip.image_size, self.progress)
        return OnlineViews(self.clip, images, self.falloff)
