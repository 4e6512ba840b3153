"""The store: what `bvsa data eeg` and `bvsa data meg` make of published files, and everything else reads.

    STORE/dataset.json            name and modality
    STORE/sub-01/train.npy        (conditions, repetitions, channels, time) float16, memory-mapped
    STORE/sub-01/test.npy
    STORE/sub-01/header.json      everything about the two: see Header
    STORE/Image_set_Resize/...    the images, by `bvsa data images`

A subject's folder is filled under a temporary name and renamed when it is whole. What is in the making survives a kill:
the same conversion goes on with the pieces that it finds, and another one starts anew. One process at a time fills it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from bvsa_core.errors import UserError
from bvsa_core.io.atomic import Locked, clean_stale, lock, write_atomically
from bvsa_core.io.safe_readers import READ_ERRORS

FORMAT = 1
HEADER = "header.json"
SPLITS = ("train", "test")
_PLAN = "plan.json"  # what is being made in a temporary folder, and of what
_DTYPE = np.dtype("<f2")
_MOST_SESSIONS = 100
_BLOCK = 2**24  # bytes read at once
_ENDS = 2**20  # bytes at either end of a source file that tell it from another of its size


@dataclass(frozen=True)
class SplitHeader:
    """What the rows of an array are. A condition is one image, shown repeatedly."""

    shape: list[int]  # conditions, repetitions, channels, time
    images: list[str]  # (conditions,) image paths, such as "training_images/00001_aardvark/aardvark_01b.jpg"
    concepts: list[str]  # (conditions,) what they show
    sessions: list[list[int]] | None = None  # (conditions, repetitions) from 1; None where the source does not tell
    sha256: str = ""  # of the file's bytes


@dataclass(frozen=True)
class Header:
    """header.json."""

    subject: str
    modality: str  # EEG or MEG
    units: str  # of a sample, such as "V", "T" or "whitened"
    sampling_rate: float  # Hz
    channels: list[str]
    times: list[float]  # (time,) seconds after the image appears
    layout: str  # of the source
    processing: list[str]  # the steps, in order, one sentence each; what was done before us as far as it is known
    splits: dict[str, SplitHeader] = field(default_factory=dict)
    made_from: dict[str, Any] = field(
        default_factory=dict
    )  # the plan: layout, options, and source files with their sizes and checksums
    versions: dict[str, str] = field(default_factory=dict)
    whitened_from: list[list[float]] | None = (
        None  # (channels, channels) V², what whitening was fitted on, mean over sessions
    )
    format: int = FORMAT


class SubjectWriter:
    """Fills one subject's folder; whole or not there at all. A context: what it was used in ends, and others may go on.

    Args:
        store: the folder of all subjects, made where it is missing.
        plan: what is made of what, as plain data: layout, options, and the source files, see fingerprint.
            A temporary folder of the same plan is gone on with, one of another is thrown away.

    Raises:
        UserError: the subject is there already, made by another plan, or another process is making it.
    """

    def __init__(self, store: Path, subject: str, plan: dict[str, Any]):
        self.target, self.plan = store / subject, json.loads(json.dumps(plan))
        self.folder = store / f".{subject}.partial"
        self._lock = contextlib.ExitStack()
        self.complete = self._is_complete()
        if self.complete:
            with contextlib.suppress(Locked):
                clean_stale(store, subject)
            return
        try:
            self._enter()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> SubjectWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _is_complete(self) -> bool:
        if not self.target.exists():
            return False
        made_from = read_header(self.target).made_from
        if made_from != self.plan:
            differs = ", ".join(key for key in {**made_from, **self.plan} if made_from.get(key) != self.plan.get(key))
            raise UserError(f"{self.target} is there already, made otherwise ({differs}); delete it to make it again")
        return True

    def _enter(self) -> None:
        """Lock the subject for this process, and make its temporary folder, with nothing of another plan inside."""
        try:
            self._lock.enter_context(lock(self.target.parent, self.target.name))
        except Locked as error:
            raise UserError(f"{self.target}: another process is making it; wait for that one") from error
        if self._is_complete():  # by a process that has ended since
            self.complete = True
            self._lock.close()
            return
        self.folder.mkdir(exist_ok=True)
        if self._header_in_work() == self.plan:
            self._rename()
            self.complete = True
        elif self._plan_in_work() != self.plan:
            self._clear(keep=set())
            write_atomically(self.folder / _PLAN, _json(self.plan))

    def piece(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An intermediate array, memory-mapped: as a killed conversion left it, or made now and kept until the end."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            partial = path.with_suffix(".partial")
            with partial.open("wb") as stream:
                np.save(stream, make())
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        return np.load(path, mmap_mode="r")

    def array(self, split: str, shape: tuple[int, ...]) -> np.memmap:
        """The split's memory-mapped array, zeros at first, to be filled in place.

        Raises:
            UserError: the disk has no room for it.
        """
        path = self.folder / f"{split}.npy"
        path.unlink(missing_ok=True)
        wanted, free = int(np.prod(shape)) * _DTYPE.itemsize, shutil.disk_usage(self.folder).free
        if wanted > free:
            raise UserError(
                f"{self.folder}: {split} takes {wanted / 2**30:.1f} GiB and {free / 2**30:.1f} are free; make room"
            )
        data = np.lib.format.open_memmap(path, "w+", _DTYPE, tuple(shape))
        if hasattr(
            os, "posix_fallocate"
        ):  # or a disk that fills meanwhile would end the process when it writes to the map
            with path.open("r+b") as stream:
                try:
                    os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
                except OSError as error:
                    raise UserError(
                        f"{path}: no room for {wanted / 2**30:.1f} GiB ({error.strerror}); make room"
                    ) from error
        return data

    def finish(self, header: Header) -> Header:
        """Check what was written, write the header and give the folder its name.

        Raises:
            UserError: samples that are not finite in float16, or a header that does not fit the arrays.
        """
        splits = {}
        for split, about in header.splits.items():
            path = self.folder / f"{split}.npy"
            data = np.load(path, mmap_mode="r")
            expected = len(about.images), data.shape[1], len(header.channels), len(header.times)
            if data.shape != expected or len(about.concepts) != len(about.images):
                raise UserError(f"{path}: {data.shape} written where the header tells of {expected}")
            if (where := first_bad_condition(data)) is not None:
                which = f"{self.target.name} {split}: condition {where} ({about.images[where]})"
                raise UserError(f"{which} has samples that are not finite in float16; make or fetch its file again")
            _sync(path)
            splits[split] = dataclasses.replace(about, shape=list(data.shape), sha256=sha256_of(path))
        header = dataclasses.replace(header, splits=splits, made_from=self.plan, versions=_versions())
        write_atomically(self.folder / HEADER, _json(dataclasses.asdict(header)))
        self._rename()
        return header

    def _rename(self) -> None:
        """Give the folder its name. The header is in it and says that the arrays are whole, so a kill on the way loses nothing."""
        _sync(self.folder / HEADER)
        self._clear(keep={HEADER, *(f"{split}.npy" for split in SPLITS)})
        _sync(self.folder)
        self.folder.rename(self.target)
        _sync(self.target.parent)
        self._lock.close()

    def _clear(self, keep: set[str]) -> None:
        for path in self.folder.iterdir():
            if path.name not in keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _plan_in_work(self) -> Any:
        try:
            return json.loads((self.folder / _PLAN).read_text())
        except (OSError, ValueError):
            return None

    def _header_in_work(self) -> Any:
        try:
            header = read_header(self.folder)
            for split in header.splits:
                open_array(self.folder, header, split)
        except UserError:
            return None
        return header.made_from


def read_header(folder: Path) -> Header:
    """The header of a subject's folder.

    Raises:
        UserError: it is missing, damaged or of another version.
    """
    path = folder / HEADER
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise UserError(
                f"{path}: format {content['format']}, and this version reads {FORMAT}; make it again by bvsa data"
            )
        content["splits"] = {name: SplitHeader(**split) for name, split in content["splits"].items()}
        header = Header(**content)
        _check(header, path)
        return header
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make the folder again by bvsa data") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); make the folder again by bvsa data") from error


def open_array(folder: Path, header: Header, split: str) -> np.ndarray:
    """The memory-mapped array of a split, (conditions, repetitions, channels, time) float16.

    Raises:
        UserError: it is missing, cut off, or not what the header tells.
    """
    path = folder / f"{split}.npy"
    if split not in header.splits:
        raise UserError(f"{folder}: no {split} data; there are {', '.join(header.splits)}")
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except READ_ERRORS as error:
        raise UserError(f"{path}: missing or damaged ({error}); delete {folder} and make it again") from error
    if list(data.shape) != header.splits[split].shape or data.dtype != _DTYPE:
        raise UserError(
            f"{path}: {data.dtype} {data.shape} where {HEADER} tells of {header.splits[split].shape}; make it again"
        )
    return data


def verify(folder: Path, header: Header, split: str) -> None:
    """Compare the file's checksum with the header's.

    Raises:
        UserError: they differ.
    """
    path = folder / f"{split}.npy"
    if sha256_of(path) != header.splits[split].sha256:
        raise UserError(f"{path}: altered since it was made (its checksum differs); delete {folder} and make it again")


def fingerprint(files: list[Path], root: Path) -> dict[str, list[int | str]]:
    """Size, and checksum of the first and last MiB, of every file by its path below root: part of a plan.

    Not the time of modification, which a copy or another download of the same file changes. Recordings that were made
    otherwise differ in every sample, and torch archives end with the checksums of their parts, so the ends tell.
    """
    return {str(path.relative_to(root)): [path.stat().st_size, _sha256_of_ends(path)] for path in sorted(files)}


def _sha256_of_ends(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.sha256(stream.read(_ENDS))
        stream.seek(max(stream.tell(), path.stat().st_size - _ENDS))
        digest.update(stream.read(_ENDS))
    return digest.hexdigest()


def first_bad_condition(data: np.ndarray) -> int | None:
    """Index of the first condition with a NaN or infinite sample, read in pieces to spare memory."""
    step = max(1, _BLOCK // max(1, data[:1].size))
    for start in range(0, len(data), step):
        bad = ~np.isfinite(data[start : start + step]).all(axis=(1, 2, 3))
        if bad.any():
            return start + int(bad.argmax())
    return None


def sha256_of(path: Path) -> str:
    """Of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _check(header: Header, path: Path) -> None:
    texts = [header.subject, header.modality, header.units, header.layout, *header.channels, *header.processing]
    before = header.whitened_from
    numbers = [header.sampling_rate, *header.times, *(number for row in before or () for number in row)]
    for split in header.splits.values():
        texts += [*split.images, *split.concepts, split.sha256]
        numbers += [*split.shape, *(number for row in split.sessions or () for number in row)]
    lists = [
        header.channels,
        header.times,
        header.processing,
        *(part for split in header.splits.values() for part in _lists(split)),
    ]
    typed = all(isinstance(part, list) for part in lists) and all(isinstance(text, str) for text in texts)
    if (
        not typed
        or not all(type(number) in (int, float) for number in numbers)
        or not isinstance(header.made_from, dict)
    ):
        raise UserError(f"{path}: damaged (something in it is of another type); make the folder again by bvsa data")
    if before is not None and [len(row) for row in before] != [len(header.channels)] * len(header.channels):
        raise UserError(f"{path}: damaged (a covariance of other channels); make the folder again by bvsa data")
    for name, split in header.splits.items():
        conditions = split.shape[0] if len(split.shape) == 4 else -1
        fits = split.shape[2:] == [len(header.channels), len(header.times)] and name in SPLITS
        if split.sessions is not None:
            told = {number for row in split.sessions for number in row}
            fits &= len(split.sessions) == conditions and {len(row) for row in split.sessions} <= {split.shape[1]}
            fits &= all(isinstance(number, int) and 1 <= number <= _MOST_SESSIONS for number in told)
        if not fits or {len(split.images), len(split.concepts)} != {conditions}:
            raise UserError(f"{path}: damaged (the {name} part contradicts itself); make the folder again by bvsa data")


def _lists(split: SplitHeader) -> list[Any]:
    return [
        split.shape,
        split.images,
        split.concepts,
        *(() if split.sessions is None else (split.sessions, *split.sessions)),
    ]


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def _sync(path: Path) -> None:
    """Have the disk hold it before anything is renamed over it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("fovblur", "numpy", "mne", "scipy", "scikit-learn"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
