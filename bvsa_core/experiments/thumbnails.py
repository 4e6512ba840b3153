"""Images for a report: read from the data folders of its runs, and shrunk to JPEG thumbnails."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from bvsa_core.data.dataset import Dataset, concept_of
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress, no_progress
from bvsa_core.report.content import GalleryImage
from bvsa_core.vision.images import read_images

THUMBNAIL = 96  # pixels
THUMBNAILS = 2_000_000  # bytes of all thumbnails of a page, about 600


class ThumbnailCache:
    """The images that a report refers to by index, and thumbnails of those that it shows.

    Args:
        data: data folder of all images; default: the one named by each run.
    """

    def __init__(self, data: Path | None = None):
        self.data = data
        self.unreadable: str | None = None  # error of the first image that could not be read
        self.full = False  # some thumbnails are missing because the others have reached THUMBNAILS
        self._indices: dict[tuple[str, str], int] = {}
        self._requested: set[int] = set()
        self._datasets: dict[str, Dataset] = {}

    def index_of(self, data: str, image: str) -> int:
        """Return the index of an image; an unknown image gets the next one."""
        return self._indices.setdefault((str(self.data or data), image), len(self._indices))

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
        """Return all images by index, with thumbnails of the requested ones."""
        images, size = [], 0
        for (data, image), index in self._indices.items():
            requested = index in self._requested
            self.full |= requested and size >= THUMBNAILS
            pixels = self.read(data, image, THUMBNAIL) if requested and not self.full else None
            thumbnail = None if pixels is None else jpeg(pixels, THUMBNAIL)
            size += len(thumbnail or b"")
            images.append(GalleryImage(image, concept_of(image).replace("_", " "), thumbnail))
            progress("thumbnails", index + 1, len(self._indices))
        return images


def jpeg(image: np.ndarray, side: int, quality: int = 72) -> bytes:
    """Encode an image (height, width, 3) uint8 as a square JPEG file."""
    file = io.BytesIO()
    resized = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
    resized.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()
