"""The store: the format into which `bvsa data eeg` and `bvsa data meg` convert recordings, and which all else reads.

    STORE/dataset.json            name and modality
    STORE/texts.json              captions or words of the images, if any were given
    STORE/sub-01/train.npy        (conditions, repetitions, channels, time) float16, memory-mapped
    STORE/sub-01/test.npy
    STORE/sub-01/header.json      describes both arrays, see Header
    STORE/Image_set_Resize/...    the images, by `bvsa data images`

A subject's folder is filled under a temporary name and renamed when it is complete. One process at a time fills it. An
unfinished folder survives a kill: the same conversion resumes with the arrays in it, another one starts again.
"""

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
from typing import Any, Protocol

import numpy as np

from bvsa_core.errors import UserError
from bvsa_core.io.atomic import (
    Locked,
    clean_stale,
    lock,
    open_atomically,
    refuse_links,
    remove,
    remove_temporary,
    write_atomically,
)
from bvsa_core.io.safe_readers import READ_ERRORS
from bvsa_core.io.text_files import read_json

FORMAT = 1
HEADER = "header.json"
SPLITS = ("train", "test")
RECIPE = "plan.json"  # in an unfinished folder: the recipe it is made by
_DTYPE = np.dtype("<f2")
_MAX_SESSIONS = 100
_BLOCK = 2**24  # bytes read at once
_ENDS = 2**20  # bytes at each end of a source file that enter its fingerprint
_REMEDY = "make the folder again by bvsa data"
_KEYS = {"recipe": "made_from"}  # of Header's fields whose key in header.json differs
_NAMES = {key: name for name, key in _KEYS.items()}


@dataclass(frozen=True)
class SplitHeader:
    """Description of one array. A condition is one image, shown repeatedly."""

    shape: list[int]  # conditions, repetitions, channels, time
    images: list[str]  # (conditions,) image paths, such as "training_images/00001_aardvark/aardvark_01b.jpg"
    concepts: list[str]  # (conditions,) names of the objects shown
    sessions: list[list[int]] | None = None  # (conditions, repetitions) from 1; None if the source has none
    sha256: str = ""  # of the file's bytes


@dataclass(frozen=True)
class Header:
    """Content of header.json."""

    subject: str
    modality: str  # EEG or MEG
    units: str  # of a sample, such as "V", "T" or "whitened"
    sampling_rate: float  # Hz
    channels: list[str]
    times: list[float]  # (time,) seconds after image onset
    layout: str  # of the source
    processing: list[str]  # all known steps in order, one sentence each
    splits: dict[str, SplitHeader] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)  # layout, options and source files; "made_from" in the file
    versions: dict[str, str] = field(default_factory=dict)
    whitened_from: list[list[float]] | None = None  # (channels, channels) V², noise covariance, mean over sessions
    source: str = ""  # "synthetic", or the layout the recordings were first read from; default: `layout`
    format: int = FORMAT


