"""Decode images from outside to RGB, as one of a few formats, none of which starts another program."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from bvsa_core.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
DECODE_ERRORS = (  # what Pillow raises for damaged images
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, NotImplementedError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def read_image(path: Path) -> Image.Image:
    """Read an image of one of the FORMATS as RGB."""
    if path.exists() and not path.is_file():  # reading a pipe or device might not end
        raise UserError(f"image {path} is no regular file; remove it")
    try:
        content = io.BytesIO(path.read_bytes())  # from a file, Pillow would reserve as many bytes as a chunk claims
        with Image.open(content, formats=FORMATS) as image:
            image.load()
            return to_rgb(image)
    except FileNotFoundError as error:
        raise UserError(f"image {path} is missing; copy the image set there") from error
    except DECODE_ERRORS as error:
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = f"no {', '.join(FORMATS)} file" if unknown else " ".join(str(error).split())
        raise UserError(f"image {path} cannot be read ({reason}); fetch or make it again") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image with 8 bits a channel; 16 bits are scaled by their range, which Pillow would clip.

    Raises:
        ValueError: the pixels are floats or 32-bit numbers, whose range is unknown.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # PNG has no 32 bits
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "floats" if image.mode == "F" else "32-bit numbers"
        raise ValueError(f"its pixels are {kind}, whose range is unknown; save it with 8 or 16 bits")
    return image.convert("RGB")
