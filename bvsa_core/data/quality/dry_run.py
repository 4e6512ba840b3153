"""What a published folder would make a conversion say: the conversion itself, whose results are looked at and not kept."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bvsa_core.data.layouts import conversion
from bvsa_core.data.layouts.source import ConversionOptions, SubjectSource
from bvsa_core.data.quality.bad_samples import BadSampleCounter
from bvsa_core.data.store import Header, SubjectWriter
from bvsa_core.errors import UserError
from bvsa_core.io.safe_readers import read_arrays
from bvsa_core.progress import Progress


class _Looked(BadSampleCounter):
    """Stands for the memory-mapped array of a split."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(shape[-2])
        self.shape = shape

    def __setitem__(self, where: Any, block: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            self.add(np.asarray(block).astype(np.float16, copy=False))

    def flush(self) -> None:
        pass


class _Rehearsal(SubjectWriter):
    """Keeps the intermediate pieces of a conversion while it lasts, and of its arrays only what is wrong with them."""

    def __init__(self, folder: Path):
        self.folder, self._lock, self.complete = folder, contextlib.ExitStack(), False
        self.looked: dict[str, _Looked] = {}
        self.header: Header | None = None

    def array(self, split: str, shape: tuple[int, ...]) -> Any:
        self.looked[split] = _Looked(tuple(shape))
        return self.looked[split]

    def finish(self, header: Header) -> Header:
        self.header = header
        return header


def rehearse(source: SubjectSource, images: Path | None, progress: Progress) -> tuple[list[str], list[str]]:
    """What a subject has, and what is wrong with it: the first that stops the conversion, then each other file that is damaged."""
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        writer = _Rehearsal(Path(folder))
        try:
            source.convert(writer, ConversionOptions(images=images), progress)
        except UserError as error:
            problems.append(str(error))
            problems += [told for path in source.files if str(path) not in problems[0] and (told := _damage(path))]
    found = [
        f"{source.root} {source.subject} {split}: {' x '.join(map(str, looked.shape))}, layout {source.layout}"
        for split, looked in writer.looked.items()
    ]
    for split, looked in writer.looked.items():
        channels = writer.header.channels if writer.header else [f"number {i + 1}" for i in range(looked.shape[-2])]
        problems += looked.problems(source.root / f"{source.subject} {split}", channels)
    return found, problems


def _damage(path: Path) -> str:
    """Why a file of arrays or a description cannot be read; empty where it can, or where only the conversion knows how."""
    try:
        if path.suffix == ".npy":
            conversion.open_file(path)
        elif path.suffix == ".pt":
            read_arrays(path)
        elif path.suffix == ".json":
            conversion.read_json(path)
    except UserError as error:
        return str(error)
    return ""
