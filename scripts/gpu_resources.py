"""Compile every kernel that the library would launch, for GPUs that need not be there, and write down what each of them uses:

    python scripts/gpu_resources.py

Writes docs/gpu_resources.md, docs/gpu_roofline.png and benchmarks/results/gpu_resources.json. Takes nvcc, and some minutes on
two cores. Occupancy is computed and the roofline is an estimate: nothing in any of the three was measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from gpu import cuda, roofline
from gpu.occupancy import MULTIPROCESSORS, occupancy

from bvsa_core.io.atomic import write_atomically

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "gpu_resources.md"
FIGURE = ROOT / "docs" / "gpu_roofline.png"
KEPT = ROOT / "benchmarks" / "results" / "gpu_resources.json"
NOTHING_MEASURED = "Compiled, not run: no figure here was measured on a GPU."
BACKENDS = ("cuda", "triton")
COLUMNS = (
    "kernel", "threads", "registers", "spilled bytes", "shared memory / bytes", "blocks", "occupancy / %", "limited by",
    "matrix", "FFMA", "LDG.128", "LDGSTS.128", "other LDG", "STG.128", "other STG",
)  # fmt: skip
NOTES = """\
`blocks` are those that a multiprocessor holds at once, `occupancy` the share of its warps that they fill, both computed from
registers (handed to a warp by 256), shared memory (by 128 bytes, with 1 KB a block for the driver), threads and the most blocks of the
architecture. Shared memory is static + dynamic, the latter as the launch code asks for it. Instructions are counted in the machine
code, loops once: `matrix` are HMMA, and HGMMA of whole warp groups; beside the loads and stores of 16 bytes stand those for the border
of images and for inputs that are not aligned, which common calls do not reach. Eight uint8 pixels are LDG.64. `blur_direct` and
`blur_parameter_gradient` read pixel by pixel, neighbouring threads neighbouring pixels.

Triton compiles for what it is called with: here normalised images with falloff `exp`, open gates, and inputs that are contiguous and
aligned to 16 bytes. Other falloffs, strides and sizes make kernels of the same tiles that are not in the table. Its `similarity` stores
the matrix a number at a time, since its compiler does not know how long rows are.

Where few blocks share a multiprocessor this is meant:

- `similarity_scores` and Triton's `similarity` and `topk` keep one or two tiles of sums in registers (128 x 128 each in CUDA: 128
  registers of each of 256 threads), which divides how often operands are read; copies to shared memory run three steps ahead in place
  of more warps.
- `blur_products` keeps taps and the filtered rows of 2 D + 1 chunks in registers, so that nothing but pixels passes through shared
  memory. The next step, four blocks, is at 128 registers; for float32, whose operands take two registers each, three blocks are at 168.
