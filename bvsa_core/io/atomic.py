"""Writing so that a file or folder is there whole or not at all, and who may write there.

A process has a folder to itself (`claim`), keeps others out for a moment (`locked`), or claims one thing of a folder in which
many work at once (`claim_work`). The system ends all three with the process, however it ends.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bvsa_core.errors import UserError

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"  # in a folder that a process has claimed; the kernel lets go of it when the process dies
PARTIAL = ".partial"
CLAIMS = ".claims"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write under a temporary name, which is renamed at the end of the block unless that fails.

    Raises:
        UserError: the disk is full, or the folder cannot be written to. A file that was there stays as it was.
    """
    partial = temporary_path(path)
    with os_errors_to_user_errors(path):
        try:
            with open(partial, "wb") as file:
                yield file
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it; raises what `open_atomically` does."""
    with open_atomically(path) as file:
        file.write(content)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; a failure may leave a part of it at the end.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    with os_errors_to_user_errors(path), open(path, "ab") as file:
        file.write(line.encode() + b"\n")


def make_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder under a temporary name and rename it, unless it is there already.

    Raises:
        UserError: the disk is full, or the folder above cannot be written to.
    """
    if target.exists():
        return
    partial = temporary_path(target)
    with os_errors_to_user_errors(target):
        try:
            partial.mkdir(parents=True)
            fill(partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def temporary_path(path: Path) -> Path:
    """A name under which to write a file or folder that nobody else uses, on any of the machines that share the folder."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")


@contextmanager
def os_errors_to_user_errors(path: Path) -> Iterator[None]:
    """Failures of the file system inside are UserErrors that name the path."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); make room, or choose another folder"
        ) from error


@contextmanager
def claim(folder: Path, doing: str) -> Iterator[None]:
    """Have a folder, which is made where it is missing, to oneself, and clear away what killed processes left half written.

    Args:
        doing: what others are told is going on here, such as "a run".

    Raises:
        UserError: another process has it, or the folder cannot be written to.
    """
    path = folder / LOCK
    with os_errors_to_user_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path, doing)
    try:
        remove_temporary(folder)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still ours
        os.close(lock)


def _acquire(path: Path, doing: str) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if sys.platform != "win32":
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(
                path.stat(), os.fstat(lock)
            ):  # else its last owner has just removed it
                os.ftruncate(lock, 0)
                os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return lock
        except BlockingIOError:
            owner = os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(lock)
            raise UserError(
                f"{path.parent}: {doing} is going on there ({owner}); wait for its end, or choose another folder"
            ) from None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def tidy(folder: Path, doing: str) -> None:
    """Clear a finished folder of what a process left there that was killed at the very end.

    Raises:
        UserError: its process is still at it.
    """
    if any(is_temporary(path) for path in folder.iterdir()):
        with claim(folder, doing):
            pass


def is_temporary(path: Path) -> bool:
    """Whether a file or folder is one that writing leaves for a moment, or for good where the process is killed."""
    return path.name == LOCK or (path.name.startswith(".") and path.name.endswith(PARTIAL))


def remove_temporary(folder: Path) -> None:
    """Remove what processes that were killed left half written in a folder that is claimed, which nobody else writes to."""
    for partial in folder.glob(f".*{PARTIAL}"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


@contextmanager
def claim_work(folder: Path, name: str, leftovers: str, wait: bool = False) -> Iterator[bool]:
    """Claim work on something in a folder among all processes that write there: whether it is ours until the end of the block.

    The system takes a claim back when its owner ends, however it ends; what such an owner left under temporary names is then
    removed. Where the file system, or Windows, has no such locks every claim is granted: work may be done twice, but never
    wrongly, because what is done is renamed into place. A process holds one claim of a folder at a time.

    Args:
        leftovers: pattern of the names that the work writes.
        wait: until nobody else has it.
    """
    byte = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")  # of the file of claims, which stays empty
    with open(folder / CLAIMS, "ab") as claims:
        held = False
        try:
            if sys.platform != "win32":
                fcntl.lockf(claims, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
                held = True
        except OSError as error:
            if error.errno in _TAKEN:
                yield False
                return
            if error.errno not in _NO_LOCKS:
                raise
        if held:
            for partial in folder.glob(f".{leftovers}.*{PARTIAL}"):
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
        if sys.platform != "win32":
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
