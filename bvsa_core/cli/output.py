"""What the command prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from bvsa_core.errors import printable
from bvsa_core.io.atomic import os_errors_to_user_errors, write_atomically

if TYPE_CHECKING:
    from bvsa_core.data.dataset import Dataset
    from bvsa_core.training.config import RunDataConfig


def say(text: str, file: TextIO | None = None) -> None:
    """Print text, which may hold names from files, to a stream; default: standard output."""
    print(printable(text), file=file)


def write_file(path: Path, content: bytes) -> None:
    """Write a file that the user named, and the folders above it."""
    with os_errors_to_user_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def warn_of_toy_encoder(config: RunDataConfig, dataset: Dataset) -> None:
    """Warn if images that people saw are to be encoded by the encoder for synthetic ones."""
    from bvsa_core.vision.clip import TINY  # imports torch, which the command does later

    if config.vision == TINY and config.features is None and not dataset.synthetic:
        toy = f"{TINY} is a toy encoder for synthetic images, and {dataset.name} is not synthetic"
        say(f"warning: {toy}; take the published one with --vision RN50", file=sys.stderr)
