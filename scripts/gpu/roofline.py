"""Limits of an RTX 3080 by its published rates: estimates, not measurements.

Bytes are those that a call must read and write once. Operations are those of the form that serves the case: the direct
separable form multiplies by every tap in both directions, the banded one by whole 16 x 16 tiles of taps.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from bvsa_core.io.atomic import write_atomically

GPU = "RTX 3080"
WHITEPAPER = "NVIDIA Ampere GA102 GPU Architecture, whitepaper, 2021"
SOURCE = f"{WHITEPAPER}: GeForce RTX 3080 10 GB at boost clock, dense, float32 sums"
BYTES_A_SECOND = 760e9
RATES = {"float32": 29.8e12, "float16": 59.5e12}  # multiplications and additions a second

BATCH, SIDE, KERNEL_SIZE = (1024, 3), 224, 51
PIXELS = BATCH[0] * BATCH[1] * SIDE * SIDE
TILE, STRIP_ROWS = 16, 256  # of the CUDA form


@dataclass(frozen=True)
class Estimate:
    """Bytes and operations of one case, and the least time that the published rates allow for each."""

    case: str
    unit: str  # which of RATES
    bytes: int
    operations: int

    @property
    def memory_s(self) -> float:
        return self.bytes / BYTES_A_SECOND

    @property
    def arithmetic_s(self) -> float:
        return self.operations / RATES[self.unit]

    @property
    def limit_s(self) -> float:
        return max(self.memory_s, self.arithmetic_s)

    @property
    def bound(self) -> str:
        return "memory" if self.memory_s >= self.arithmetic_s else "arithmetic"

    @property
    def intensity(self) -> float:
        return self.operations / self.bytes


def direct_operations() -> int:
    return 2 * 2 * KERNEL_SIZE * PIXELS


def banded_operations() -> int:
    """Count 2 D + 1 tiles of taps in both directions per tile of pixels; rows beyond a strip count along x too."""
    reach = -(-(KERNEL_SIZE // 2) // TILE)
    of_pass = 2 * (2 * reach + 1) * TILE * PIXELS
    strips = -(-SIDE // STRIP_ROWS)
    return of_pass + of_pass * (SIDE + strips * 2 * TILE * reach) // SIDE


def blur(name: str, unit: str, bytes_in: int, bytes_out: int) -> Estimate:
    operations = direct_operations() if unit == "float32" else banded_operations()
    return Estimate(f"blur, 1024 x 3 x 224 x 224, k 51, {name}", unit, (bytes_in + bytes_out) * PIXELS, operations)


def similarity(name: str, recordings: int, images: int, width: int, written: int) -> Estimate:
    """Estimate float16 with open gates: two products, every embedding read once."""
    read = 2 * 2 * (recordings + images) * width
    case = f"{name}, {recordings:,} x {images:,} x {width}, float16"
    return Estimate(case, "float16", read + written, 4 * recordings * images * width)


def described(estimate: Estimate) -> dict:
    return {
        "case": estimate.case, "gpu": GPU, "estimate": True, "bytes": estimate.bytes, "operations": estimate.operations,
        "unit": estimate.unit, "memory_s": estimate.memory_s, "arithmetic_s": estimate.arithmetic_s,
        "limit_s": estimate.limit_s,
    }  # fmt: skip


ESTIMATES = (
    blur("float32, direct", "float32", 4, 4),
    blur("float16", "float16", 2, 2),
    blur("uint8 to normalised float16", "float16", 1, 2),
    similarity("similarity", 16_384, 16_384, 1024, 2 * 16_384 * 16_384),
    similarity("top-10", 1024, 1_000_000, 1024, 12 * 10 * 1024),
)


def draw(path: Path) -> None:
    """Save the figure as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axis = plt.subplots(figsize=(9, 5.2), layout="constrained")
    x = np.geomspace(5, 5000, 200)
    roofs = {"float16 on tensor cores": "float16", "float32": "float32"}
    for (label, unit), colour in zip(roofs.items(), ("#1b6ca8", "#d1495b")):
        rate = RATES[unit]
        axis.plot(x, np.minimum(x * BYTES_A_SECOND, rate) / 1e12, color=colour, label=f"{label}: {rate / 1e12:.1f} T/s")
    for number, estimate in enumerate(ESTIMATES, 1):
        colour = "#1b6ca8" if estimate.unit == "float16" else "#d1495b"
        reached = estimate.operations / estimate.limit_s / 1e12
        axis.plot(estimate.intensity, reached, "o", color=colour, ms=7, zorder=3)
        style = {"textcoords": "offset points", "ha": "center", "fontsize": 9}
        axis.annotate(str(number), (estimate.intensity, reached), (0, 7), **style)
    lines = [f"{number}  {e.case}: {1e3 * e.limit_s:.2f} ms, by {e.bound}" for number, e in enumerate(ESTIMATES, 1)]
    axis.text(0.985, 0.03, "\n".join(lines), transform=axis.transAxes, ha="right", va="bottom", fontsize=8)
    axis.set(xscale="log", yscale="log", ylim=(2, 120))
    axis.set(xlabel="operations per byte of device memory", ylabel="10$^{12}$ operations / s")
    axis.set_title(f"ESTIMATE for the {GPU}, from published rates; nothing here was measured", fontsize=11)
    axis.legend(loc="upper left", fontsize=9, title=f"{BYTES_A_SECOND / 1e9:.0f} GB/s, and operations of")
    axis.grid(alpha=0.3, which="both")
    image = io.BytesIO()
    figure.savefig(image, dpi=110)
    plt.close(figure)
    write_atomically(path, image.getvalue())
