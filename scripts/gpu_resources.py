"""Compile every kernel that the library would launch, without a GPU, and write the resources that each of them uses.

    python scripts/gpu_resources.py

Writes docs/gpu_resources.md, docs/gpu_roofline.png and benchmarks/results/gpu_resources.json. Needs nvcc, and some
minutes on two cores. Occupancy is computed and the roofline is an estimate: nothing was measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from gpu import cuda, roofline
from gpu.cards import CARDS
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
`blocks` is the number of blocks that a multiprocessor holds at once, `occupancy` the share of its warps that they
fill. Both are computed from registers (allocated to a warp by 256), shared memory (by 128 bytes, with 1 KB per block
for the driver), threads, and the architecture's limit of blocks. Shared memory is static + dynamic, the latter as the
launch code requests it. Instructions are counted in the machine code, loops once; `matrix` is HMMA, or HGMMA of whole
warp groups. Narrow loads and stores beside those of 16 bytes serve the border of images and unaligned inputs; common
calls do not reach them. `blur_direct` and `blur_parameter_gradient` read pixel by pixel, neighbouring threads
neighbouring pixels.

Triton specialises kernels to their arguments: here normalised images with falloff `exp`, open gates, and inputs that
are contiguous and aligned to 16 bytes. Other falloffs, strides and sizes compile kernels with the same tiles that are
not in the table. Its `similarity` and `topk` load by descriptors on sm_90 (four stages, steps of 128 bytes a row) and
by pointers elsewhere, and for rows that descriptors do not take. A tile with a cut column is stored one number at a
time. `general_blur`, `general_gradient` and `blend` serve borders, axes, tables and weight maps, and the retinal blur;
here with the border `symmetric`, a sigma for each axis and a map, for float16 and float32.

Where few blocks share a multiprocessor, this is intended:

- `similarity_scores` and Triton's `similarity` and `topk` keep one or two tiles of sums in registers (128 x 128 each
  in CUDA: 128 registers of each of 256 threads), which divides how often operands are read. Copies to shared memory
  run three steps ahead in place of more warps. A block stays for several tiles; `true` marks the form that copies whole
  rows by 16 bytes, `false` the one that reads element by element.
- Triton's `blur` of float32 keeps its taps, in two parts, in shared memory.
- `blur_products` filters whole rows of images up to 256 pixels wide: a block of 16 warps with 128 registers each fills
  a multiprocessor. What its warps share is read from shared memory where it is needed, so that nothing is spilled.
- `parameter_products` has as many warps, and filters columns first, straight from the copied rows: filtered columns
  pass through shared memory and take no registers. For radii above 32 it does wide images in parts of their columns.
- `blur_direct` and `blur_parameter_gradient` take nearly all the shared memory that sm_86 has for large images: a wide
  ring of filtered rows means that few margins are read. sm_90 holds two such blocks.
- `blur_general` and `parameter_gradient_general` take the options that the other forms do not: borders, a sigma for
  each axis, weight maps, OpenCV's tables, and lists of images. They and `blend_levels`, the retinal blur, filter tiles
  of 64 x 64 in float32 whatever the type of the images, so that margins are read and filtered more often.
- `blur_split` keeps filtered rows in registers in two parts each, and in shared memory rows as they are and operands.
  Two blocks of eight warps share a multiprocessor of sm_80 and sm_90, for which it is."""

LIMITS = """\
Worked out from the counts above, for 1024 x 3 x 224 x 224 and a kernel of 51 unless another is named; not built.

- Gradients of sigma and gain of float32 on sm_80 and sm_90, as split products. For 256 pixels the 16-bit form takes 50
  products: five tiles of taps, in two halves, by two filters of the columns and three of the rows. Split in three they
  are 150 (1.2 ms on an A100, 0.4 ms on an H100). Operands, filtered columns and taps in two parts double its 199
  wavefronts and splitting adds about 30: 430, or 1.7 and 1.1 ms, which would be the bound, since some 930 instructions
  take 0.9 and 0.6 ms. The direct form takes 4.3 and 1.9 ms, the blur 0.9 and 0.6 ms. Whole rows need about 173 KB:
  three stages of 32 rows of operands (89), filtered columns of one tile of rows (30), tiles of taps (20), pixels on
  their way (29), tables (5). sm_90 has that. On sm_80 a block has 163 KB: strips of half the width filter the columns
  of nine tiles for seven, which makes it 1.9 ms. So about 1.9 times the blur on an H100, and 2.1 times on an A100.
- `blur_split` for radii above 32. Nine tiles of taps keep 72 registers of filtered rows in two parts, of 128 that two
  blocks leave to a thread, and rows until they are finished, four tiles later, 116 KB of shared memory of 80. So those
  radii take its direct form, which walks down the strip of the block. That is half an image of 224 columns, with its
  margins, so that at a kernel of 101 it multiplies 1.13 times as often as `blur_direct`, which has whole rows.
- `blur_direct` reads each float32 twice, for the filter and for the blend, and again the columns that the border
  mirrors; for odd radii its warps start within a sector. Copies of 16 bytes would ask for the same sectors as warps
  that start with one, 1.65 times the bytes in place of 1.74. That start made `blur_split` spill on sm_90, and saves no
  time where issue is the bound."""

