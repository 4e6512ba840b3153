"""What the command prints."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from bvsa_core.errors import printable

if TYPE_CHECKING:
    from bvsa_core.data.dataset import Dataset


def say(text: str, file: TextIO | None = None) -> None:
    """Print text, which may hold names from files, to a stream; default: standard output."""
    print(printable(text), file=file)


def warn_of_toy_encoder(vision: str, dataset: Dataset) -> None:
    """Warn if images that people saw are to be encoded by the encoder for synthetic ones."""
    from bvsa_core.vision.clip import TINY  # imports torch, which the command does later

    if vision == TINY and not dataset.synthetic:
        toy = f"{TINY} is a toy encoder for synthetic images, and {dataset.name} is not synthetic"
        say(f"warning: {toy}; take the published one with --vision RN50", file=sys.stderr)
