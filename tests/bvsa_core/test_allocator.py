"""Memory that is freed and wanted again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource
from bvsa_core.allocator import tune_allocator
tune_allocator()
batch = lambda: [bytearray(b"x") * 2**24 for _ in range(4)]
batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_blocks_are_taken_again_without_fetching_pages():
    """Five times four blocks of 16 MiB; one is 4096 pages of 4 KiB. Left to itself, glibc gives their memory back each time."""
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4096