UNITS = ("issue", "tensor", "FMA", "shared memory", "device memory")
COST_COLUMNS = (
    "form", "machine instructions", "PTX", "mma", "fma", "mufu", "sectors / ideal", "wavefronts",
    *(f"{unit} / ms" for unit in UNITS), "estimate / ms", "copy / ms",
)  # fmt: skip
TRITON_COLUMNS = ("kernel", "card", "kernel sizes", "machine instructions", "issue / ms")
COSTS = """\
Estimates: no figure here was measured on a GPU. Blurs are of 1024 x 3 x 224 x 224. The blocks of one sample, or one
block of a small grid, run in an interpreter of what nvcc compiled (`tests/support/ptx`), launched by the library's own
host code. Instructions are those that warps issue for 256 outputs: in PTX counted, in machine code estimated from the
PTX of the same source lines (sm_86's for the A100). `mma`, `fma` and `mufu` are PTX instructions on tensor cores, in
float arithmetic, and of special functions. `sectors / ideal` are the bytes of all 32-byte sectors that warps ask for,
relative to those that a call must read and write once; a cache may serve the rest. `wavefronts` are turns of shared
memory, for 256 outputs.

Times are the least that each unit of a card would take at its published rate (`scripts/gpu/cards.py` has the rates and
their sources). The largest is the estimate; a kernel reaches less. `copy` is the time of a copy of the same bytes."""


def collect(backends: Iterable[str], architectures: tuple[int, ...], with_costs: bool) -> dict:
    """Return versions of the compilers, a row for every kernel and architecture, and the costs of the CUDA forms."""
    versions, rows, pending = {}, [], None
    if "triton" in backends:
        from gpu import triton_kernels

        versions["triton"] = triton_kernels.triton.__version__
        pending = triton_kernels.kernels(architectures)
    if "cuda" in backends:
        versions["nvcc"] = cuda.nvcc_version()
        rows += cuda.kernels(architectures)
    lines = {(row["kernel"], row["architecture"]): row.pop("lines") for row in rows}
    rows += pending() if pending else []
    for row in rows:
        shared = row["static_shared"] + row["dynamic_shared"]
        row |= occupancy(row["architecture"], row["threads"], row["registers"], shared)
    estimates = [roofline.described(estimate) for estimate in roofline.ESTIMATES]
    resources = {"note": NOTHING_MEASURED, "versions": versions, "kernels": rows, "estimates": estimates}
    if with_costs:
        from gpu import counts

        with tempfile.TemporaryDirectory() as folder:
            resources["costs"] = list(counts.costs(counts.ptx_device.build(Path(folder)), lines))
    return resources


def as_json(resources: dict) -> str:
    """Format one line per kernel, so that a change of one kernel changes one line."""
    names = [name for name in ("kernels", "estimates", "costs") if name in resources]
    lists = {name: ",\n".join(f"  {json.dumps(row)}" for row in resources[name]) for name in names}
    head = "".join(f' "{name}": {json.dumps(resources[name])},\n' for name in ("note", "versions"))
    return "{\n" + head + ",\n".join(f' "{name}": [\n{rows}\n ]' for name, rows in lists.items()) + "\n}\n"


def markdown(resources: dict) -> str:
    """Return the text of docs/gpu_resources.md."""
    made_by = ", ".join(f"{name} {version}" for name, version in resources["versions"].items())
    parts = [
        "# What the GPU kernels use",
        f"{NOTHING_MEASURED} Made by `python scripts/gpu_resources.py` with {made_by}.",
        NOTES,
    ]
    for backend in BACKENDS:
        for architecture in MULTIPROCESSORS:
            identity = (backend, architecture)
            rows = [row for row in resources["kernels"] if (row["backend"], row["architecture"]) == identity]
            parts += [f"## {backend}, sm_{architecture}", table(COLUMNS, map(cells_of, rows))]
    calls = {row["kernel"]: "; ".join(row["calls"]) for row in resources["kernels"] if row["backend"] == "cuda"}
    parts += [
        "## Which calls launch which CUDA kernel",
        table(("kernel", "calls"), ((f"`{name}`", what) for name, what in calls.items())),
    ]
    parts += ["## What the CUDA forms cost: estimates", COSTS]
    for card in CARDS:
        rows = [row for row in resources["costs"] if row["card"] == card.name]
        parts += [f"### {card.name}, sm_{card.architecture}", table(COST_COLUMNS, map(cost_cells, rows))]
    if rows := list(triton_costs(resources["kernels"])):
        parts += ["### Triton's blurs, by machine instructions that are issued", table(TRITON_COLUMNS, rows)]
    parts += ["## What limits the forms: estimates", LIMITS]
    parts += [
        f"## Limits of an {roofline.GPU}: an estimate",
        roofline_text(),
        f"![Roofline, an estimate]({FIGURE.name})",
    ]
    return "\n\n".join(parts) + "\n"


