"""Read images as uint8 tensors of one size."""

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
    """Decode images to (N, 3, size, size) uint8; other sizes are resized to size x size, as in UBP."""
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

    def read_into(index: int) -> None:
        image = read_image(paths[index])
        image = image if image.size == (size, size) else image.resize((size, size), RESIZING)
        images[index] = torch.from_numpy(np.array(image)).permute(2, 0, 1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(read_into, range(len(paths))), start=1):
            progress("images", done, len(paths))
    return images


def hash_files(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of the contents of files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            reason = f"is missing or unreadable ({error.strerror})"
            raise UserError(f"image {path} {reason}; copy the image set there") from error
    return digest.hexdigest()
