"""The native program that compute-sanitizer runs: its oracle and arguments, with the kernels compiled for the CPU."""

import subprocess
from pathlib import Path

import cuda_on_host
import pytest
from gpu_kernels import HAS_NVCC, WITHOUT_NVCC

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "benchmarks" / "gpu_native" / "main.cu"
PIXELS = 4000  # of the largest case; the kernels are slow on the CPU
FAULT = """
#include "foveated_blur/cuda.h"
namespace fovblur {
const char* faulty_blur(const BlurParams& params, const Images& out, void* stream) {
  const char* error = foveated_blur_cuda(params, out, stream);
  static_cast<unsigned char*>(out.data)[size_of(out.dtype) - 1] ^= 0x40;  // of the first pixel
  return error;
}
}
"""


def compile_for_cpu(source: Path, target: Path, *options: str) -> None:
    options = ("-std=c++17", "-O1", f"-I{cuda_on_host.HERE}", f"-I{cuda_on_host.CSRC}", *options)
    subprocess.run(["c++", *options, "-x", "c++", "-c", source, "-o", target], check=True)


def run(tmp_path: Path, kernels: Path, *objects: Path) -> subprocess.CompletedProcess:
    program = tmp_path / "native"
    ops = [path for op in ("foveated_blur", "enhanced_similarity") for path in kernels.glob(f"{op}_cuda*.o")]
    subprocess.run(["c++", *objects, *ops, "-o", program], check=True)
    return subprocess.run([program, str(PIXELS)], capture_output=True, text=True)


def test_results_agree_with_the_reference_and_an_injected_fault_is_detected(tmp_path, tmp_path_factory):
    kernels = tmp_path_factory.getbasetemp()
    cuda_on_host.build(kernels)
    compile_for_cpu(MAIN, tmp_path / "main.o")
    done = run(tmp_path, kernels, tmp_path / "main.o")
    assert done.returncode == 0 and done.stdout.endswith(" results, 0 wrong\n"), done.stdout

    (tmp_path / "fault.cpp").write_text(FAULT)
    compile_for_cpu(tmp_path / "fault.cpp", tmp_path / "fault.o")
    compile_for_cpu(MAIN, tmp_path / "main.o", "-Dfoveated_blur_cuda=faulty_blur")
    done = run(tmp_path, kernels, tmp_path / "main.o", tmp_path / "fault.o")
    assert done.returncode == 1 and "wrong: uint8 to float16" in done.stdout, done.stdout
    assert "gradient" not in done.stdout, done.stdout


@pytest.mark.skipif(not HAS_NVCC, reason=WITHOUT_NVCC)
@pytest.mark.parametrize("architecture", [86, 90])
def test_nvcc_compiles_it(tmp_path, architecture):
    options = ["-std=c++17", "-O2", "-lineinfo", f"-arch=sm_{architecture}", f"-I{cuda_on_host.CSRC}"]
    subprocess.run(["nvcc", *options, "-c", str(MAIN), "-o", str(tmp_path / "main.o")], check=True)
