"""Freed memory is reused."""

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is configured")
def test_freed_blocks_are_reused_without_page_faults():
    """Five times four blocks of 16 MiB = 4096 pages each. By default, glibc returns their memory every time."""
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4096
