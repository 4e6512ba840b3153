"""Writing so that a file or folder is there whole or not at all, and claims of who writes it."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

CLAIMS = ".claims"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write under a temporary name, which is renamed at the end of the block unless that fails."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")  # unique among the machines of a shared folder too
    try:
        with open(partial, "wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it."""
    with open_atomically(path) as file:
        file.write(content)


@contextmanager
def claim(folder: Path, name: str, leftovers: str, wait: bool = False) -> Iterator[bool]:
    """Claim work on something in a folder among all processes that write there: whether it is ours until the end of the block.

    The system takes a claim back when its owner ends, however it ends; what such an owner left under temporary names is then
    removed. Where the file system (or Windows) has no such locks every claim is granted: work may be done twice, but never wrongly, because
    what is done is renamed into place. A process holds one claim of a folder at a time.

    Args:
        leftovers: pattern of the names that the work writes.
        wait: until nobody else has it.
    """
    byte = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")  # of the file of claims, which stays empty
    with open(folder / CLAIMS, "ab") as claims:
        locked = False
        try:
            if sys.platform != "win32":
                fcntl.lockf(claims, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
                locked = True
        except OSError as error:
            if error.errno in _TAKEN:
                yield False
                return
            if error.errno not in _NO_LOCKS:
                raise
        if locked:
            for partial in folder.glob(f".{leftovers}.*.partial"):
                partial.unlink(missing_ok=True)
        yield True


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Keep other processes that ask for it out of a folder; the lock ends with the process that holds it.

    Raises:
        BlockingIOError: another one is inside, and it is not to be waited for.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def make_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder under a temporary name and rename it, unless it is there already."""
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    partial.rename(target)
