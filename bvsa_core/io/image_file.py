"""Reading an image from outside: its bytes are decoded as one of a few formats, none of which starts another program."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

from PIL import Image

from bvsa_core.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
DAMAGE = (  # what Pillow raises
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_image(path: Path) -> Image.Image:
    """An image, decoded.

    Raises:
        UserError: it is missing, damaged, or of another format.
    """
    try:
        content = io.BytesIO(
            path.read_bytes()
        )  # Pillow asks a file for as many bytes as it tells of, and gets no more from these
        with Image.open(content, formats=FORMATS) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise UserError(f"image {path} is missing; copy the image set there") from error
    except DAMAGE as error:
        reason = (
            f"no {', '.join(FORMATS)} file"
            if isinstance(error, Image.UnidentifiedImageError)
            else " ".join(str(error).split())
        )
        raise UserError(f"image {path} cannot be read ({reason}); fetch or make it again") from error
