"""Open and check the files of a layout."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bvsa_core.errors import UserError
from bvsa_core.io.memmap import drop_pages
from bvsa_core.io.safe_readers import READ_ERRORS, read_arrays
from bvsa_core.io.text_files import read_json

SHAPE = "(conditions, repetitions, channels, time)"
_BLOCK = 2**26  # bytes of the source read at once
_REMEDY = "fetch or make it again"


def existing(paths: Iterable[Path]) -> list[Path]:
    """Return the paths that exist."""
    return [path for path in paths if path.exists()]


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that are there twice or more."""
    return [name for name, count in Counter(names).items() if count > 1]


def blocks_of(
    rows: Callable[[slice], np.ndarray], shape: tuple[int, ...], itemsize: int, mapped: np.ndarray | None = None
) -> Callable[[slice], Iterator[tuple[slice, np.ndarray]]]:
    """Return `Epochs.blocks` of an array of `shape`, of which `rows` reads some conditions.

    `itemsize` is the bytes of a sample. If `rows` reads a memory-mapped array, `mapped`, its pages are released.
    """
    step = max(1, _BLOCK // (math.prod(shape[1:]) * itemsize))

    def blocks(keep: slice) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, shape[0], step):
            conditions = slice(start, min(start + step, shape[0]))
            yield conditions, rows(conditions)[..., keep]
            drop_pages(mapped)

    return blocks


def open_file(path: Path) -> Any:
    """Open a .npy file: a memory-mapped array, or the plain data of a pickle."""
    if path.is_file():
        with contextlib.suppress(*READ_ERRORS):  # read_arrays explains them
            mapped = np.lib.format.open_memmap(path, mode="r")
            if mapped.offset + mapped.nbytes == path.stat().st_size:
                return mapped
    return read_arrays(path)


def check_array(path: object, data: Any, shape: str = SHAPE) -> np.ndarray:
    """Return `data`, which must be an array of floats with as many axes as `shape` names; `path` starts the message."""
    if not isinstance(data, np.ndarray):
        raise UserError(f"{path}: holds a {type(data).__name__} where an array of {shape} belongs; fetch it again")
    if data.ndim != shape.count(",") + 1 or data.dtype.kind != "f" or data.size == 0:
        raise UserError(f"{path}: {data.dtype} of shape {data.shape}; it must be floats of shape {shape}")
    return data


def read_description(path: Path) -> dict[str, Any]:
    """Read a JSON description of recordings, an object with ch_names and times."""
    content = read_json(path, _REMEDY)
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        if len(content["ch_names"]) and np.asarray(content["times"], dtype=np.float64).ndim == 1:
            return content
    raise UserError(f"{path}: damaged, or without lists ch_names and times; {_REMEDY}")
