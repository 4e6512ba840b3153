"""Read thousands of damaged files in forked children with bounded time and memory, and report what reading does."""

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

CPU_SECONDS = 5.0  # per file
GROWTH = 2**31  # bytes of address space beyond those of the process
_VALUES = [0, 1, -1, 2**7, 2**15, 2**31 - 1, -(2**31), 2**32, 2**62]
_JSON = ["null", "-1", "0", "1e999", "NaN", '"x"', "[]", "{}", "[[1]]", "true", "1" * 30, '"\\ud800"', "[" * 3000]
_LIBRARIES = tuple(str(Path(sysconfig.get_paths()[name]).resolve()) for name in ("stdlib", "purelib", "platlib"))
_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile", "subprocess", "socket", "pty.spawn")
_FORBIDDEN += ("pickle.find_class",)
_CHANGES_FILES = tuple(f"os.{name}" for name in "remove rename mkdir rmdir link symlink truncate chmod utime".split())


@dataclass(frozen=True)
class Kind:
    """A kind of file and its reader; `exact` if a checksum guards the content, which then must read back unchanged."""

    name: str
    path: Path
    read: Callable[[Path], Any]
    exact: bool = False


def damaged(content: bytes, rng: np.random.Generator, donors: list[bytes]) -> bytes:
    """Apply one to four random changes to the content of a file; `donors` are other files to copy from."""
    out = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        size = max(1, len(out))
        # Structure is mostly at either end of a file; samples are most of the bytes in between.
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
            case 8 | 9 as kind:
                pattern = rb"\d+" if kind == 8 else rb'"[^"]*"|[-\d.e]+|\[[^\[\]]*\]|null|true'
                if tokens := list(re.finditer(pattern, bytes(out[: 4000 if kind == 8 else 20000]))):
                    token, values = tokens[rng.integers(len(tokens))], _VALUES if kind == 8 else _JSON
                    out[token.start() : token.end()] = str(values[rng.integers(len(values))]).encode()
    return bytes(out)


def same(one: Any, other: Any) -> bool:
    """Return whether two values and their types are equal, to the last bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and same(one.numpy(), other.numpy())
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return one == other or one != one


def hunt(kind: Kind, numbers: Iterable[int], seed: int, donors: list[bytes]) -> list[str]:
    """Read every damaged version, and return a line for each forbidden action of the reader."""
    content, original = kind.path.read_bytes(), kind.read(kind.path)
    numbers, findings = list(numbers), []
    with mmap.mmap(-1, 8) as shared, tempfile.TemporaryFile() as report:
        done = 0
        while done < len(numbers):
            shared[:8] = struct.pack("<q", done)
            child = os.fork()
            if child == 0:
                _child(kind, numbers, done, seed, donors, content, original, shared, report.fileno())
            _, status = os.waitpid(child, 0)
            done = struct.unpack("<q", shared[:8])[0] + 1
            if status != 0:
                how = signal.Signals(status & 127).name if status & 127 else f"exit code {status >> 8}"
                findings.append(f"{kind.name} {numbers[done - 1]}: the process died of {how}")
        report.seek(0)
        findings += [json.loads(line) for line in report]
    kind.path.write_bytes(content)
    return findings


def _child(kind, numbers, start, seed, donors, content, original, shared, report) -> None:
    """Read damaged versions, write findings to the file descriptor `report`, and exit."""
    try:
        faulthandler.disable()  # the parent reports the death of a child
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
                os.write(report, json.dumps(f"{kind.name} {number}: {line}").encode() + b"\n")
        os._exit(0)
    except BaseException:
        os.write(report, json.dumps(f"{kind.name}: {traceback.format_exc()}").encode() + b"\n")
    finally:
        os._exit(7)


def _finding(kind: Kind, original: Any) -> str:
    try:
        content = kind.read(kind.path)
    except UserError as error:
        if isinstance(error.__cause__, MemoryError):
            return f"asks for more memory than {GROWTH} bytes"
        if "\n" in str(error):
            return f"an error of several lines: {error}"
        return ""
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
        return f"{type(error).__name__} at {frames[-1].name} {where}: {str(error)[:200]}"
    if kind.exact and not same(content, original):
        return "read as something else"
    return ""


def _watch(watched: list[str], folder: Path) -> None:
    """Append forbidden actions of this process to `watched`; files may change inside `folder` and the temporary one."""
    inside, libraries = (str(folder.resolve()), tempfile.gettempdir()), ("<frozen", *_LIBRARIES)

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(_FORBIDDEN):
            watched.append(f"did {event} {arguments!r:.200}")
        elif event == "exec":
            file, caller = getattr(arguments[0], "co_filename", ""), sys._getframe(1).f_code.co_filename
            if file == "<string>" and not caller.startswith(libraries):  # which namedtuple and dataclass do
                watched.append("executed a string")
            elif file != "<string>" and not file.startswith((*libraries, str(Path(__file__).parents[2]))):
                watched.append(f"executed code of {file}")
        elif not arguments or isinstance(arguments[0], int):
            return
        elif event == "open" and _writes(arguments[1], arguments[2]):
            if not str(arguments[0]).startswith((*inside, os.devnull)):
                watched.append(f"opened {arguments[0]} for writing")
        elif event.startswith(_CHANGES_FILES) and not str(arguments[0]).startswith(inside):
            if event == "os.truncate" or arguments[-1] < 0:  # others are relative to an open folder, as in rmtree
                watched.append(f"did {event} {arguments!r:.200}")

    sys.addaudithook(hook)


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
