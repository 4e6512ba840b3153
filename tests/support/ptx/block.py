"""One block of threads that runs a kernel: its state, and which threads go on next.

Threads at the smallest place in the code go first, all warps of the block together, so that those that parted meet
again where their paths join. A thread waits at barriers, and at instructions of a whole warp for the other lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from .arithmetic import Value
from .counts import Counts
from .memory import WARP, DeviceMemory, Fault, SharedMemory
from .module import Kernel

Mask = np.ndarray | None  # the threads that take part; None: all
Step = Callable[["Block", Mask], None]
Control = Callable[["Block", Mask, int], int]  # returns the next place, or PARKED once it has set the threads' places
PARKED = -1
FAR = 1 << 40


@dataclass(frozen=True)
class Program:
    """A kernel whose instructions have become functions; an instruction is a step or a control."""

    kernel: Kernel
    steps: list[Step | None]
    controls: list[Control | None]
    reductions: dict[int, Callable[[Block, np.ndarray, np.ndarray], None]]  # what bar.red does with the votes
    shared_granule: int  # bytes, the narrowest access to shared memory
    dtypes: list[type]  # of the registers


@dataclass(frozen=True)
class Launch:
    """What every block of a launch shares."""

    program: Program
    grid: tuple[int, int, int]
    threads: tuple[int, int, int]
    dynamic_shared: int
    parameters: np.ndarray  # bytes
    memory: DeviceMemory
    tables: dict[str, int]  # addresses of the module's arrays
    counts: Counts
    checks: bool
    traffic: bool


@dataclass
class Copies:
    """Asynchronous copies of one instruction: lanes, targets in shared memory, bytes, and the group of each lane."""

    threads: np.ndarray
    targets: np.ndarray
    data: np.ndarray
    groups: np.ndarray


class Barrier:
    """A barrier of the block that some threads have reached."""

    def __init__(self, threads: int, warps: int):
        self.arrived = 0
        self.waiting = np.zeros(threads, bool)
        self.known = np.zeros(warps, np.int32)
        self.vote = np.zeros(threads, bool)


class Block:
    """The state of a block while it runs."""

    def __init__(self, launch: Launch, number: int):
        kernel = launch.program.kernel
        self.launch, self.number, self.program = launch, number, launch.program
        x, y, z = launch.threads
        self.count = x * y * z
        self.size = -(-self.count // WARP) * WARP
        self.lanes = np.arange(self.size)
        self.warps = self.size // WARP
        self.registers: list[Value] = [dtype(0) for dtype in launch.program.dtypes]
        self.places = np.zeros(self.size, np.int64)
        self.done = self.lanes >= self.count
        self.waiting = np.zeros(self.size, bool)  # at a barrier
        self.held = np.zeros(self.size, bool)  # until the other lanes of the warp come
        self.barriers: dict[int, Barrier] = {}
        self.shared = SharedMemory(
            kernel.shared_bytes(launch.dynamic_shared), launch.program.shared_granule, self.size, launch.checks
        )
        self.local = np.zeros((self.size, kernel.local_bytes), np.uint8)
        self.local_origin = np.zeros(self.local.shape, np.int32)
        # By register and thread, what follows from shared memory that was never written: 1 + the place of its read.
        self.undefined: dict[int, np.ndarray] = {}
        self.copies: list[Copies] = []
        self.groups = np.zeros(self.size, np.int64)  # of asynchronous copies that each thread has committed
        self.at = 0

    def run(self) -> None:
        """Run to the end.

        Raises:
            Fault: the kernel does what no kernel may do.
        """
        try:
            with np.errstate(all="ignore"):
                while not self.done.all():
                    self._advance()
        except Fault as fault:
            instruction = self.program.kernel.code[self.at]
            where = f"block {self.number}, PTX line {instruction.line}: {instruction.text}"
            raise Fault(f"{fault} ({where}; {self.program.kernel.name})") from None
        self.launch.counts.blocks += 1

    def _advance(self) -> None:
        """Run the threads at the smallest place until they part, wait, or reach the place of others."""
        ready = ~(self.done | self.waiting)
        free = ready & ~self.held
        if not free.any():
            self._explain_standstill()
        place = int(self.places[free].min())
        group = ready & (self.places == place)
        self.held[group] = False
        others = free & ~group
        limit = int(self.places[others].min()) if others.any() else FAR
        if np.count_nonzero(group) == self.size:
            mask, warps = None, self.warps
        else:
            mask, warps = group, int(np.count_nonzero(group.reshape(-1, WARP).any(1)))
        steps, controls, visits = self.program.steps, self.program.controls, self.launch.counts.visits
        while place < limit:
            self.at = place
            visits[place] += warps
            step = steps[place]
            if step is not None:
                step(self, mask)
                place += 1
            else:
                place = controls[place](self, mask, place)  # type: ignore[misc]
                if place == PARKED:
                    return
        self.places[group] = place

    def _explain_standstill(self) -> None:
        if self.held.any():
            lane = int(np.argmax(self.held))
            self.at = int(self.places[lane])
            raise Fault(f"thread {lane} waits for lanes of its warp that never come")
        lane = int(np.argmax(self.waiting))
        self.at = int(self.places[lane])
        raise Fault(f"thread {lane} waits at a barrier that other threads never reach")

    def active(self, mask: Mask) -> np.ndarray:
        """Return the numbers of the threads that take part."""
        return self.lanes if mask is None else np.flatnonzero(mask)

    def active_warps(self, mask: Mask) -> np.ndarray:
        return np.flatnonzero(self.everyone(mask).reshape(-1, WARP).any(1))

    def everyone(self, mask: Mask) -> np.ndarray:
        return np.ones(self.size, bool) if mask is None else mask

    # ---- what follows from shared memory that was never written ----

    def origin(self, registers: Iterable[int]) -> np.ndarray | None:
        """Return by thread what values of the registers follow from, None if all are defined."""
        found = [self.undefined[number] for number in registers if number in self.undefined]
        return np.maximum.reduce(found) if found else None

    def set_origin(self, registers: Iterable[int], origin: np.ndarray | None, mask: Mask) -> None:
        """Say what the values follow from that threads have written to registers."""
        for number in registers:
            before = self.undefined.pop(number, None)
            if origin is None and (before is None or mask is None):
                continue
            now = np.zeros(self.size, np.int32) if origin is None else origin
            if mask is not None:
                now = np.where(mask, now, 0 if before is None else before)
            if now.any():
                self.undefined[number] = now

    def demand(self, registers: Iterable[int], mask: Mask, does: str) -> None:
        """Raise Fault if threads use undefined values so that something comes of it."""
        origin = self.origin(registers) if self.undefined else None
        if origin is None:
            return
        worst = int(origin.max() if mask is None else origin[mask].max(initial=0))
        if worst:
            line = self.program.kernel.code[worst - 1].line
            raise Fault(f"{does} what follows from shared memory that was never written, read at PTX line {line}")

    # ---- barriers ----

    def arrive(
        self, mask: Mask, place: int, number: int, count: int | None, vote: Value = False, waits: bool = True
    ) -> int:
        """Let threads arrive at a barrier of `count` threads, by default the whole block."""
        everyone = self.everyone(mask)
        if count is None and self.done[: self.count].any():
            raise Fault("a barrier of the block after some of its threads have ended")
        barrier = self.barriers.setdefault(number, Barrier(self.size, self.warps))
        barrier.known = np.maximum(barrier.known, self.shared.arrive(self.active_warps(mask)))
        barrier.arrived += int(np.count_nonzero(everyone))
        if waits:
            barrier.waiting |= everyone
            barrier.vote[everyone] = np.broadcast_to(vote, self.size)[everyone]
            self.waiting |= everyone
            self.places[everyone] = place
        wanted = self.count if count is None else count
        if barrier.arrived > wanted:
            raise Fault(f"{barrier.arrived} threads arrive at a barrier for {wanted}")
        if barrier.arrived == wanted:
            self._release(self.barriers.pop(number))
        return PARKED if waits else place + 1

    def _release(self, barrier: Barrier) -> None:
        threads = np.flatnonzero(barrier.waiting)
        if len(np.unique(self.places[threads])) > 1:
            lines = sorted({self.program.kernel.code[place].line for place in self.places[threads]})
            raise Fault(f"threads wait at different barriers, PTX lines {lines}")
        self.shared.learn(np.unique(threads // WARP), barrier.known)
        self.waiting[threads] = False
        if len(threads) == 0:
            return
        place = int(self.places[threads[0]])
        instruction = self.program.kernel.code[place]
        if "red" in instruction.opcode:
            self.program.reductions[place](self, barrier.waiting, barrier.vote[threads])
        self.places[threads] = place + 1

    # ---- asynchronous copies ----

    def wait_for_copies(self, mask: Mask, left: int) -> None:
        """Let the copies arrive that are in all but the last `left` groups of the threads."""
        everyone, remaining = self.everyone(mask), []
        for copies in self.copies:
            arrive = everyone[copies.threads] & (copies.groups < self.groups[copies.threads] - left)
            if arrive.any():
                self.shared.end_copy(copies.targets[arrive], copies.data[arrive], copies.threads[arrive])
            if not arrive.all():
                stay = ~arrive
                rest = (copies.threads[stay], copies.targets[stay], copies.data[stay], copies.groups[stay])
                remaining.append(Copies(*rest))
        self.copies = remaining
