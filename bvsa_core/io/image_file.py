"""Decode images from outside as one of a few formats, none of which starts another program."""

import io
import struct
import zlib
from pathlib import Path

from PIL import Image

from bvsa_core.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
DECODE_ERRORS = (  # what Pillow raises for damaged images
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, NotImplementedError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def read_image(path: Path) -> Image.Image:
    """Read and decode an image of one of the FORMATS."""
    try:
        content = io.BytesIO(path.read_bytes())  # from a file, Pillow would reserve as many bytes as a chunk claims
        with Image.open(content, formats=FORMATS) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise UserError(f"image {path} is missing; copy the image set there") from error
    except DECODE_ERRORS as error:
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = f"no {', '.join(FORMATS)} file" if unknown else " ".join(str(error).split())
        raise UserError(f"image {path} cannot be read ({reason}); fetch or make it again") from error
