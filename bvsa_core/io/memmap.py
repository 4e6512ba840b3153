"""Memory maps behind arrays: find them, and give the pages that were read back to the system."""

import mmap
from typing import Any

import numpy as np


def drop_pages(array: Any) -> None:
    """Release the pages of a memory-mapped array, which count as this process's memory; ignore other arrays."""
    if (mapped := mmap_of(array)) is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def mmap_of(array: Any) -> mmap.mmap | None:
    """Return the memory map that an array is a view of, or None if the array is in memory."""
    while isinstance(array, np.ndarray):
        array = array.base
    mapped = array.obj if isinstance(array, memoryview) else array
    return mapped if isinstance(mapped, mmap.mmap) else None
