"""A dry run of a conversion: it converts a published subject, checks the results and keeps none of them."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bvsa_core.data.layouts.convert import convert_subject
from bvsa_core.data.layouts.files import open_file, read_description
from bvsa_core.data.layouts.source import ConversionOptions, SubjectSource
from bvsa_core.data.quality.bad_samples import BadSampleCounter
from bvsa_core.data.store import Header, Writer, cached_array
from bvsa_core.errors import UserError
from bvsa_core.io.safe_readers import read_arrays
from bvsa_core.progress import Progress


class _CountedArray(BadSampleCounter):
    """Takes the place of a split's array: counts what is assigned, and forgets it."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(shape[-2])
        self.shape = shape

    def __setitem__(self, index: Any, block: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            self.update(np.asarray(block).astype(np.float16, copy=False))

    def flush(self) -> None:
        """Do nothing: there is no file."""


class _DryRunWriter(Writer):
    """Keeps the intermediate arrays of a conversion in a folder, and of its results only counts and header."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.arrays: dict[str, _CountedArray] = {}
        self.header: Header | None = None

    def cached(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        return cached_array(self.folder / f"{name}.npy", make)

    def create_array(self, split: str, shape: tuple[int, ...]) -> _CountedArray:
        self.arrays[split] = _CountedArray(shape)
        return self.arrays[split]

    def commit(self, header: Header) -> Header:
        self.header = header
        return header


def dry_run(source: SubjectSource, images: Path | None, progress: Progress) -> tuple[list[str], list[str]]:
    """Return one line for each split of a subject, and one for each problem.

    The first problem that stops the conversion is followed by every other file that is damaged.
    """
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        writer = _DryRunWriter(Path(folder))
        try:
            convert_subject(source, writer, ConversionOptions(images=images), progress)
        except UserError as error:
            problems.append(str(error))
            problems += [damage for path in source.files if str(path) not in str(error) and (damage := _damage(path))]
    splits = []
    for split, array in writer.arrays.items():
        shape = " x ".join(map(str, array.shape))
        splits.append(f"{source.root} {source.subject} {split}: {shape}, layout {source.layout}")
        channels = writer.header.channels if writer.header else [f"number {i + 1}" for i in range(array.shape[-2])]
        problems += array.messages(source.root / f"{source.subject} {split}", channels)
    return splits, problems


def _damage(path: Path) -> str:
    """Return why a file cannot be read; empty if it can, or if only the conversion knows how to read it."""
    readers: dict[str, Callable[[Path], Any]] = {".npy": open_file, ".pt": read_arrays, ".json": read_description}
    try:
        if reader := readers.get(path.suffix):
            reader(path)
    except UserError as error:
        return str(error)
    return ""
