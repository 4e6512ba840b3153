"""Runs launches of the kernels of one file of PTX."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from . import module
from .block import Block, Launch, Program
from .counts import Counts
from .memory import Buffer, DeviceMemory
from .translate import translate

TABLES = 1 << 52  # where the module's arrays begin
GAP = 4096  # bytes between them


class Interpreter:
    """The kernels of a file, each translated at its first launch."""

    def __init__(self, path: Path):
        self.module = module.load(path)
        self.programs: dict[str, Program] = {}
        self.tables: dict[str, int] = {}
        self.table_buffers: list[Buffer] = []
        for name, content in self.module.tables.items():
            end = self.table_buffers[-1].end if self.table_buffers else TABLES
            self.tables[name] = (end // GAP + 1) * GAP
            self.table_buffers.append(Buffer(np.frombuffer(content, np.uint8), self.tables[name]))

    def run(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        threads: tuple[int, int, int],
        arguments: list[bytes],
        buffers: Iterable[Buffer],
        dynamic_shared: int = 0,
        blocks: Iterable[int] | None = None,
        checks: bool = True,
        traffic: bool = False,
    ) -> Counts:
        """Run a launch.

        Args:
            kernel: Name of the entry.
            grid: Blocks along x, y and z.
            threads: Threads of a block along x, y and z.
            arguments: Bytes of each parameter.
            buffers: Device memory.
            dynamic_shared: Bytes of dynamic shared memory.
            blocks: Numbers of the blocks to run, by default all.
            checks: Whether to look for races and for values that were never written.
            traffic: Whether to count sectors and wavefronts.

        Raises:
            Fault: a block does what no kernel may do.
            UnsupportedPtx: an instruction is not known.
        """
        if kernel not in self.programs:
            self.programs[kernel] = translate(self.module.kernels[kernel])
        program = self.programs[kernel]
        sizes = list(program.kernel.parameters.values())
        if [len(argument) for argument in arguments] != sizes:
            raise ValueError(f"{kernel} takes parameters of {sizes} bytes")
        packed = b"".join(argument.ljust(-(-len(argument) // 16) * 16, b"\0") for argument in arguments)
        buffers = [*buffers, *self.table_buffers]
        for buffer in buffers:
            buffer.begin_launch()
        counts = Counts(np.zeros(len(program.kernel.code), np.int64))
        launch = Launch(
            program, grid, threads, dynamic_shared, np.frombuffer(packed, np.uint8), DeviceMemory(buffers, checks),
            self.tables, counts, checks, traffic,
        )  # fmt: skip
        for number in range(grid[0] * grid[1] * grid[2]) if blocks is None else blocks:
            Block(launch, number).run()
        return counts
