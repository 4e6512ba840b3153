"""List the images in a zip file from elsewhere; nothing is unpacked to the paths in it."""

import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bvsa_core.errors import UserError
from bvsa_core.io.zip_files import open_zip

SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ArchivedImage:
    """An image in a zip file."""

    info: zipfile.ZipInfo
    parts: tuple[str, ...]  # of its path
    problem: str | None  # why it must not be read


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip file, or raise a UserError."""
    try:
        return open_zip(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: damaged or cut off ({error}); fetch it again") from error


def archived_images(archive: zipfile.ZipFile) -> Iterator[ArchivedImage]:
    """Yield the images in a zip file.

    Raises:
        UserError: they are password-protected, or in zip files inside it.
    """
    path, inner, count = Path(archive.filename or ""), [], 0
    for info in archive.infolist():
        name = info.filename
        parts = PurePosixPath(name).parts
        if ".." in parts or name.startswith("/") or "\\" in name or ":" in name:
            problem = "points outside the archive; it was not read. Do not trust this file"
            yield ArchivedImage(info, parts, f"{name!r} {problem}")
            continue
        if not parts or any(map(hidden, parts)):
            continue
        suffix = PurePosixPath(name).suffix.lower()
        inner += [name] if suffix == ".zip" else []
        if suffix not in SUFFIXES:
            continue
        if info.flag_bits & 1:
            remedy = "unpack it with the password that THINGS gives, then give the folder"
            raise UserError(f"{path}: password-protected; {remedy}")
        link = stat.S_ISLNK(info.external_attr >> 16)
        count += 1
        yield ArchivedImage(info, parts, f"{name!r} is a link; it was not read" if link else None)
    if inner and not count:
        raise UserError(f"{path}: holds zip files ({inner[0]}) and no images; unpack it, then give the folder")


def read_image(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Return the bytes of an image, never more than its header says; `read` would decompress all at once."""
    with archive.open(info) as stream:
        return stream.read(info.file_size)


def hidden(name: str) -> bool:
    """Return whether a part of a path is hidden, or of macOS."""
    return name.startswith(".") or name == "__MACOSX"
