"""Costs of a launch: instructions of warps by class, sectors of device memory, wavefronts of shared memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from .memory import WARP
from .module import Instruction, Kernel

SECTOR = 32  # bytes
BANKS = 32  # of 4 bytes
FLOAT_ARITHMETIC = ("add", "sub", "mul", "fma", "mad")
SPECIAL_FUNCTIONS = ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "sin", "cos", "tanh")


def class_of(instruction: Instruction) -> str:
    """Return what executes an instruction: mma, fma, alu, mufu, shared, global, cp.async, branch or other."""
    name, *modifiers = instruction.opcode
    if name == "mma":
        return "mma"
    if name in FLOAT_ARITHMETIC and modifiers[-1] in ("f32", "f16x2", "bf16x2", "f16", "bf16"):
        return "fma"
    if name in SPECIAL_FUNCTIONS:
        return "mufu"
    if name in ("ldmatrix", "stmatrix") or (
        name in ("ld", "st", "atom", "red") and any(part.startswith("shared") for part in modifiers)
    ):
        return "shared"
    if name in ("ld", "st", "atom", "red") and "global" in modifiers:
        return "global"
    if name == "cp":
        return "cp.async"
    if name in ("bra", "brx", "ret", "exit"):
        return "branch"
    if name in (
        "bar",
        "barrier",
        "shfl",
        "vote",
        "redux",
        "match",
        "activemask",
        "movmatrix",
        "ld",
        "st",
        "fence",
        "membar",
    ):
        return "other"
    return "alu"


@dataclass
class Counts:
    """Sums over the blocks that ran."""

    visits: np.ndarray  # how often warps issued each instruction of the kernel
    blocks: int = 0
    sectors: Counter[str] = field(default_factory=Counter)  # "load", "store"
    wavefronts: Counter[str] = field(default_factory=Counter)  # "load", "store", "ldmatrix", "cp.async"

    def classes(self, kernel: Kernel) -> dict[str, int]:
        """Return issued instructions of warps by class."""
        total: Counter[str] = Counter()
        for instruction, visits in zip(kernel.code, self.visits):
            total[class_of(instruction)] += int(visits)
        return dict(total)

    def add_global(self, what: str, addresses: np.ndarray, size: int, threads: np.ndarray) -> None:
        warps = threads // WARP << 48
        sectors = np.concatenate([warps + addresses // SECTOR, warps + (addresses + size - 1) // SECTOR])
        self.sectors[what] += len(np.unique(sectors))

    def add_shared(self, what: str, addresses: np.ndarray, size: int, threads: np.ndarray) -> None:
        """Lanes go together as far as 128 bytes reach; words of one bank take turns."""
        lanes_at_once = min(WARP, 4 * WARP // max(size, 4))
        group = threads // lanes_at_once
        words = np.unique((group[:, None] << 32) + addresses[:, None] // 4 + np.arange(max(size // 4, 1)))
        group = words >> 32
        _, dense = np.unique(group, return_inverse=True)
        turns = np.bincount(dense * BANKS + (words & 0xFFFFFFFF) % BANKS, minlength=(dense[-1] + 1) * BANKS)
        self.wavefronts[what] += int(turns.reshape(-1, BANKS).max(1).sum())
