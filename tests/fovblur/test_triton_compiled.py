"""What the Triton kernels use when they are compiled for the GPUs they ship for, in every configuration launched there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPORT = Path(__file__).parents[1] / "support" / "triton_resources.py"
REGISTERS_OF_A_MULTIPROCESSOR = 65_536
SHARED_OF_A_BLOCK = {86: 101_376, 90: 232_448}
SHARED_OF_A_MULTIPROCESSOR = {86: 102_400, 90: 233_472}
RESERVED_BYTES = 1024  # of shared memory, for each resident block


@pytest.fixture(scope="module")
def kernels() -> list[dict]:
    done = subprocess.run([sys.executable, str(REPORT), "86", "90"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_every_image_type_is_compiled_for_both_architectures(kernels):
    names = {(kernel["kernel"], kernel["architecture"]) for kernel in kernels}
    assert len(names) == len(kernels) == 2 * (4 + 3 + 4)


def test_kernels_do_not_spill_and_use_the_matrix_units(kernels):
    for kernel in kernels:
        assert kernel["spills"] == 0 and kernel["matrix_instructions"] > 0, kernel


def test_two_blocks_share_a_multiprocessor(kernels):
    for kernel in kernels:
        registers = -(-kernel["registers"] // 8) * 8
        assert 2 * registers * kernel["threads"] <= REGISTERS_OF_A_MULTIPROCESSOR, kernel
        assert kernel["shared"] <= SHARED_OF_A_BLOCK[kernel["architecture"]], kernel
        assert 2 * (kernel["shared"] + RESERVED_BYTES) <= SHARED_OF_A_MULTIPROCESSOR[kernel["architecture"]], kernel
