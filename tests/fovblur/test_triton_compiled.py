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


def compiled(op: str) -> list[dict]:
    commands = [[sys.executable, str(REPORT), op, str(architecture)] for architecture in SHARED_OF_A_BLOCK]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    reports = [process.communicate()[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    return [kernel for report in reports for kernel in json.loads(report)]


@pytest.fixture(scope="module")
def kernels() -> list[dict]:
    return compiled("blur")


@pytest.fixture(scope="module")
def similarity_kernels() -> list[dict]:
    return compiled("similarity")


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


def test_similarity_kernels_do_not_spill_and_use_the_matrix_units(similarity_kernels):
    """float32 that must stay exact has no such units; on sm_90 whole warp groups multiply."""
    assert len(similarity_kernels) == 2 * 5
    for kernel in similarity_kernels:
        assert kernel["spills"] == 0 and kernel["registers"] * kernel["threads"] <= REGISTERS_OF_A_MULTIPROCESSOR, kernel
        assert kernel["shared"] <= SHARED_OF_A_BLOCK[kernel["architecture"]], kernel
        if "fp32 ieee" not in kernel["kernel"]:
            assert kernel["of_warp_groups" if kernel["architecture"] == 90 else "matrix_instructions"] > 0, kernel
