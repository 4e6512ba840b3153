"""Writing so that a file or folder is there whole or not at all, and one process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bvsa_core.errors import UserError

LOCK = ".lock"  # in a folder that a process has claimed; the kernel lets go of it when the process dies
PARTIAL = ".partial"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it.

    Raises:
        UserError: the disk is full, or the folder cannot be written to. A file that was there stays as it was.
    """
    partial = partial_of(path)
    with told_of(path):
        try:
            with open(partial, "wb") as file:
                file.write(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; a failure may leave a part of it at the end.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    with told_of(path), open(path, "ab") as file:
        file.write(line.encode() + b"\n")


def make_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder under a temporary name and rename it, unless it is there already.

    Raises:
        UserError: the disk is full, or the folder above cannot be written to.
    """
    if target.exists():
        return
    partial = partial_of(target)
    with told_of(target):
        try:
            partial.mkdir(parents=True)
            fill(partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def partial_of(path: Path) -> Path:
    """The name under which this process, alone of all on machines that share the folder, writes a file or folder."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{PARTIAL}")


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Failures of the file system inside are UserErrors that name the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); make room, or choose another folder") from error


@contextmanager
def claim(folder: Path, doing: str) -> Iterator[None]:
    """Have a folder, which is made where it is missing, to oneself, and clear away what killed processes left half written.

    Args:
        doing: what others are told is going on here, such as "a run".

    Raises:
        UserError: another process has it, or the folder cannot be written to.
    """
    path = folder / LOCK
    with told_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _take(path, doing)
    try:
        remove_partials(folder)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still ours
        os.close(lock)


def _take(path: Path, doing: str) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(lock)):  # else its last owner has just removed it
                os.ftruncate(lock, 0)
                os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return lock
        except BlockingIOError:
            owner = os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(lock)
            raise UserError(f"{path.parent}: {doing} is going on there ({owner}); wait for its end, or choose another folder") from None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def tidy(folder: Path, doing: str) -> None:
    """Clear a finished folder of what a process left there that was killed at the very end.

    Raises:
        UserError: its process is still at it.
    """
    if any(is_ours(path) for path in folder.iterdir()):
        with claim(folder, doing):
            pass


def is_ours(path: Path) -> bool:
    """Whether a file or folder is one that writing leaves for a moment, or for good where the process is killed."""
    return path.name == LOCK or (path.name.startswith(".") and path.name.endswith(PARTIAL))


def remove_partials(folder: Path) -> None:
    """Remove what processes that were killed left half written in a folder that is claimed, which nobody else writes to."""
    for partial in folder.glob(f".*{PARTIAL}"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
