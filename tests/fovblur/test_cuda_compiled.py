"""What ptxas reports of the CUDA kernels for the architectures they ship for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
REGISTERS_OF_A_MULTIPROCESSOR = 65_536
SHARED_BYTES = {86: (101_376, 102_400), 90: (232_448, 233_472)}  # of a block, of a multiprocessor
RESERVED_BYTES = 1024  # of shared memory, for each resident block
THREADS = 256

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


def resource_report(source: Path, architecture: int, directory: Path) -> dict[str, dict[str, int]]:
    """Registers, shared memory, stack and spills of every kernel in a .cu file, as ptxas -v prints them."""
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = ["nvcc", "-std=c++17", "-O3", target, "-Xptxas=-v", "-cubin", "-o", str(directory / "kernels.cubin"), str(source)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    kernels = {}
    for block in text.split("Compiling entry function '")[1:]:
        number = lambda pattern: int((re.search(pattern, block) or [0, 0])[1])  # noqa: B023, E731
        kernels[block.split("'")[0]] = {
            "registers": number(r"Used (\d+) registers"),
            "shared": number(r"(\d+) bytes smem"),
            "stack": number(r"(\d+) bytes stack frame"),
            "spills": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        }
    return kernels


@pytest.mark.parametrize("architecture", [86, 90])
def test_kernels_do_not_spill_and_two_blocks_share_a_multiprocessor(architecture, tmp_path):
    kernels = resource_report(CSRC / "foveated_blur" / "cuda.cu", architecture, tmp_path)
    assert kernels, "no kernel found in ptxas's report"
    of_block, of_multiprocessor = SHARED_BYTES[architecture]
    for name, used in kernels.items():
        assert used["stack"] == 0 and used["spills"] == 0, (name, used)
        assert used["shared"] <= of_block, (name, used)
        assert 2 * (used["shared"] + RESERVED_BYTES) <= of_multiprocessor, (name, used)
        assert 0 < 2 * used["registers"] * THREADS <= REGISTERS_OF_A_MULTIPROCESSOR, (name, used)
