"""Images from disk, as uint8 tensors of one size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bvsa_core.errors import UserError
from bvsa_core.io.image_file import read_image
from bvsa_core.progress import Progress, no_progress

RESIZING = Image.Resampling.BILINEAR


def read_images(paths: Sequence[Path], size: int, progress: Progress = no_progress) -> Tensor:
    """Decode images to (N, 3, size, size) uint8; others are resized, as UBP does, to size x size.

    Raises:
        UserError: naming the image that is missing or damaged.
    """
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

    def read_into(index: int) -> None:
        images[index] = torch.from_numpy(_read(paths[index], size)).permute(2, 0, 1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(read_into, range(len(paths))), start=1):
            progress("images", done, len(paths))
    return images


def _read(path: Path, size: int) -> np.ndarray:
    image = read_image(path).convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), RESIZING)
    return np.array(image)


def hash_files(paths: Sequence[Path]) -> str:
    """SHA-256 over the contents of files, in order.

    Raises:
        UserError: naming the file that is missing.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise UserError(
                f"image {path} is missing or unreadable ({error.strerror}); copy the image set there"
            ) from error
    return digest.hexdigest()
