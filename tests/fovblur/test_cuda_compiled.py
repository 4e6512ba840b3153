"""What ptxas reports of the CUDA kernels for the architectures they ship for, and which instructions it chose."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import triton

CUOBJDUMP_OF_TRITON = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
CSRC = Path(__file__).parents[2] / "csrc"
# Blocks that share a multiprocessor. The similarity's two tiles of 128 x 128 sums take 128 registers of each of 256 threads, which
# leaves room for one; its shared memory is dynamic and bounded where it is launched.
RESIDENT = {"foveated_blur": 2, "enhanced_similarity": 1}
ARCHITECTURES = (86, 90)
REGISTERS_OF_A_MULTIPROCESSOR = 65_536
SHARED_BYTES = {86: (101_376, 102_400), 90: (232_448, 233_472)}  # of a block, of a multiprocessor
RESERVED_BYTES = 1024  # of shared memory, for each resident block

# By the mangled type of the source: the matrix product of the kernel, and the widest load that eight pixels allow.
BLUR_PRODUCTS = {
    "h": ("HMMA.16816.F32", "LDG.E.64"),
    "NS_4HalfE": ("HMMA.16816.F32", "LDG.E.128"),
    "NS_8BFloat16E": ("HMMA.16816.F32.BF16", "LDG.E.128"),
    "f": ("HMMA.1688.F32.TF32", "LDG.E.128"),
}
# By the mangled type of the products: how they multiply and load their operands from shared memory.
SIMILARITY_PRODUCTS = {
    "MatrixProductsINS_4HalfE": ("HMMA.16816.F32", "LDSM.16.M88.4"),
    "MatrixProductsINS_8BFloat16E": ("HMMA.16816.F32.BF16", "LDSM.16.M88.4"),
    "MatrixProductsIf": ("HMMA.1688.F32.TF32", "LDSM.16.M88.4"),
    "ExactProducts": ("FFMA", "LDS.128"),
}

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """compiled(op, architecture): ptxas's report, and the directory of kernels.cubin. All are compiled side by side."""

    def compile_for(op: str, architecture: int, directory: Path) -> tuple[dict[str, dict[str, int]], Path]:
        target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        options = ["-std=c++17", "-O3", target, "-Xptxas=-v", "--keep", f"--keep-dir={directory}", "-cubin"]
        command = ["nvcc", *options, "-o", str(directory / "kernels.cubin"), str(CSRC / op / "cuda.cu")]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        (assembly,) = directory.glob("*.ptx")
        return resources(report, assembly.read_text()), directory

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wanted = [(op, architecture) for architecture in ARCHITECTURES for op in RESIDENT]
        results = {key: pool.submit(compile_for, *key, tmp_path_factory.mktemp("kernels")) for key in wanted}
        yield lambda op, architecture: results[op, architecture].result()


def resources(report: str, assembly: str) -> dict[str, dict[str, int]]:
    """Threads, registers, shared memory, stack and spills of every kernel, as PTX declares and ptxas -v prints them."""
    threads = dict(re.findall(r"\.entry (\w+)\([^{]*?\.maxntid (\d+)", assembly))
    kernels = {}
    for block in report.split("Compiling entry function '")[1:]:
        number = lambda pattern: int((re.search(pattern, block) or [0, 0])[1])  # noqa: B023, E731
        name = block.split("'")[0]
        kernels[name] = {
            "threads": int(threads[name]),
            "registers": number(r"Used (\d+) registers"),
            "shared": number(r"(\d+) bytes smem"),
            "stack": number(r"(\d+) bytes stack frame"),
            "spills": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        }
    return kernels


def instructions_of(directory: Path) -> dict[str, set[str]]:
    """Those that occur in each kernel, with their suffixes."""
    cuobjdump = shutil.which("cuobjdump") or CUOBJDUMP_OF_TRITON
    command = [cuobjdump, "-sass", str(directory / "kernels.cubin")]
    functions = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("Function : ")[1:]
    return {text.split()[0]: set(re.findall(r"\s([A-Z][A-Z0-9]*(?:\.[A-Z0-9]+)*)\s", text)) for text in functions}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("op", RESIDENT)
def test_kernels_do_not_spill_and_share_a_multiprocessor(compiled, op, architecture):
    kernels, _ = compiled(op, architecture)
    assert kernels, "no kernel found in ptxas's report"
    of_block, of_multiprocessor = SHARED_BYTES[architecture]
    for name, used in kernels.items():
        assert used["stack"] == 0 and used["spills"] == 0, (name, used)
        assert used["shared"] <= of_block, (name, used)
        assert RESIDENT[op] * (used["shared"] + RESERVED_BYTES) <= of_multiprocessor, (name, used)
        registers = (used["registers"] + 7) // 8 * 8  # as they are handed out
        assert 0 < RESIDENT[op] * registers * used["threads"] <= REGISTERS_OF_A_MULTIPROCESSOR, (name, used)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_blur_uses_tensor_cores_and_wide_loads(compiled, architecture):
    kernels, directory = compiled("foveated_blur", architecture)
    instructions = instructions_of(directory)
    assert instructions.keys() == kernels.keys()
    products = {name: used for name, used in instructions.items() if "blur_products" in name}
    assert len(products) == 7  # four types of images, three of gradients
    for name, used in products.items():
        source = re.search(r"blur_productsI(h|f|NS_4HalfE|NS_8BFloat16E)", name)[1]
        for instruction in (*BLUR_PRODUCTS[source], "STG.E.128"):
            assert instruction in used, (name, instruction)
        assert source == "f" or any(instruction.startswith("LDSM") for instruction in used), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_similarity_uses_tensor_cores_and_wide_copies(compiled, architecture):
    kernels, directory = compiled("enhanced_similarity", architecture)
    instructions = instructions_of(directory)
    assert instructions.keys() == kernels.keys()
    scores = {name: used for name, used in instructions.items() if "similarity_scores" in name}
    assert len(scores) == 2 * len(SIMILARITY_PRODUCTS)  # stored, and ranked
    for name, used in scores.items():
        (expected,) = (wanted for products, wanted in SIMILARITY_PRODUCTS.items() if products in name)
        for instruction in (*expected, "LDGSTS.E.BYPASS.128.ZFILL", *(["STG.E.128"] if "Matrix" in name.split("Products")[1] else [])):
            assert instruction in used, (name, instruction)