class Writer(Protocol):
    """Receiver of one subject's converted recordings."""

    def cached(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return an intermediate array, memory-mapped; call `make` if it is not there yet."""

    def create_array(self, split: str, shape: tuple[int, ...]) -> Any:
        """Return the array of a split, to be filled by index and then flushed."""

    def commit(self, header: Header) -> Header:
        """Finish the subject, whose arrays are filled."""


class SubjectWriter(contextlib.AbstractContextManager["SubjectWriter"]):
    """Writer of one subject's folder, which appears complete or not at all; a context manager that releases its lock.

    Args:
        store: folder of all subjects; made if it is missing.
        recipe: layout, options and source files (see `fingerprint`) as plain data. An unfinished folder of the same
            recipe is resumed; one of another recipe is cleared.

    Raises:
        UserError: the subject was made by another recipe, or another process is making it.
    """

    def __init__(self, store: Path, subject: str, recipe: dict[str, Any]):
        self.target, self.recipe = store / subject, json.loads(json.dumps(recipe))
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

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _is_complete(self) -> bool:
        if not self.target.exists():
            return False
        there = read_header(self.target).recipe
        if there != self.recipe:
            differs = ", ".join(key for key in {**there, **self.recipe} if there.get(key) != self.recipe.get(key))
            raise UserError(f"{self.target} is there already, made otherwise ({differs}); delete it to make it again")
        return True

    def _enter(self) -> None:
        """Lock the subject, and make its unfinished folder or clear one of another recipe."""
        self._lock.enter_context(lock(self.target.parent, self.target.name, activity="a conversion"))
        if self._is_complete():  # by a process that has ended since
            self.complete = True
            self._lock.close()
            return
        for folder in (self.folder, self.target):
            refuse_links(folder)
        self.folder.mkdir(exist_ok=True)
        if self._recipe_of_finished() == self.recipe:
            self._rename()
            self.complete = True
        elif self._recipe_in_work() != self.recipe:
            self._clear(keep=set())
            write_atomically(self.folder / RECIPE, _json(self.recipe))
        else:
            remove_temporary(self.folder)

    def cached(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return an intermediate array, memory-mapped: of a killed conversion, or made now and kept until the end."""
        return cached_array(self.folder / f"{name}.npy", make)

    def create_array(self, split: str, shape: tuple[int, ...]) -> np.memmap:
        """Return the memory-mapped array of a split, zeros at first, to be filled in place; reserve its disk space."""
        path = self.folder / f"{split}.npy"
        path.unlink(missing_ok=True)
        size, free = int(np.prod(shape)) * _DTYPE.itemsize, shutil.disk_usage(self.folder).free
        needed = f"{size / 2**30:.1f} GiB"
        if size > free:
            raise UserError(f"{self.folder}: {split} takes {needed} and {free / 2**30:.1f} are free; make room")
        data = np.lib.format.open_memmap(path, "w+", _DTYPE, tuple(shape))
        if hasattr(os, "posix_fallocate"):  # else a disk that fills up ends the process when it writes to the map
            with path.open("r+b") as stream:
                try:
                    os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
                except OSError as error:
                    raise UserError(f"{path}: no room for {needed} ({error.strerror}); make room") from error
        return data

    def commit(self, header: Header) -> Header:
        """Check the arrays, write the header and rename the folder. Returns the complete header."""
        splits = {}
        for split, about in header.splits.items():
            path = self.folder / f"{split}.npy"
            data = np.load(path, mmap_mode="r")
            expected = len(about.images), data.shape[1], len(header.channels), len(header.times)
            if data.shape != expected or len(about.concepts) != len(about.images):
                raise UserError(f"{path}: {data.shape} written where the header has {expected}")
            if (bad := first_bad_condition(data)) is not None:
                which = f"{self.target.name} {split}: condition {bad} ({about.images[bad]})"
                raise UserError(f"{which} has samples that are not finite in float16; make or fetch its file again")
            _sync(path)
            splits[split] = dataclasses.replace(about, shape=list(data.shape), sha256=sha256_of(path))
        header = dataclasses.replace(header, splits=splits, recipe=self.recipe, versions=_versions())
        content = dataclasses.asdict(header)
        write_atomically(self.folder / HEADER, _json({_KEYS.get(key, key): value for key, value in content.items()}))
        self._rename()
        return header

    def _rename(self) -> None:
        """Rename the finished folder, whose header says that the arrays are complete: a kill loses nothing."""
        _sync(self.folder / HEADER)
        self._clear(keep={HEADER, *(f"{split}.npy" for split in SPLITS)})
        _sync(self.folder)
        self.folder.rename(self.target)
        _sync(self.target.parent)
        self._lock.close()

    def _clear(self, keep: set[str]) -> None:
        for path in self.folder.iterdir():
            if path.name not in keep:
                remove(path)

    def _recipe_in_work(self) -> Any:
        try:
            return read_json(self.folder / RECIPE, _REMEDY)
        except UserError:  # a kill came before it was written: the folder is cleared
            return None

    def _recipe_of_finished(self) -> Any:
        """Return the recipe if the folder only waits for its name."""
        try:
            header = read_header(self.folder)
            for split in header.splits:
                open_array(self.folder, header, split)
        except UserError:
            return None
        return header.recipe


def cached_array(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the memory-mapped array in a .npy file, which `make` computes if it is missing."""
    refuse_links(path)
    if not path.exists():
        array = make()
        with open_atomically(path) as stream:
            np.save(stream, array)
            stream.flush()
            os.fsync(stream.fileno())
    return np.load(path, mmap_mode="r")


def read_header(folder: Path) -> Header:
    """Read the header of a subject's folder, and check it."""
    path = folder / HEADER
    content = read_json(path, _REMEDY)
    try:
        if content["format"] != FORMAT:
            raise UserError(f"{path}: format {content['format']}, and this version reads {FORMAT}; {_REMEDY}")
        content["splits"] = {name: SplitHeader(**split) for name, split in content["splits"].items()}
        header = Header(**{_NAMES.get(key, key): value for key, value in content.items()})
        _check(header, path)
        return header
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); {_REMEDY}") from error


def open_array(folder: Path, header: Header, split: str) -> np.ndarray:
    """Open the memory-mapped array of a split, (conditions, repetitions, channels, time) float16; check its shape."""
    path = folder / f"{split}.npy"
    if split not in header.splits:
        raise UserError(f"{folder}: no {split} data; there are {', '.join(header.splits)}")
    try:
        if not path.is_file():  # reading a pipe or device might not end
            raise OSError("no regular file")
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except READ_ERRORS as error:
        raise UserError(f"{path}: missing or damaged ({error}); delete {folder} and make it again") from error
    expected = header.splits[split].shape
    if list(data.shape) != expected or data.dtype != _DTYPE:
        raise UserError(f"{path}: {data.dtype} {data.shape} where {HEADER} has {expected}; make it again")
    return data


def verify(folder: Path, header: Header, split: str) -> None:
    """Check that the file's checksum is the header's."""
    path = folder / f"{split}.npy"
    if sha256_of(path) != header.splits[split].sha256:
        raise UserError(f"{path}: altered since it was made (its checksum differs); delete {folder} and make it again")


def fingerprint(files: list[Path], root: Path) -> dict[str, list[int | str]]:
    """Return size, and checksum of the first and last MiB, of every file by its path below root: part of a recipe.

    The time of modification does not count: a copy or another download of a file changes it. The ends are enough:
    recordings processed differently differ in every sample, and torch archives end with the checksums of their parts.
    """
    return {str(path.relative_to(root)): [path.stat().st_size, _sha256_of_ends(path)] for path in sorted(files)}


def _sha256_of_ends(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.sha256(stream.read(_ENDS))
        stream.seek(max(stream.tell(), path.stat().st_size - _ENDS))
        digest.update(stream.read(_ENDS))
    return digest.hexdigest()


def first_bad_condition(data: np.ndarray) -> int | None:
    """Return the index of the first condition with a NaN or infinite sample, reading block by block to save memory."""
    step = max(1, _BLOCK // max(1, data[:1].size))
    for start in range(0, len(data), step):
        bad = ~np.isfinite(data[start : start + step]).all(axis=(1, 2, 3))
        if bad.any():
            return start + int(bad.argmax())
    return None


def sha256_of(path: Path) -> str:
    """Return the checksum of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _check(header: Header, path: Path) -> None:
    """Check types and lengths of everything in a header that was read."""
    covariance = header.whitened_from
    texts = [header.subject, header.modality, header.units, header.layout, header.source]
    texts += [*header.channels, *header.processing]
    numbers = [header.sampling_rate, *header.times, *(number for row in covariance or () for number in row)]
    lists: list[Any] = [header.channels, header.times, header.processing]
    for split in header.splits.values():
        texts += [*split.images, *split.concepts, split.sha256]
        numbers += [*split.shape, *(number for row in split.sessions or () for number in row)]
        lists += [split.shape, split.images, split.concepts]
        lists += () if split.sessions is None else (split.sessions, *split.sessions)
    typed = all(isinstance(part, list) for part in lists) and all(isinstance(text, str) for text in texts)
    if not (typed and {type(number) for number in numbers} <= {int, float} and isinstance(header.recipe, dict)):
        raise UserError(f"{path}: damaged (something in it is of another type); {_REMEDY}")
    if covariance is not None and [len(row) for row in covariance] != [len(header.channels)] * len(header.channels):
        raise UserError(f"{path}: damaged (a covariance of other channels); {_REMEDY}")
    for name, split in header.splits.items():
        conditions = split.shape[0] if len(split.shape) == 4 else -1
        fits = split.shape[2:] == [len(header.channels), len(header.times)] and name in SPLITS
        if split.sessions is not None:
            sessions = {number for row in split.sessions for number in row}
            fits &= len(split.sessions) == conditions and {len(row) for row in split.sessions} <= {split.shape[1]}
            fits &= all(isinstance(number, int) and 1 <= number <= _MAX_SESSIONS for number in sessions)
        if not fits or {len(split.images), len(split.concepts)} != {conditions}:
            raise UserError(f"{path}: damaged (the {name} part contradicts itself); {_REMEDY}")


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk, before a rename makes it visible."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("fovblur", "numpy", "mne", "scipy", "scikit-learn"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