- `blur_direct` has three blocks since its registers were bounded to 80; a fourth would want 64. `blur_parameter_gradient` filters with
  two kernels at once and is held at two blocks by registers and shared memory alike."""


def collect(backends: Iterable[str], architectures: tuple[int, ...]) -> dict:
    """Versions of the compilers, and a row for every kernel and architecture."""
    versions, rows, pending = {}, [], None
    if "triton" in backends:
        from gpu import triton_kernels

        versions["triton"] = triton_kernels.triton.__version__
        pending = triton_kernels.kernels(architectures)
    if "cuda" in backends:
        versions["nvcc"] = cuda.nvcc_version()
        rows += cuda.kernels(architectures)
    rows += pending() if pending else []
    for row in rows:
        shared = row["static_shared"] + row["dynamic_shared"]
        row |= occupancy(row["architecture"], row["threads"], row["registers"], shared)
    estimates = [roofline.described(estimate) for estimate in roofline.ESTIMATES]
    return {"note": NOTHING_MEASURED, "versions": versions, "kernels": rows, "estimates": estimates}


def as_json(found: dict) -> str:
    """A line for every kernel, so that a change of one shows as one."""
    lists = {name: ",\n".join(f"  {json.dumps(row)}" for row in found[name]) for name in ("kernels", "estimates")}
    head = "".join(f' "{name}": {json.dumps(found[name])},\n' for name in ("note", "versions"))
    return "{\n" + head + ",\n".join(f' "{name}": [\n{rows}\n ]' for name, rows in lists.items()) + "\n}\n"


def markdown(found: dict) -> str:
    made_by = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    parts = [
        "# What the GPU kernels use",
        f"{NOTHING_MEASURED} Made by `python scripts/gpu_resources.py` with {made_by}.",
        NOTES,
    ]
    for backend in BACKENDS:
        for architecture in MULTIPROCESSORS:
            rows = [row for row in found["kernels"] if (row["backend"], row["architecture"]) == (backend, architecture)]
            parts += [f"## {backend}, sm_{architecture}", table(COLUMNS, map(cells_of, rows))]
    calls = {row["kernel"]: "; ".join(row["calls"]) for row in found["kernels"] if row["backend"] == "cuda"}
    parts += [
        "## Which calls launch which CUDA kernel",
        table(("kernel", "calls"), ((f"`{name}`", what) for name, what in calls.items())),
    ]
    parts += [
        f"## Limits of an {roofline.GPU}: an estimate",
        roofline_text(),
        f"![Roofline, an estimate]({FIGURE.name})",
    ]
    return "\n\n".join(parts) + "\n"


def cells_of(row: dict) -> list[str]:
    mix = row["instructions"]
    others = lambda name: sum(
        count for kind, count in mix.items() if kind.startswith(f"{name}.") and kind != f"{name}.128"
    )  # noqa: E731
    matrix = ", ".join(f"{mix[name]} {name}" for name in ("HMMA", "HGMMA") if name in mix)
    name = f"`{row['kernel']}`" if row["backend"] == "cuda" else f"{row['kernel']}: {row['configuration']}"
    values = (
        row["threads"], row["registers"], row["spill_stores"] + row["spill_loads"], f"{row['static_shared']:,} + {row['dynamic_shared']:,}",
        row["blocks"], f"{100 * row['occupancy']:.0f}", ", ".join(row["limited_by"]), matrix or "none", mix.get("FFMA", 0),
        mix.get("LDG.128", 0), mix.get("LDGSTS.128", 0), others("LDG"), mix.get("STG.128", 0), others("STG"),
    )  # fmt: skip
    return [name, *map(str, values)]


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(columns)
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def roofline_text() -> str:
    columns = ("case", "GB", "G operations", "memory / ms", "arithmetic / ms", "limit / ms (estimate)")
    rows = [
        (e.case, f"{e.bytes / 1e9:.2f}", f"{e.operations / 1e9:.1f}", f"{1e3 * e.memory_s:.2f}", f"{1e3 * e.arithmetic_s:.2f}",
         f"{1e3 * e.limit_s:.2f}, by {e.bound}")
        for e in roofline.ESTIMATES
    ]  # fmt: skip
    rates = ", ".join(f"{rate / 1e12:.1f} T operations a second in {unit}" for unit, rate in roofline.RATES.items())
    about = f"An estimate from published rates: {roofline.BYTES_A_SECOND / 1e9:.0f} GB a second, {rates} ({roofline.SOURCE})."
    return f"{about} A kernel reaches less.\n\n{table(columns, rows)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python scripts/gpu_resources.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write this file alone")
    parser.add_argument("--only", choices=BACKENDS, help="one backend; with --json")
    chosen = parser.parse_args()
    backends = (chosen.only,) if chosen.only else BACKENDS
    if chosen.only and not chosen.json:
        parser.error("--only: the table shows both backends; name a file with --json")
    if chosen.json and not chosen.json.parent.is_dir():
        parser.error(f"--json: {chosen.json.parent} is no folder; make it first")
    if "cuda" in backends and cuda.nvcc() is None:
        parser.error("nvcc is not on PATH; install the CUDA toolkit, or choose --only triton --json FILE")
    found = collect(backends, tuple(MULTIPROCESSORS))
    if chosen.json:
        write_atomically(chosen.json, as_json(found).encode())
        return 0
    write_atomically(KEPT, as_json(found).encode())
    write_atomically(TABLE, markdown(found).encode())
    roofline.draw(FIGURE)
    print(f"written: {KEPT}, {TABLE}, {FIGURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
