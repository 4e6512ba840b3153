"""What `pip install` does where nvcc fails, is not wanted, or is told something it does not understand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what the build reads, with an nvcc that fails."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    shutil.copytree(ROOT / "fovblur", copy / "fovblur", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    nvcc = copy / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\ncase $1 in --version) echo release 99.9;; *) echo 'nvcc fatal error: no licence' >&2; exit 1;; esac\n")
    nvcc.chmod(0o755)
    return copy


def build(checkout: Path, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "CUDA_HOME": str(checkout / "cuda"), **environment}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)


def test_a_failing_nvcc_gives_one_line_and_a_working_cpu_module(checkout):
    done = build(checkout, FOVBLUR_BUILD_CUDA="")
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "CUDA" in line]
    assert len(told) == 1 and "fovblur: CUDA module skipped:" in told[0] and "no licence" in told[0]
    info = subprocess.run([sys.executable, "-m", "fovblur.info"], cwd=checkout, capture_output=True, text=True, check=True).stdout
    assert "CUDA module: not built:" in info and "no licence" in info
    assert "CPU tensors would be served by cpu" in info
    again = build(checkout, FOVBLUR_BUILD_CUDA="0")  # and the reason changes with the next build
    assert again.returncode == 0 and "skipped: FOVBLUR_BUILD_CUDA=0" in again.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FOVBLUR_BUILD_CUDA": "1"}, "FOVBLUR_BUILD_CUDA=1, but the CUDA module cannot be built"),
        ({"FOVBLUR_BUILD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "Ampere"}, "TORCH_CUDA_ARCH_LIST names 'Ampere'"),
        ({"FOVBLUR_BUILD_CUDA": "perhaps"}, "FOVBLUR_BUILD_CUDA is 'perhaps'; set it to 1"),
    ],
    ids=["failing nvcc", "unknown architecture", "unknown switch"],
)
def test_what_must_build_and_cannot_is_an_error(checkout, environment, message):
    done = build(checkout, **environment)
    assert done.returncode != 0 and message in done.stderr