def cells_of(row: dict) -> list[str]:
    mix = row["instructions"]
    others = lambda name: sum(n for kind, n in mix.items() if re.match(rf"{name}\.(?!128$)", kind))  # noqa: E731
    matrix = ", ".join(f"{mix[name]} {name}" for name in ("HMMA", "HGMMA") if name in mix)
    name = f"`{row['kernel']}`" if row["backend"] == "cuda" else f"{row['kernel']}: {row['configuration']}"
    values = (
        row["threads"], row["registers"], row["spill_stores"] + row["spill_loads"],
        f"{row['static_shared']:,} + {row['dynamic_shared']:,}", row["blocks"], f"{100 * row['occupancy']:.0f}",
        ", ".join(row["limited_by"]), matrix or "none", mix.get("FFMA", 0),
        mix.get("LDG.128", 0), mix.get("LDGSTS.128", 0), others("LDG"), mix.get("STG.128", 0), others("STG"),
    )  # fmt: skip
    return [name, *map(str, values)]


def cost_cells(row: dict) -> list[str]:
    classes, seconds = row["classes"], row["seconds"]
    estimate = seconds[row["bound"]]
    return [
        row["form"], f"{row['machine_instructions']:.0f}", f"{row['ptx_instructions']:.0f}",
        *(f"{classes.get(name, 0):.1f}" for name in ("mma", "fma", "mufu")),
        f"{row['sectors_of_ideal']:.2f}", f"{row['wavefronts']:.1f}",
        *(f"{1e3 * seconds[name]:.2f}" for name in UNITS),
        f"{1e3 * estimate:.2f}, by {row['bound']}", f"{1e3 * row['copy_s']:.2f}",
    ]  # fmt: skip


def triton_costs(kernels: Iterable[dict]) -> Iterator[list[str]]:
    """Yield cells of the Triton forms whose issued instructions are estimated; counts has the sizes of the batch."""
    from gpu.counts import BATCH, CHANNELS, OUTPUTS, SIDE

    units = BATCH * CHANNELS * SIDE * SIDE / OUTPUTS
    for row in kernels:
        for sizes, count in row.get("instructions_of_256", {}).items():
            for card in CARDS:
                if card.architecture == row["architecture"]:
                    issue = f"{1e3 * count * units / card.issue:.2f}"
                    yield [f"{row['kernel']}: {row['configuration']}", card.name, sizes, str(count), issue]


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(columns)
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def roofline_text() -> str:
    columns = ("case", "GB", "G operations", "memory / ms", "arithmetic / ms", "limit / ms (estimate)")
    rows = [
        (e.case, f"{e.bytes / 1e9:.2f}", f"{e.operations / 1e9:.1f}", f"{1e3 * e.memory_s:.2f}",
         f"{1e3 * e.arithmetic_s:.2f}", f"{1e3 * e.limit_s:.2f}, by {e.bound}")
        for e in roofline.ESTIMATES
    ]  # fmt: skip
    rates = ", ".join(f"{rate / 1e12:.1f} T operations a second in {unit}" for unit, rate in roofline.RATES.items())
    rates = f"{roofline.BYTES_A_SECOND / 1e9:.0f} GB a second, {rates}"
    about = f"An estimate from published rates: {rates} ({roofline.SOURCE}). A kernel reaches less."
    return f"{about}\n\n{table(columns, rows)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python scripts/gpu_resources.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write only this file")
    parser.add_argument("--only", choices=BACKENDS, help="one backend; with --json")
    chosen = parser.parse_args()
    backends = (chosen.only,) if chosen.only else BACKENDS
    if chosen.only and not chosen.json:
        parser.error("--only: the table shows both backends; name a file with --json")
    if chosen.json and not chosen.json.parent.is_dir():
        parser.error(f"--json: {chosen.json.parent} is no folder; make it first")
    if "cuda" in backends and cuda.nvcc() is None:
        parser.error("nvcc is not on PATH; install the CUDA toolkit, or choose --only triton --json FILE")
    resources = collect(backends, tuple(MULTIPROCESSORS), with_costs=not chosen.json)
    if chosen.json:
        write_atomically(chosen.json, as_json(resources).encode())
        return 0
    write_atomically(KEPT, as_json(resources).encode())
    write_atomically(TABLE, markdown(resources).encode())
    roofline.draw(FIGURE)
    print(f"written: {KEPT}, {TABLE}, {FIGURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
