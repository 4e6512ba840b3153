"""The resources of the GPU kernels, compiled once for all tests."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_resources.py"
HAS_NVCC = shutil.which("nvcc") is not None
ARCHITECTURES = (86, 90)
SHARED_OF_A_BLOCK = {86: 101_376, 90: 232_448}
WITHOUT_NVCC = "nvcc is not installed"


@pytest.fixture(scope="session")
def gpu_resources(tmp_path_factory) -> dict:
    """Return the rows of scripts/gpu_resources.py; without nvcc only those of Triton's kernels."""
    target = tmp_path_factory.mktemp("gpu") / "resources.json"
    command = [sys.executable, str(SCRIPT), "--json", str(target), *([] if HAS_NVCC else ["--only", "triton"])]
    # The other tests set TRITON_INTERPRET=1, which Triton reads when it is imported.
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "0"})
    assert done.returncode == 0, done.stderr
    return json.loads(target.read_text())


def of(resources: dict, backend: str, kernel: str = "") -> list[dict]:
    """Return the rows of the kernels whose names begin with `kernel`."""
    rows = [row for row in resources["kernels"] if row["backend"] == backend and row["kernel"].startswith(kernel)]
    assert rows, f"no {backend} kernel {kernel}"
    return rows


def assert_fits(row: dict, blocks: int) -> None:
    """Check that no register is spilled and that this many blocks share a multiprocessor."""
    assert row["spill_stores"] == row["spill_loads"] == row["stack"] == 0, row
    assert row["static_shared"] + row["dynamic_shared"] <= SHARED_OF_A_BLOCK[row["architecture"]], row
    assert row["blocks"] >= blocks, row
