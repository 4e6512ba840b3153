"""What the CUDA forms cost by count: one block or more of each form runs in the PTX interpreter.

    python scripts/gpu/counts.py [PART OF A NAME]

prints the forms whose names contain it. Needs nvcc.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "scripts")]

import torch  # noqa: E402
from gpu.cards import CARDS, Rates  # noqa: E402
from gpu.cuda import demangled  # noqa: E402
from ptx import device as ptx_device  # noqa: E402
from ptx.device import Called, Card, Device  # noqa: E402
from torch import Tensor  # noqa: E402

from fovblur.enhanced_similarity.params import Inputs  # noqa: E402
from fovblur.foveated_blur.params import BlurGradients, BlurParams  # noqa: E402

BATCH, CHANNELS, SIDE = 1024, 3, 224
RECORDINGS, IMAGES, WIDTH = 16_384, 16_384, 1024
QUERIES, GALLERY = 1024, 16_384
TILE = 128  # recordings and images of a block
COUNTED = 1024  # recordings of the matrix that is counted for the large one, and two tiles for each multiprocessor
OUTPUTS = 256  # that instructions are given for
OF_CARD: dict[int, Card] = {86: ptx_device.RTX_3080, 80: ptx_device.A100, 90: ptx_device.H100}


@dataclass(frozen=True)
class Form:
    """A call whose kernels are counted; `outputs` elements, of which a copy would move `bytes`.

    `counted` is the number of outputs of the call on a card, by default all; the rest are taken to cost as much.
    """

    name: str
    call: Callable[[Device], None]
    outputs: int
    bytes: int
    tf32: bool = False
    counted: Callable[[Card], int] | None = None


def blur(name: str, source: torch.dtype, result: torch.dtype, size: int, what: str, border: str = "reflect") -> Form:
    """Describe a blur of 1024 x 3 x 224 x 224; `what` is forward, images (their gradient) or parameters."""
    shape = (BATCH, CHANNELS, SIDE, SIDE)

    def batch(dtype: torch.dtype) -> Tensor:  # one sample, seen 1024 times: addresses differ in nothing that counts
        one = torch.rand(1, *shape[1:])
        return (one.mul(255).to(dtype) if dtype == torch.uint8 else one.to(dtype)).expand(shape)

    def call(device: Device) -> None:
        of_one = lambda *values: torch.tensor([values]).expand(BATCH, -1)  # noqa: E731
        sigma, gain, fixation = torch.full((BATCH,), size / 6), torch.full((BATCH,), 0.5), of_one(112.0, 112.0)
        kernel_size = torch.full((BATCH,), size, dtype=torch.int32)
        normalised = source == torch.uint8 and result != torch.uint8
        mean, std = (torch.full((CHANNELS,), value) if normalised else None for value in (0.5, 0.25))
        params = BlurParams(sigma, kernel_size, gain, fixation, mean, std, None, "exp", 3.0, border)
        images = batch(source)
        if what == "forward":
            device.forward(images, batch(result), params)
        elif what == "images":
            device.backward(batch(result), images, BlurGradients(batch(source), None, None), params)
        else:
            device.backward(batch(result), images, BlurGradients(None, torch.empty(BATCH), torch.empty(BATCH)), params)

    pixels = BATCH * CHANNELS * SIDE * SIDE
    moved = pixels * (source.itemsize + result.itemsize)
    label = {"forward": "blur", "images": "gradient of images", "parameters": "gradient of sigma and gain"}[what]
    return Form(f"{label}, {name}, k {size}", call, pixels, moved)


def similarity(dtype: torch.dtype, name: str, k: int = 0, tf32: bool = False) -> Form:
    """Describe a matrix or, with k, a top-k, with open gates."""
    recordings, images = (QUERIES, GALLERY) if k else (RECORDINGS, IMAGES)
    images_counted = lambda card: 2 * card.multiprocessors * TILE // (COUNTED // TILE)  # noqa: E731

    def call(device: Device) -> None:
        # rows overlap in memory, 16 bytes apart: as many different rows in little memory
        step = 16 // dtype.itemsize
        rows = lambda count: torch.randn(count * step + WIDTH).to(dtype).as_strided((count, WIDTH), (step, 1))  # noqa: E731
        n, m = (recordings, images) if k else (COUNTED, images_counted(device.card))
        inputs = Inputs(rows(n), rows(m), rows(n), rows(m), None, None)
        if k:
            device.topk(torch.empty(n, k), torch.empty(n, k, dtype=torch.int64), inputs)
        else:
            device.similarity(torch.empty(n, m, dtype=dtype), inputs)

    read = 2 * (recordings + images) * WIDTH * dtype.itemsize
    written = recordings * (12 * k if k else images * dtype.itemsize)
    what = f"top-{k}, {recordings:,} x {images:,}" if k else f"similarity, {recordings:,} x {images:,}"
    counted = None if k else lambda card: COUNTED * images_counted(card)
    return Form(f"{what} x {WIDTH}, {name}", call, recordings * images, read + written, tf32, counted)


def forms() -> list[Form]:
    u8, f16, bf16, f32 = torch.uint8, torch.float16, torch.bfloat16, torch.float32
    blurs = []
    for size in (51, 101):
        for name, source, result in (
            ("float16", f16, f16), ("bfloat16", bf16, bf16), ("uint8 to float16", u8, f16), ("uint8", u8, u8),
            ("float32", f32, f32),
        ):  # fmt: skip
            blurs.append(blur(name, source, result, size, "forward"))
            if source != u8:
                blurs.append(blur(name, source, result, size, "images"))
            if result != u8:
                blurs.append(blur(name, source, result, size, "parameters"))
    blurs += [
        blur("float32, symmetric border", f32, f32, 51, what, "symmetric")
        for what in ("forward", "images", "parameters")
    ]
    scores = [
        similarity(dtype, name, k, tf32)
        for k in (0, 10)
        for dtype, name, tf32 in ((f16, "float16", False), (f32, "float32", False), (f32, "float32, tf32", True))
    ]
    return blurs + scores


@dataclass(frozen=True)
class Cost:
    """Counts of a call, scaled from the blocks that ran to all of them."""

    instructions: dict[str, float]  # of warps, by class
    products: dict[str, float]  # multiplications and additions on tensor cores by operand
    sectors: float
    wavefronts: float
    by_line: dict[
        str, dict[tuple[str, int], tuple[int, float]]
    ]  # of kernels: PTX instructions of a line, and issued ones

    @property
    def issued(self) -> float:
        return sum(self.instructions.values())

    def machine_instructions(self, machine_lines: dict, architecture: int) -> float:
        """Estimate issued machine instructions: those of a line are issued as often as the line's PTX is."""
        total = 0.0
        for kernel, lines in self.by_line.items():
            mean = sum(issued for _, issued in lines.values()) / sum(written for written, _ in lines.values())
            for place, count in machine_lines[demangled([kernel])[0], architecture].items():
                written, issued = lines.get(place, (0, 0.0))
                total += count * (issued / written if written else mean)
        return total

    def seconds(self, form: Form, card: Rates, machine: float | None) -> dict[str, float]:
        """Return the least time of each unit of a card; the largest is the estimate."""
        return {
            "issue": (self.issued if machine is None else machine) / card.issue,
            "tensor": sum(count / card.tensor[kind] for kind, count in self.products.items()),
            "FMA": self.instructions.get("fma", 0) / card.fma,
            "shared memory": self.wavefronts / card.wavefronts,
            "device memory": form.bytes / card.bytes,
        }


