"""The number of blocks that a multiprocessor holds, from the CUDA programming guide's table of compute capabilities."""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
RESERVED_SHARED = 1024  # bytes that the driver takes from every block
SHARED_UNIT = 128  # bytes
REGISTER_UNIT = 256  # registers, of a warp
PARTITIONS = 4  # of a multiprocessor, each with its warps and its share of the registers
REGISTERS = 65_536


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of a multiprocessor."""

    threads: int
    blocks: int
    shared: int  # bytes
    shared_of_block: int


MULTIPROCESSORS = {86: Multiprocessor(1536, 16, 102_400, 101_376), 90: Multiprocessor(2048, 32, 233_472, 232_448)}


def rounded_up(x: int, unit: int) -> int:
    """Round up to a multiple of `unit`."""
    return -(-x // unit) * unit


def occupancy(architecture: int, threads: int, registers: int, shared: int) -> dict:
    """Return blocks per multiprocessor, their share of its warps, and what limits them; 0 blocks: no launch."""
    limits = MULTIPROCESSORS[architecture]
    warps = rounded_up(threads, WARP) // WARP
    warps_of_partition = REGISTERS // PARTITIONS // rounded_up(max(registers, 1) * WARP, REGISTER_UNIT)
    of_block = rounded_up(shared + RESERVED_SHARED, SHARED_UNIT)
    by = {
        "registers": PARTITIONS * warps_of_partition // warps,
        "shared memory": limits.shared // of_block if shared <= limits.shared_of_block else 0,
        "threads": limits.threads // (warps * WARP),
        "blocks": limits.blocks,
    }
    blocks = min(by.values())
    reasons = [name for name, most in by.items() if most == blocks]
    return {"blocks": blocks, "occupancy": blocks * warps * WARP / limits.threads, "limited_by": reasons}
