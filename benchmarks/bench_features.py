"""From image files to blurred, normalised batches and to features, against the reference code's way.

The reference code uses PIL, OpenCV's blur and torchvision's transforms, image by image, batched by a DataLoader. Images
have the size of THINGS', and the blur levels are BVSA's nine. The peers' batches are first compared with ours: they
round the blur and the blend to 8 bits, ours are not rounded.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from bvsa_core.vision.bank import FeatureBank
from bvsa_core.vision.clip import Clip, load_clip
from bvsa_core.vision.images import read_images
from bvsa_core.vision.shards import IMAGES
from bvsa_core.vision.views import Level, OnlineViews

SUITE = "features"
OURS = "bvsa_core"
SIDE, BATCH = 500, 32
LEVELS = [Level(size, gain) for size in (51, 45, 57) for gain in (0.5, 0.0, 1.0)]
CHECKED = 8  # images whose batches are compared


@dataclass(frozen=True)
class Case:
    """A number of images and levels, made into batches or into the features of an encoder, which we store in a bank."""

    images: int
    encoder: str | None = None
    count: int = len(LEVELS)

    @property
    def levels(self) -> list[Level]:
        return LEVELS[: self.count]

    def __str__(self) -> str:
        encoder = f"features by {self.encoder}" if self.encoder else "without an encoder"
        return f"{self.images} JPEGs of {SIDE} x {SIDE}, {self.count} level{'s' * (self.count > 1)}, {encoder}"


CASES = [Case(8, count=1), Case(64), Case(64, "tiny")]


class Blurred(TorchDataset):
    """Images at blur levels as the reference code makes them; an item is an image at all `levels`, decoded once."""

    def __init__(self, paths: list[Path], levels: list[Level], clip: Clip):
        self.paths, self.levels = paths, levels
        self.resize = transforms.Resize((clip.image_size, clip.image_size))
        self.to_normalised = transforms.Compose([transforms.ToTensor(), transforms.Normalize(clip.mean, clip.std)])
        y, x = np.mgrid[: clip.image_size, : clip.image_size]
        middle = clip.image_size // 2
        distance = np.hypot(y - middle, x - middle) / np.hypot(*[clip.image_size - middle - 1] * 2)
        self.acuity = np.exp(-3 * np.minimum(1, distance))[..., None].astype(np.float32)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = np.array(self.resize(Image.open(self.paths[index]).convert("RGB")))
        return torch.stack([self.to_normalised(self.blur(image, level)) for level in self.levels])

    def blur(self, image: np.ndarray, level: Level) -> np.ndarray:
        weight = level.gain * self.acuity
        blurred = cv2.GaussianBlur(image, (level.kernel_size, level.kernel_size), 0)
        return cv2.convertScaleAbs(weight * image + (1 - weight) * blurred)


def loaders(paths: list[Path], levels: list[Level], clip: Clip) -> list[DataLoader]:
    """Return one loader of all levels. Its workers persist, so that starting them is not timed."""
    options = {"batch_size": max(1, BATCH // len(levels)), "num_workers": torch.get_num_threads()}
    return [DataLoader(Blurred(paths, levels, clip), persistent_workers=True, **options)]


def loaders_of_single_levels(paths: list[Path], levels: list[Level], clip: Clip) -> list[DataLoader]:
    """Return one loader per level: the reference code processes one level at a time."""
    return [loader for level in levels for loader in loaders(paths, [level], clip)]


PEERS = {"DataLoader, a pass a level": loaders_of_single_levels, "DataLoader, one pass": loaders}


def providers_of(case: Case) -> list[str]:
    return [OURS, *list(PEERS)[: case.count]]


def by_loaders(fed: list[DataLoader], clip: Clip, encode: bool) -> Callable[[], object]:
    def run() -> list[Tensor]:
        made = []
        for batch in itertools.chain(*fed):
            seen = batch.flatten(0, 1).to(clip.device)
            made.append(normalize(clip.model.encode_image(seen), dim=-1) if encode else seen[:, 0, 0, 0])
        return made

    return torch.no_grad()(run)


class _Pixels:
    """An encoder that takes no time."""

    def __init__(self, clip: Clip, keep: Callable[[Tensor], Tensor]):
        self.device, self.mean, self.std, self.image_size = clip.device, clip.mean, clip.std, clip.image_size
        self.encode_images = keep


def batches(paths: list[Path], levels: list[Level], clip: Clip, keep: Callable[[Tensor], Tensor]) -> list[list[Tensor]]:
    """Return what `keep` returns for our batches, by level, then by image."""
    made = [[] for _ in levels]
    for start in range(0, len(paths), IMAGES):
        images = read_images(paths[start : start + IMAGES], clip.image_size)
        views = OnlineViews(_Pixels(clip, keep), images)
        for level, kept in zip(levels, made):
            for batch in torch.arange(len(images)).split(BATCH):
                gain, size = (torch.full((len(batch),), value) for value in (level.gain, level.kernel_size))
                kept.append(views(batch, gain, size))
    return made


def by_bank(paths: list[Path], levels: list[Level], clip: Clip, folder: Path) -> Callable[[], object]:
    numbers = itertools.count()
    return lambda: FeatureBank(folder / str(next(numbers)), clip, paths).fill(levels)


@functools.cache
def make_images(count: int) -> tuple[tempfile.TemporaryDirectory, list[Path]]:
    """Write JPEGs of noise of every scale, which take as long to decode as photographs."""
    folder, rng = tempfile.TemporaryDirectory(), np.random.default_rng(0)
    paths = [Path(folder.name, f"{i:04d}.jpg") for i in range(count)]
    for path in paths:
        noise = (rng.normal(0, 40, (side, side, 3)).astype(np.float32) for side in (4, 16, 64, 250))
        scales = [cv2.resize(each, (SIDE, SIDE)) for each in noise]
        Image.fromarray(np.clip(128 + sum(scales) / 2, 0, 255).astype(np.uint8)).save(path, quality=90)
    return folder, paths


@functools.cache
def checked(encoder: str, device: torch.device) -> Clip:
    """Load an encoder and check that all providers make the same batches for it.

    They may differ by one grey level for the blur in 8 bits, and by half of one for the blend.
    """
    clip, paths = load_clip(encoder, device=device), make_images(CHECKED)[1]
    for make in PEERS.values():
        levels = LEVELS if make is loaders else LEVELS[:1]
        ours = torch.stack([torch.cat(level) for level in batches(paths, levels, clip, lambda seen: seen)])
        (loader,) = make(paths, levels, clip)
        expected = torch.cat([batch.transpose(0, 1) for batch in loader], dim=1).to(device)
        grey_level = (1 / 255 / torch.tensor(clip.std, device=device)).view(3, 1, 1)
        assert ((expected - ours).abs() / grey_level).max() < 1.5
    return clip


def least(case: Case, paths: list[Path], clip: Clip) -> tuple[int, int]:
    """Return the bytes read and written, and the multiply-adds of the direct separable blurs and the encoder."""
    pixels = 3 * clip.image_size**2 * case.images
    read = sum(path.stat().st_size for path in paths)
    fma = sum(2 * level.kernel_size for level in case.levels) * pixels
    if case.encoder:
        with FlopCounterMode(display=False) as counter:
            clip.encode_images(torch.zeros(1, 3, clip.image_size, clip.image_size, device=clip.device))
        fma += counter.get_total_flops() // 2 * case.images * case.count
    return read + 4 * pixels * case.count, fma


@pytest.fixture
def no_threads_of_opencv() -> Iterator[None]:
    """Switch OpenCV's threads off: forked workers would wait forever for the threads of their parent."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


@pytest.mark.parametrize(("case", "provider"), [(case, name) for case in CASES for name in providers_of(case)], ids=str)
def bench_features(case, provider, device, limits, time_provider, tmp_path, no_threads_of_opencv):
    _, paths = make_images(case.images)
    clip = checked(case.encoder or "tiny", device)
    if provider != OURS:
        function = by_loaders(PEERS[provider](paths, case.levels, clip), clip, bool(case.encoder))
    elif case.encoder:
        function = by_bank(paths, case.levels, clip, tmp_path)
    else:
        function = lambda: batches(paths, case.levels, clip, lambda seen: seen[:, 0, 0, 0])  # noqa: E731
    limit = limits.seconds(*least(case, paths, clip))
    time_provider(function, suite=SUITE, case=str(case), provider=provider, ours=provider == OURS, limit_s=limit)
