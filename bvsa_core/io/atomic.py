"""Files and folders that are written whole or not at all, and the lock of a folder.

Nothing is written, locked or deleted through a symbolic link that lies in a folder of ours, which may come from
elsewhere. Ours, because no library that torch brings writes atomically; locks are filelock's.
"""

import errno
import os
import shutil
import socket
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from bvsa_core.errors import UserError

LOCK = ".lock"
PARTIAL = ".partial"
NO_LOCK = "BVSA_NO_LOCK"  # environment variable of --no_lock, which worker processes inherit
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def refuse_links(path: Path, below: Path | None = None, remedy: str = "remove it, or choose another folder") -> None:
    """Refuse a name of ours that is a symbolic link, pipe or device, or is reached through a link.

    Args:
        path: file or folder that is to be written, locked or filled; it may be missing.
        below: folder that the user gave, which may be or lie behind a link; default: the folder of `path`.
        remedy: what the user can do.

    Raises:
        UserError: `path`, or a folder between it and `below`, is neither a regular file nor a folder.
    """
    for each in (path, *path.parents):
        if each == (below or path.parent):
            return
        try:
            mode = each.lstat().st_mode
        except OSError:  # is missing, or is reported by whoever opens it
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
            raise UserError(f"{each}: is {kind}, which is not written to; {remedy}")


def free_disk(path: Path) -> int:
    """Return the bytes that are free where a file or folder is, or will be made."""
    place = path.absolute()
    return shutil.disk_usage(next(each for each in (place, *place.parents) if each.is_dir())).free


def remove(path: Path) -> None:
    """Delete a file, a folder with its content, or a link without what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _no_follow(path: str | Path, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file under a temporary name, which is renamed at the end of the block unless the block fails.

    Raises:
        UserError: the disk is full, the folder cannot be written to, or the file is a link. It stays as it was.
    """
    refuse_links(path)
    partial = temporary_path(path)
    with os_errors_to_user_errors(path):
        try:
            with open(partial, "xb") as file:
                yield file
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file by `open_atomically`."""
    with open_atomically(path) as file:
        file.write(content)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file; a failure may leave part of it there."""
    refuse_links(path)
    with os_errors_to_user_errors(path), open(path, "ab", opener=_no_follow) as file:
        file.write(line.encode() + b"\n")


def make_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder under a temporary name and rename it, unless it exists."""
    if target.exists():
        return
    refuse_links(target)
    partial = temporary_path(target)
    with os_errors_to_user_errors(target):
        try:
            partial.mkdir(parents=True)
            fill(partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def temporary_path(path: Path) -> Path:
    """Return a temporary name for a file or folder, unique among all machines that share the folder."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")


@contextmanager
def os_errors_to_user_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system into UserErrors that name the path."""
    try:
        yield
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise UserError(f"{path}: {problem}; make room, or choose another folder") from error


class Locked(UserError):
    """Another process holds the lock of a folder."""


@contextmanager
def lock(folder: Path, name: str | None = None, *, blocking: bool = False, activity: str = "work") -> Iterator[None]:
    """Hold the lock of a folder, or of one name in it, until the end of the block.

    The folder is made if it is missing, and removed again if nothing was written to it. Temporary files of killed
    processes are removed (only the name's, if given). The system releases the lock when the process ends, however it
    ends.

    Args:
        folder: what is written to.
        name: of a file or folder in it, or None for the whole folder.
        blocking: wait for the process that holds the lock.
        activity: what the lock is for, such as "a run"; other processes report it.

    Raises:
        Locked: another process holds the lock.
        UserError: the folder cannot be written to, or its file system has no locks and they are not switched off.
    """
    path = folder / (f".{name}{LOCK}" if name else LOCK)
    refuse_links(path)
    with _existing(folder):
        if os.environ.get(NO_LOCK):
            remove_temporary(folder, name)
            yield
            return
        held = FileLock(path, timeout=-1 if blocking else 0, fallback_to_soft=False)  # a soft lock outlives its process
        with os_errors_to_user_errors(folder):
            try:
                held.acquire()
            except Timeout:
                where = folder / name if name else folder
                owner = path.read_text(errors="replace").strip() if path.exists() else ""
                owner = f"{activity} is going on there ({owner or 'another process'})"
                raise Locked(f"{where}: {owner}; wait for its end, or choose another folder") from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                path.unlink(missing_ok=True)
                problem = f"its file system has no locks ({error.strerror})"
                remedy = f"choose a folder elsewhere, or add --no_lock ({NO_LOCK}=1) if no other process writes there"
                raise UserError(f"{folder}: {problem}; {remedy}") from error
        try:
            with os.fdopen(_no_follow(path, os.O_WRONLY | os.O_TRUNC), "w") as file:
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            remove_temporary(folder, name)
            yield
        finally:
            path.unlink(missing_ok=True)  # before the release, or it could be the next owner's
            held.release()


@contextmanager
def _existing(folder: Path) -> Iterator[None]:
    """Make a folder that is missing, and its parents; those that are still empty at the end are removed again."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    with os_errors_to_user_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # not empty, or removed by another process
            for each in made:
                each.rmdir()


def clean_stale(folder: Path, name: str | None = None, *, activity: str = "work") -> None:
    """Delete what a process that was killed at the very end left in a finished folder, or of one name in it.

    Raises:
        Locked: the process is still running.
    """
    if (folder / f".{name}{LOCK}").exists() if name else any(is_temporary(path) for path in folder.iterdir()):
        with lock(folder, name, activity=activity):
            pass


def is_temporary(path: Path) -> bool:
    """Return whether a path is one of our lock or temporary files."""
    return path.name.startswith(".") and path.name.endswith((LOCK, PARTIAL))


def remove_temporary(folder: Path, name: str | None = None) -> None:
    """Delete temporary files that killed processes left behind, of one name or all. The caller must hold the lock."""
    with os_errors_to_user_errors(folder):
        for partial in folder.glob(f".{name}.*{PARTIAL}" if name else f".*{PARTIAL}"):
            remove(partial)
