"""Images for a report: read from the data folders of its runs, and shrunk to JPEG thumbnails."""

import io
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import fovblur
from bvsa_core.data.dataset import Dataset, concept_of
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress, no_progress
from bvsa_core.report.content import GalleryImage
from bvsa_core.vision.images import read_images
from bvsa_core.vision.views import Falloff, Level

THUMBNAIL = 96  # pixels
THUMBNAILS = 2_000_000  # bytes of all thumbnails of a page, about 600


class Blur(NamedTuple):
    """How a run blurs images."""

    level: Level
    falloff: Falloff
    image_size: int  # pixels, of the image encoder

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Blur images (N, side, side, 3) uint8."""
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)
        (size, gain, sigma), (decay, curve) = self.level, astuple(self.falloff)
        blurred = fovblur.foveated_blur(batch, sigma, kernel_size=size, gain=gain, decay=decay, falloff=curve)
        return blurred.permute(0, 2, 3, 1).numpy()


class ThumbnailCache:
    """The images that a report refers to by index, and thumbnails of those that it shows.

    Args:
        data: data folder of all images; default: the one named by each run.
    """

    def __init__(self, data: Path | None = None):
        self.data = data
        self.unreadable: str | None = None  # error of the first image that could not be read
        self.full = False  # some thumbnails are missing because the others have reached THUMBNAILS
        self._indices: dict[tuple[str, str, Blur | None], int] = {}
        self._requested: set[int] = set()
        self._datasets: dict[str, Dataset] = {}

    def index_of(self, data: str, image: str, blur: Blur | None = None) -> int:
        """Return the index of an image, sharp or blurred; an unknown image gets the next one."""
        return self._indices.setdefault((str(self.data or data), image, blur), len(self._indices))

    def request(self, indices: Iterable[int]) -> None:
        """Ask for thumbnails of these images."""
        self._requested.update(indices)

    def read(self, data: str, image: str, size: int) -> np.ndarray | None:
        """Read an image (size, size, 3) uint8; None if it cannot be read."""
        data = str(self.data or data)
        try:
            if data not in self._datasets:
                self._datasets[data] = Dataset(data)
            return read_images([self._datasets[data].image_path(image)], size)[0].permute(1, 2, 0).numpy()
        except UserError as error:
            self.unreadable = self.unreadable or str(error)
            return None

    def images(self, progress: Progress = no_progress) -> list[GalleryImage]:
        """Return all images by index, with thumbnails of the requested ones; sharp images go first if not all fit."""
        images: dict[int, GalleryImage] = {}
        size = 0
        for (data, image, blur), index in sorted(self._indices.items(), key=lambda item: item[0][2] is not None):
            pixels = None
            if index in self._requested:
                self.full |= size >= THUMBNAILS
                pixels = None if self.full else self.read(data, image, blur.image_size if blur else THUMBNAIL)
            if pixels is not None and blur is not None:
                pixels = blur.apply(pixels[None])[0]
            thumbnail = None if pixels is None else jpeg(pixels, THUMBNAIL)
            size += len(thumbnail or b"")
            images[index] = GalleryImage(image, concept_of(image).replace("_", " "), thumbnail)
            progress("thumbnails", len(images), len(self._indices))
        return [images[index] for index in range(len(images))]


def jpeg(image: np.ndarray, side: int, quality: int = 72) -> bytes:
    """Encode an image (height, width, 3) uint8 as a square JPEG file."""
    file = io.BytesIO()
    resized = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
    resized.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()
