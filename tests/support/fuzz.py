"""Damaged files by the thousand, read in forked children that are bounded in time and memory and say what reading does."""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import re
import resource
import signal
import struct
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bvsa_core.errors import UserError

CPU_SECONDS = 5.0  # of one file
GROWTH = 2**31  # bytes of address space, beyond what the process had
_VALUES = [0, 1, -1, 2**7, 2**15, 2**31 - 1, -(2**31), 2**32, 2**62]
_JSON = ["null", "-1", "0", "1e999", "NaN", '"x"', "[]", "{}", "[[1]]", "true", "1" * 30, '"\\ud800"', "[" * 3000]
_LIBRARIES = tuple(str(Path(sysconfig.get_paths()[name]).resolve()) for name in ("stdlib", "purelib", "platlib"))
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.startfile",
    "subprocess",
    "socket",
    "pickle.find_class",
    "pty.spawn",
)
_CHANGES_FILES = tuple(f"os.{name}" for name in "remove rename mkdir rmdir link symlink truncate chmod utime".split())


@dataclass(frozen=True)
class Kind:
    """A kind of file and how it is read; `exact` where a checksum says that what is read is what was written."""

    name: str
    path: Path
    read: Callable[[Path], Any]
    exact: bool = False


def damaged(content: bytes, rng: np.random.Generator, donors: list[bytes]) -> bytes:
    """One to four changes of a file."""
    out = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        size = max(1, len(out))
        # Structure is mostly at either end of a file; the samples between are most of its bytes.
        at = int(rng.integers(size)) if rng.random() < 0.5 else int(min(size - 1, rng.exponential(100)))
        at = size - 1 - at if rng.random() < 0.3 else at
        span = int(rng.integers(1, 1 + min(64, size)))
        match rng.integers(10):
            case 0:
                out[at : at + 1] = bytes([(out[at] if out else 0) ^ 1 << int(rng.integers(8))])
            case 1:
                out[at : at + 1] = bytes([int(rng.integers(256))])
            case 2:
                del out[at:]
            case 3:
                out[at : at + span] = bytes(span)
            case 4:
                del out[at : at + span]
            case 5:
                out[at:at] = out[at : at + span]
            case 6:
                value = _VALUES[rng.integers(len(_VALUES))]
                packed = struct.pack("<q" if rng.random() < 0.7 else ">q", value)[: [1, 2, 4, 8][rng.integers(4)]]
                out[at : at + len(packed)] = packed
            case 7:
                donor = donors[rng.integers(len(donors))]
                start = int(rng.integers(max(1, len(donor))))
                out[at : at + span] = donor[start : start + span]
            case 8:
                numbers = list(re.finditer(rb"\d+", bytes(out[:4000])))
                if numbers:
                    found = numbers[rng.integers(len(numbers))]
                    out[found.start() : found.end()] = str(_VALUES[rng.integers(len(_VALUES))]).encode()
            case 9:
                tokens = list(re.finditer(rb'"[^"]*"|[-\d.e]+|\[[^\[\]]*\]|null|true', bytes(out[:20000])))
                if tokens:
                    found = tokens[rng.integers(len(tokens))]
                    out[found.start() : found.end()] = _JSON[rng.integers(len(_JSON))].encode()
    return bytes(out)


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, types included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return (
            one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
        )
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return one == other or one != one


def hunt(kind: Kind, numbers: Iterable[int], seed: int, donors: list[bytes]) -> list[str]:
    """Read each damaged version; one line for everything that a reader must not do."""
    content, original = kind.path.read_bytes(), kind.read(kind.path)
    numbers, findings = list(numbers), []
    with mmap.mmap(-1, 8) as shared, tempfile.TemporaryFile() as told:
        done = 0
        while done < len(numbers):
            shared[:8] = struct.pack("<q", done)
            child = os.fork()
            if child == 0:
                _child(kind, numbers, done, seed, donors, content, original, shared, told.fileno())
            _, status = os.waitpid(child, 0)
            done = struct.unpack("<q", shared[:8])[0] + 1
            if status != 0:
                how = signal.Signals(status & 127).name if status & 127 else f"exit code {status >> 8}"
                findings.append(f"{kind.name} {numbers[done - 1]}: the process died of {how}")
        told.seek(0)
        findings += [json.loads(line) for line in told]
    kind.path.write_bytes(content)
    return findings


def _child(kind, numbers, start, seed, donors, content, original, shared, told) -> None:
    """Never returns."""
    try:
        faulthandler.disable()  # that a child dies is told as a finding
        os.close(1), os.close(2)
        os.open(os.devnull, os.O_WRONLY), os.open(os.devnull, os.O_WRONLY)
        torch.set_num_threads(1)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GROWTH,) * 2)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        watched: list[str] = []
        _watch(watched, kind.path.parent)
        for index in range(start, len(numbers)):
            number = numbers[index]
            shared[:8] = struct.pack("<q", index)
            rng = np.random.default_rng([seed, *kind.name.encode(), number])
            kind.path.write_bytes(damaged(content, rng, donors))
            watched.clear()
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # CPU time, however busy the machine is
            finding = _finding(kind, original)
            signal.setitimer(signal.ITIMER_PROF, 0)
            for line in ([finding] if finding else []) + watched[:1]:
                os.write(told, json.dumps(f"{kind.name} {number}: {line}").encode() + b"\n")
        os._exit(0)
    except BaseException:
        os.write(told, json.dumps(f"{kind.name}: {traceback.format_exc()}").encode() + b"\n")
    finally:
        os._exit(7)


def _finding(kind: Kind, original: Any) -> str:
    try:
        found = kind.read(kind.path)
    except UserError as error:
        if isinstance(error.__cause__, MemoryError):
            return f"asks for more memory than {GROWTH} bytes"
        if "\n" in str(error):
            return f"an error of several lines: {error}"
        return ""
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = [
            f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]
        ]
        return f"{type(error).__name__} at {last.name} {where}: {str(error)[:200]}"
    if kind.exact and not same(found, original):
        return "read as something else"
    return ""


def _watch(watched: list[str], folder: Path) -> None:
    inside = str(folder.resolve()), tempfile.gettempdir()

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(_FORBIDDEN):
            watched.append(f"did {event} {arguments!r:.200}")
        elif event == "exec":
            file = getattr(arguments[0], "co_filename", "")
            if not file.startswith(("<frozen", *_LIBRARIES, str(Path(__file__).parents[2]))) and file != "<string>":
                watched.append(f"executed code of {file}")
            elif file == "<string>" and not _by_library():
                watched.append("executed a string")
        elif (
            event == "open"
            and _writes(arguments[1], arguments[2])
            and not str(arguments[0]).startswith((*inside, os.devnull))
        ):
            if not isinstance(arguments[0], int):
                watched.append(f"opened {arguments[0]} for writing")
        elif (
            event.startswith(_CHANGES_FILES)
            and not isinstance(arguments[0], int)
            and not str(arguments[0]).startswith(inside)
        ):
            if event == "os.truncate" or arguments[-1] < 0:  # or else in a folder that is open, as rmtree does
                watched.append(f"did {event} {arguments!r:.200}")

    sys.addaudithook(hook)


def _by_library() -> bool:
    """Whether a library executes a string of its own, as namedtuple and dataclass do."""
    frame = sys._getframe(2)
    return bool(frame) and frame.f_code.co_filename.startswith(("<frozen", *_LIBRARIES))


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