def first_blocks(called: Called) -> range:
    """Choose the blocks of one sample, or one block of a grid that is smaller than the batch."""
    return range(max(called.blocks // BATCH, 1))


def launches(form: Form, target: Path, card: Card, blocks: Callable[[Called], Sequence[int]]) -> Device:
    """Return a device that has done a form's call and run some blocks of each launch."""
    device = Device(target, card, checks=False, traffic=True)
    device.choose_blocks = blocks
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if form.tf32 else "highest")
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # how often a top-k inserts depends on the scores
            form.call(device)
    finally:
        torch.set_float32_matmul_precision(before)
    return device


def cost(device: Device, larger: float) -> Cost:
    """Return what the device's launches cost, scaled to all blocks and to a call that is larger by a factor."""
    instructions, products, by_line = Counter(), Counter(), {}
    sectors = wavefronts = 0.0
    for called in device.launches:
        kernel, files = device.kernel(called)
        counts = called.counts
        scale = larger * called.blocks / counts.blocks
        for name, count in counts.classes(kernel).items():
            instructions[name] += scale * count
        lines = by_line.setdefault(called.kernel, {})
        for instruction, visits in zip(kernel.code, counts.visits):
            place = Path(files.get(instruction.source[0], "")).name, instruction.source[1]
            written, issued = lines.get(place, (0, 0.0))
            lines[place] = written + 1, issued + scale * visits
            if instruction.opcode[0] == "mma":
                rows, columns, depth = map(int, re.search(r"m(\d+)n(\d+)k(\d+)", instruction.text).groups())
                products[instruction.opcode[-3]] += scale * visits * 2 * rows * columns * depth
        sectors += scale * sum(counts.sectors.values())
        wavefronts += scale * sum(counts.wavefronts.values())
    return Cost(dict(instructions), dict(products), sectors, wavefronts, by_line)


def costs(target: Path, machine_lines: dict | None = None, part: str = "") -> Iterator[dict]:
    """Yield a row for each form and card.

    Args:
        target: The module that :func:`ptx.device.build` made.
        machine_lines: Counters of machine instructions by (file, line), by readable kernel name and architecture.
        part: Of the names of the forms to count.
    """
    for form in forms():
        known: list[tuple] = []  # costs of the form on earlier cards
        for card in CARDS if part in form.name else ():
            calls = launches(form, target, OF_CARD[card.architecture], lambda called: ())
            code = [(called.kernel, called.grid, calls.kernel(called)[0].code) for called in calls.launches]
            found = next((cost for other, cost in known if other == code), None)
            if found is None:
                asked = OF_CARD[card.architecture]
                larger = form.outputs / form.counted(asked) if form.counted else 1.0
                found = cost(launches(form, target, asked, first_blocks), larger)
                known.append((code, found))
            yield described(form, card, found, machine_lines)


def described(form: Form, card: Rates, found: Cost, machine_lines: dict | None) -> dict:
    """Return a row of the table of estimates."""
    machine = (
        None
        if machine_lines is None
        else found.machine_instructions(machine_lines, 86 if card.architecture == 80 else card.architecture)
    )
    seconds = found.seconds(form, card, machine)
    bound = max(seconds, key=seconds.get)
    per = OUTPUTS / form.outputs
    return {
        "form": form.name, "card": card.name, "estimate": True,
        "kernels": list(dict(zip(found.by_line, demangled(list(found.by_line)))).values()),
        "ptx_instructions": round(found.issued * per, 1),
        "machine_instructions": None if machine is None else round(machine * per, 1),
        "classes": {name: round(count * per, 1) for name, count in sorted(found.instructions.items())},
        "sectors_of_ideal": round(32 * found.sectors / form.bytes, 2), "wavefronts": round(found.wavefronts * per, 1),
        "seconds": {name: float(f"{value:.3g}") for name, value in seconds.items()},
        "bound": bound, "copy_s": float(f"{form.bytes / card.bytes:.3g}"),
    }  # fmt: skip


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        target = ptx_device.build(Path(folder))
        for row in costs(target, part=sys.argv[1] if len(sys.argv) > 1 else ""):
            print(f"{row['form']}, {row['card']}: {', '.join(row['kernels'])}")
            classes = ", ".join(f"{name} {count}" for name, count in row["classes"].items())
            times = ", ".join(f"{name} {1e3 * value:.2f}" for name, value in row["seconds"].items())
            print(f"  PTX instructions of warps per {OUTPUTS} outputs: {row['ptx_instructions']} ({classes})")
            print(f"  sectors {row['sectors_of_ideal']} x the ideal bytes, wavefronts {row['wavefronts']}")
            print(f"  estimated ms, issue by PTX instructions: {times}; copy {1e3 * row['copy_s']:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
