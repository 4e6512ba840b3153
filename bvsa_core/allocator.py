"""Keep freed memory in the process: fetching fresh pages for every batch can cost a third of an epoch on a CPU."""

import ctypes
import os
import platform


def tune_allocator() -> None:
    """Let glibc keep freed blocks up to 32 MiB and torch put larger ones on huge pages. Call it before using torch."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 * 2**20)
        libc.mallopt(trim_threshold, 2**31 - 1)
