"""The CPU kernels compiled for arm64 (NEON) and run in qemu give this processor's results.

Debian's packages g++-aarch64-linux-gnu and qemu-user have what this needs.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import fovblur
from fovblur.dtypes import DTYPES
from fovblur.foveated_blur.validation import BORDERS, FALLOFFS

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")

pytestmark = pytest.mark.skipif(not (COMPILER and EMULATOR), reason="needs aarch64-linux-gnu-g++ and qemu-aarch64")


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("arm64") / "kernels"
    flags = ["-std=c++17", "-O2", "-static", "-pthread", "-Werror", "-Wall", "-fno-math-errno", "-fno-trapping-math"]
    flags += ["-DFOVBLUR_VARIANT=baseline", "-DFOVBLUR_VECTOR_BYTES=16", f"-I{ROOT / 'csrc'}"]
    sources = [*ROOT.glob("csrc/common/*.cpp"), *ROOT.glob("csrc/*/cpu.cpp"), ROOT / "tests/support/cpu_kernels.cpp"]
    done = subprocess.run([COMPILER, *flags, *map(str, sources), "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def run(program, tmp_path):
    """A function that writes arrays, runs a kernel and returns a reader of its results."""

    def call(arrays: dict, kernel: str, *arguments: float):
        for name, array in arrays.items():
            array.detach().contiguous().numpy().tofile(tmp_path / name)
        command = [EMULATOR, str(program), kernel, *(str(float(argument)) for argument in arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

        def read(name: str, like: torch.Tensor) -> torch.Tensor:
            data = np.fromfile(tmp_path / name, dtype=like.detach().numpy().dtype)
            return torch.from_numpy(data).reshape(like.shape)

        return read

    return call


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = {torch.uint8: 1, torch.float16: 2e-3, torch.float32: 2e-5, torch.float64: 1e-12}[expected.dtype]
    scale = 1 if expected.dtype == torch.uint8 else max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(actual.double(), expected.detach().double(), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64], ids=str)
def test_blur(run, dtype, border, seed):
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    shape = (2, 3, 41, 37)
    images = (torch.rand(shape) * 255).to(dtype) if dtype == torch.uint8 else torch.randn(shape).to(dtype)
    sigma, gain = torch.tensor([1.5, 6.0], dtype=accumulated), torch.tensor([0.5, 0.9], dtype=accumulated)
    kernel_size = torch.tensor([9, 31], dtype=torch.int32)
    fixation = torch.tensor([[20.0, 3.0], [0.0, 36.0]], dtype=accumulated)
    mean, std = torch.rand(3, dtype=accumulated), 1 + torch.rand(3, dtype=accumulated)
    normalised = dtype in (torch.float16, torch.float64)
    backward = dtype.is_floating_point
    if backward:
        images.requires_grad_()
        sigma.requires_grad_()
        gain.requires_grad_()
    options = {"mean": mean, "std": std} if normalised else {}
    options |= {"kernel_size": kernel_size, "gain": gain, "fixation": fixation, "border": border, "falloff": "exp"}
    expected = fovblur.foveated_blur(images, sigma, decay=3.0, backend="cpu", **options)
    grad = torch.randn(shape).to(expected.dtype)
    arrays = {"images": images, "sigma": sigma, "gain": gain, "kernel_size": kernel_size, "fixation": fixation}
    arrays |= {"mean": mean, "std": std, "grad": grad}
    dtypes = (DTYPES.index(dtype), DTYPES.index(expected.dtype))
    choice = (BORDERS.index(border), FALLOFFS.index("exp"), 3.0)
    read = run(arrays, "blur", *shape, *dtypes, *choice, 3, normalised, backward)
    close(read("blurred", expected), expected)
    if backward:
        leaves = (images, sigma, gain)
        names = ("grad_images", "grad_sigma", "grad_gain")
        for name, value in zip(names, torch.autograd.grad(expected, leaves, grad)):
            close(read(name, value), value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 64, 101])
def test_similarity_and_topk(run, dtype, width, seed):
    names = ("brain_image", "image", "brain_text", "text")
    rows = [torch.randn(count, width, dtype=torch.float64).to(dtype) for count in (70, 131, 70, 131)]
    read = run(dict(zip(names, rows)), "similarity", 70, 131, width, DTYPES.index(dtype), 5, 3)
    scores = fovblur.enhanced_similarity(*rows, backend="cpu")
    close(read("scores", scores), scores)
    values, indices = fovblur.enhanced_topk(*rows, 5, backend="cpu")
    close(read("values", values), values)
    assert (read("indices", indices) == indices).double().mean() > 0.99  # others are ties up to rounding
