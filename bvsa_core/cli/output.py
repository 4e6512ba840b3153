"""What the command prints."""

from typing import TextIO

from bvsa_core.errors import printable


def say(text: str, file: TextIO | None = None) -> None:
    """Print text, which may hold names from files, to a stream; default: standard output."""
    print(printable(text), file=file)
