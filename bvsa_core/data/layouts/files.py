"""Open and check the files of a layout."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
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


def blocks_of(
    rows: Callable[[slice], np.ndarray], shape: tuple[int, ...], itemsize: int, mapped: np.ndarray | None = None
) -> Callable[[slice], Iterator[tuple[slice, np.ndarray]]]:
    """Return `Epochs.blocks` of an array of SHAPE that is read by conditions.

    Args:
        rows: returns some of the conditions.
        shape: of the whole array.
        itemsize: bytes of a sample.
        mapped: the array that `rows` reads; the pages of a memory-mapped one are released.
    """
    step = max(1, _BLOCK // (math.prod(shape[1:]) * itemsize))

    def blocks(keep: slice) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, shape[0], step):
            conditions = slice(start, min(start + step, shape[0]))
            yield conditions, rows(conditions)[..., keep]
            drop_pages(mapped)

    return blocks


def open_file(path: Path) -> Any:
    """Open a .npy file: a memory-mapped array, or the plain data of a pickle.

    Raises:
        UserError: it is missing, damaged, or holds anything but plain data.
    """
    if path.is_file():
        with contextlib.suppress(*READ_ERRORS):  # read_arrays explains them
            mapped = np.lib.format.open_memmap(path, mode="r")
            if mapped.offset + mapped.nbytes == path.stat().st_size:
                return mapped
    return read_arrays(path)


def check_array(path: Path, data: Any, shape: str = SHAPE) -> np.ndarray:
    """Return `data` if it is an array of floats with as many axes as `shape` names.

    Raises:
        UserError: it is anything else.
    """
    if not isinstance(data, np.ndarray):
        raise UserError(f"{path}: holds a {type(data).__name__} where an array of {shape} belongs; fetch it again")
    if data.ndim != shape.count(",") + 1 or data.dtype.kind != "f" or data.size == 0:
        raise UserError(f"{path}: {data.dtype} of shape {data.shape}; it must be floats of shape {shape}")
    return data


def read_description(path: Path) -> dict[str, Any]:
    """Read a JSON description of recordings, an object with ch_names and times.

    Raises:
        UserError: it is damaged or lacks one of the two.
    """
    content = read_json(path, _REMEDY)
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        if len(content["ch_names"]) and np.asarray(content["times"], dtype=np.float64).ndim == 1:
            return content
    raise UserError(f"{path}: damaged, or without lists ch_names and times; {_REMEDY}")
