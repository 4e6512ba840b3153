"""Rates of the cards that estimates are made for; nothing here was measured.

Sources: NVIDIA Ampere GA102 GPU Architecture, whitepaper, 2021 (RTX 3080 10 GB); NVIDIA A100 Tensor Core GPU
Architecture, whitepaper, 2020 (A100 SXM4 40 GB); NVIDIA H100 Tensor Core GPU Architecture, whitepaper, 2022 (H100
SXM5): boost clocks, multiprocessors, dense rates of the tensor cores with float32 sums, float32 lanes, bytes a second
of device memory. A multiprocessor issues four instructions of a warp a cycle, and moves one wavefront of 128 bytes of
shared memory (CUDA C++ Programming Guide). Copies are taken to reach all of GDDR6X and 0.88 of HBM.
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Rates:
    """What a card does in a second, at most."""

    name: str
    architecture: int  # of the machine code it runs
    multiprocessors: int
    clock: float  # Hz
    fma_lanes: int  # of a multiprocessor, float32
    tensor: dict[str, float]  # multiplications and additions by the type of the operands
    bytes: float  # that a copy moves, read and written

    @property
    def issue(self) -> float:
        """Return instructions of warps."""
        return 4 * self.multiprocessors * self.clock

    @property
    def fma(self) -> float:
        """Return float32 instructions of warps."""
        return self.fma_lanes / WARP * self.multiprocessors * self.clock

    @property
    def wavefronts(self) -> float:
        return self.multiprocessors * self.clock


CARDS = (
    Rates("RTX 3080", 86, 68, 1.71e9, 128, {"f16": 59.5e12, "bf16": 59.5e12, "tf32": 29.8e12, "u8": 238e12}, 760e9),
    Rates("A100", 80, 108, 1.41e9, 64, {"f16": 312e12, "bf16": 312e12, "tf32": 156e12, "u8": 624e12}, 0.88 * 1555e9),
    Rates("H100", 90, 132, 1.755e9, 128, {"f16": 989e12, "bf16": 989e12, "tf32": 494e12, "u8": 1979e12}, 0.88 * 3350e9),
)
