"""Unpack zip files from elsewhere: nothing leaves the folder, links nothing, and becomes no more than it says."""

import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from bvsa_core.errors import UserError
from bvsa_core.io.atomic import free_disk, make_folder
from bvsa_core.io.zip_files import open_zip
from bvsa_core.progress import Progress, no_progress

_MAX_MEMBERS = 200_000
_MAX_EXPANSION, _SMALL = 200, 2**26  # bytes of a byte; members below the second may expand as they like
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError, LookupError, struct.error,
)  # fmt: skip


def unpack(archive: Path, folder: Path, progress: Progress = no_progress) -> dict[str, int]:
    """Unpack a zip file into a folder, whole or not at all; a folder that is there must hold the same files.

    A top folder that is called as the archive is left out: sub-01.zip may hold sub-01/ses-01 or ses-01.

    Returns:
        The size in bytes of each file by its path in the folder.

    Raises:
        UserError: the archive is damaged, unsafe, larger than the free disk, or differs from what the folder holds.
    """
    try:
        with open_zip(archive) as opened:
            members = _members(opened, archive)
            sizes = {name: member.file_size for name, member in members.items()}
            if not folder.exists() and sum(sizes.values()) > (free := free_disk(archive.parent)):
                needed = f"{sum(sizes.values()) / 1e9:.1f} GB are inside, and {free / 1e9:.1f} GB of disk are free"
                raise UserError(f"{archive}: {needed}; make room, and the same command continues")
            report = lambda done: progress(f"unpacking {archive.name}", done, len(members))  # noqa: E731
            make_folder(folder, lambda target: _extract(opened, members, target, report))
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(f"{archive}: damaged ({error}); remove it, and the same command fetches it again") from error
    if found := [name for name, size in sizes.items() if not _has_size(folder / name, size)]:
        problem = f"its {found[0]} is not what {archive.name} holds"
        raise UserError(f"{folder}: {problem}; move the folder away, and the same command continues")
    return sizes


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _members(opened: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the files of an archive by their paths in the folder."""
    if len(opened.infolist()) > _MAX_MEMBERS:
        raise UserError(f"{archive}: holds more than {_MAX_MEMBERS} files; do not trust it")
    members: dict[str, zipfile.ZipInfo] = {}
    for member in opened.infolist():
        name, parts = member.filename, PurePosixPath(member.filename).parts
        if ".." in parts or name.startswith("/") or "\\" in name or ":" in name or "\0" in name:
            raise UserError(f"{archive}: {name!r} points outside the archive; do not trust it")
        mode = member.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{archive}: {name!r} is a link or device; do not trust it")
        if member.flag_bits & 1:
            raise UserError(f"{archive}: needs a password; unpack it by hand")
        if member.file_size > max(_SMALL, _MAX_EXPANSION * member.compress_size):
            raise UserError(f"{archive}: {name!r} becomes far larger than it is; do not trust it")
        if member.is_dir() or "__MACOSX" in parts or parts[-1] == ".DS_Store":
            continue
        path = "/".join(parts[1:] if parts[0] == archive.stem and len(parts) > 1 else parts)
        if path in members:
            raise UserError(f"{archive}: holds {path} twice; do not trust it")
        members[path] = member
    if not members:
        raise UserError(f"{archive}: holds no files; fetch it again")
    return members


def _extract(
    opened: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], folder: Path, report: Callable[[int], None]
) -> None:
    for done, (name, member) in enumerate(members.items(), start=1):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(member) as source, open(target, "xb") as file:
            shutil.copyfileobj(source, file, 2**20)
        report(done)
