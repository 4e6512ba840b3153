"""Device and shared memory that notice what compute-sanitizer would: bounds, alignment, first values, and races."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable

import numpy as np

WARP = 32


class Fault(Exception):
    """A kernel did what no kernel may do; the message says what, and where."""


class Buffer:
    """Memory of a kernel's argument, of its exact size."""

    def __init__(
        self, content: np.ndarray, start: int, readable: np.ndarray | None = None, writable: np.ndarray | None = None
    ):
        """Wrap bytes.

        Args:
            content: uint8, changed in place.
            start: Address of the first byte.
            readable: One flag a byte that is set when a kernel writes it; by default all bytes have a value.
            writable: One flag a byte; by default none may be written.
        """
        self.content, self.start, self.end = content, start, start + len(content)
        self.readable, self.writable = readable, writable
        self.writer: np.ndarray | None = None  # the block that wrote a byte in this launch, -1: none
        self.views: dict[int, tuple[int, np.ndarray]] = {}

    def begin_launch(self) -> None:
        self.writer = None if self.writable is None else np.full(len(self.content), -1, np.int32)

    def elements(self, size: int) -> tuple[int, np.ndarray]:
        """Return the first aligned address, and the elements of `size` bytes from there."""
        if size not in self.views:
            skipped = -self.start % size
            count = max(len(self.content) - skipped, 0) // size
            kind = f"u{size}" if size <= 8 else f"V{size}"
            self.views[size] = self.start + skipped, self.content[skipped : skipped + count * size].view(kind)
        return self.views[size]


class DeviceMemory:
    """Buffers that do not touch one another."""

    def __init__(self, buffers: Iterable[Buffer], checks: bool = True):
        self.buffers = sorted(buffers, key=lambda buffer: buffer.start)
        self.starts = [buffer.start for buffer in self.buffers]
        self.checks = checks

    def load(self, addresses: np.ndarray, size: int, block: int) -> np.ndarray:
        """Return `size` bytes from each address, (n, size)."""
        buffer = self._buffer(addresses, size)
        if buffer is None:
            return np.concatenate([self.load(one, size, block) for one in addresses[:, None]])
        if self.checks:
            places = (addresses - buffer.start)[:, None] + np.arange(size)
            if buffer.readable is not None and not buffer.readable[places].all():
                raise Fault("reads device memory that has no value")
            if buffer.writer is not None and not np.isin(buffer.writer[places], (-1, block)).all():
                raise Fault("reads device memory that another block writes")
        first, elements = buffer.elements(size)
        return elements[(addresses - first) // size].view(np.uint8).reshape(-1, size)

    def store(self, addresses: np.ndarray, data: np.ndarray, block: int) -> None:
        """Write the rows of `data` (n, size) to the addresses."""
        size = data.shape[1]
        buffer = self._buffer(addresses, size)
        if buffer is None:
            for one, row in zip(addresses[:, None], data[:, None]):
                self.store(one, row, block)
            return
        places = (addresses - buffer.start)[:, None] + np.arange(size)
        if buffer.writable is None or not buffer.writable[places].all():
            raise Fault("writes device memory that is not an output's element")
        if self.checks and buffer.writer is not None:
            if not np.isin(buffer.writer[places], (-1, block)).all():
                raise Fault("writes device memory that another block writes")
            if len(addresses) > 1 and len(np.unique(addresses)) < len(addresses):
                raise Fault("several lanes write one place of device memory")
            buffer.writer[places] = block
        if buffer.readable is not None:
            buffer.readable[places] = True
        first, elements = buffer.elements(size)
        elements[(addresses - first) // size] = np.ascontiguousarray(data).view(elements.dtype)[:, 0]

    def _buffer(self, addresses: np.ndarray, size: int) -> Buffer | None:
        """Return the buffer that holds all addresses, None if they are in several."""
        if (addresses % size).any():
            raise Fault(f"device address {addresses[addresses % size > 0][0]:#x} is not aligned to {size} bytes")
        low, high = int(addresses.min()), int(addresses.max())
        place = bisect.bisect_right(self.starts, low) - 1
        if place >= 0 and high + size <= self.buffers[place].end:
            return self.buffers[place]
        if low == high or len(addresses) == 1:
            distance = f", {low - self.buffers[place].end} bytes after the end of a buffer" if place >= 0 else ""
            raise Fault(f"device access out of bounds: {size} bytes at {low:#x}{distance}")
        return None


class SharedMemory:
    """Shared memory of a block. Accesses are ordered by barriers between warps, and by bar.warp.sync within one.

    Every warp counts its synchronisations. `clocks[v, u]` is what warp v knows of u: it comes after all accesses of u
    at earlier counts. Shuffles and votes count too, but order only reads, whose values they have used, before writes of
    other lanes. Accesses are kept for granules, the smallest unit that the kernel addresses.

    A wide load may reach beyond what was written, if nothing comes of it: reads of what was not are followed through
    the registers (`Block.undefined`) and back to here. `origin` of a granule is NEVER_WRITTEN, 0 for a value, or the
    number of the read that what was stored follows from. At first all bits are set, NaN in every floating type.
    """

    NEVER_WRITTEN = -1

    def __init__(self, size: int, granule: int, threads: int, checks: bool):
        self.size, self.granule, self.checks = size, granule, checks
        self.content = np.full(-(-size // 16) * 16 + 16, 255, np.uint8)
        warps, count = -(-threads // WARP), len(self.content) // granule
        self.clocks = np.eye(warps, dtype=np.int32)
        self.synchronised = np.ones(warps, np.int32)  # the clock at the last synchronisation that orders writes
        if checks:
            self.in_flight = np.zeros(count, bool)
            self.origin = np.full(count, self.NEVER_WRITTEN, np.int32)
            self.writer, self.written = np.full(count, -1, np.int32), np.full(count, -1, np.int32)
            self.reader, self.read = np.full((count, warps), -1, np.int32), np.full((count, warps), -1, np.int32)

    # -- order --

    def synchronise_lanes(self, warps: np.ndarray) -> None:
        """Order what these warps did before what they do next, for their own lanes."""
        self.clocks[warps, warps] += 1
        self.synchronised[warps] = self.clocks[warps, warps]

    def exchange_values(self, warps: np.ndarray) -> None:
        """Order what lanes of these warps have read before what they write next."""
        self.clocks[warps, warps] += 1

    def arrive(self, warps: np.ndarray) -> np.ndarray:
        """Return what a barrier learns from these warps."""
        self.synchronise_lanes(warps)
        return self.clocks[warps].max(0)

    def learn(self, warps: np.ndarray, known: np.ndarray) -> None:
        own = self.clocks[warps, warps]
        self.clocks[warps] = np.maximum(self.clocks[warps], known)
        self.clocks[warps, warps] = own

    # -- accesses of the lanes `threads`, one address each --

    def load(self, addresses: np.ndarray, size: int, threads: np.ndarray) -> np.ndarray:
        """Return `size` bytes from each address, (n, size)."""
        self._check_place(addresses, size)
        if self.checks:
            places, lanes, warps = self._granules(addresses, size, threads)
            if self.in_flight[places].any():
                raise Fault("reads shared memory that an asynchronous copy still fills")
            self._check_after_writes(places, lanes, warps, "reads")
            again = (self.read[places, warps] == self.clocks[warps, warps]) & (self.reader[places, warps] != lanes)
            self.read[places, warps] = self.clocks[warps, warps]
            self.reader[places, warps] = np.where(again, -2, lanes)
            shared = (self.reader[places, warps] != lanes) & ~again
            self.reader[places[shared], warps[shared]] = -2  # several lanes
        return self._get(addresses, size)

    def update(self, address: np.ndarray, size: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Replace the bytes at one address; what is atomic needs no order."""
        self._check_place(address, size)
        if self.checks and self.origins(address, size, size, 1) is not None:
            raise Fault("changes shared memory that was never written")
        self._put(address, change(self._get(address, size)))

    def store(self, addresses: np.ndarray, data: np.ndarray, threads: np.ndarray) -> None:
        """Write the rows of `data` (n, size)."""
        size = data.shape[1]
        self._check_place(addresses, size)
        if self.checks:
            self._check_write(addresses, size, threads)
            self._mark_written(addresses, size, threads)
        self._put(addresses, data)

    def origins(self, addresses: np.ndarray, size: int, unit: int, read: int) -> np.ndarray | None:
        """Return what each `unit` of `size` bytes follows from, (n, size / unit), 0 for a value; None if all are.

        Args:
            addresses: of the bytes.
            size: of an access.
            unit: a divisor of the size.
            read: number that the caller gives to this read, which is the origin of what was never written.
        """
        places = (addresses // self.granule)[:, None] + np.arange(max(size // self.granule, 1))
        found = self.origin[places]
        if not found.any():
            return None
        found = np.where(found == self.NEVER_WRITTEN, read, found)
        return np.repeat(found, self.granule, 1)[:, :size].reshape(len(addresses), -1, unit).max(2)

    def set_origins(self, addresses: np.ndarray, size: int, origins: np.ndarray) -> None:
        """Say what stored bytes follow from, by units as :meth:`origins` does."""
        places = (addresses // self.granule)[:, None] + np.arange(size // self.granule)
        self.origin[places] = np.repeat(origins, places.shape[1] // origins.shape[1], 1)

    def begin_copy(self, addresses: np.ndarray, size: int, threads: np.ndarray) -> None:
        """Start to fill; nothing may touch it before `end_copy`."""
        self._check_place(addresses, size)
        if self.checks:
            self._check_write(addresses, size, threads)
            self.in_flight[self._granules(addresses, size, threads)[0]] = True

    def end_copy(self, addresses: np.ndarray, data: np.ndarray, threads: np.ndarray) -> None:
        if self.checks:
            self.in_flight[self._granules(addresses, data.shape[1], threads)[0]] = False
            self._mark_written(addresses, data.shape[1], threads)
        self._put(addresses, data)

    def _get(self, addresses: np.ndarray, size: int) -> np.ndarray:
        kind = f"u{size}" if size <= 8 else f"V{size}"
        return self.content.view(kind)[addresses // size].view(np.uint8).reshape(-1, size)

    def _put(self, addresses: np.ndarray, data: np.ndarray) -> None:
        size = data.shape[1]
        kind = f"u{size}" if size <= 8 else f"V{size}"
        self.content.view(kind)[addresses // size] = np.ascontiguousarray(data).view(kind)[:, 0]

    def _check_place(self, addresses: np.ndarray, size: int) -> None:
        if (addresses % size).any():
            raise Fault(f"shared address {addresses[addresses % size > 0][0]} is not aligned to {size} bytes")
        outside = (addresses < 0) | (addresses + size > self.size)
        if outside.any():
            raise Fault(f"shared access out of bounds: {size} bytes at {addresses[outside][0]} of {self.size}")

    def _granules(
        self, addresses: np.ndarray, size: int, threads: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return places in the tables, threads and warps, one for every granule of every access."""
        count = max(size // self.granule, 1)
        places = ((addresses // self.granule)[:, None] + np.arange(count)).ravel()
        lanes = np.repeat(threads, count)
        return places, lanes, lanes // WARP

    def _check_write(self, addresses: np.ndarray, size: int, threads: np.ndarray) -> None:
        places, lanes, warps = self._granules(addresses, size, threads)
        if self.in_flight[places].any():
            raise Fault("writes shared memory that an asynchronous copy still fills")
        if len(np.unique(places)) < len(places):
            raise Fault("several lanes write one place of shared memory")
        self._check_after_writes(places, lanes, warps, "writes")
        unordered = self.read[places] >= self.clocks[warps]
        own = np.arange(len(places)), warps
        unordered[own] &= self.reader[places, warps] != lanes
        if unordered.any():
            at, other = np.argwhere(unordered)[0]
            raise Fault(
                f"race: thread {lanes[at]} writes shared memory that warp {other} reads, without order between them"
            )

    def _check_after_writes(self, places: np.ndarray, lanes: np.ndarray, warps: np.ndarray, does: str) -> None:
        writer = self.writer[places]
        known = np.where(writer // WARP == warps, self.synchronised[warps], self.clocks[warps, writer // WARP])
        unordered = (writer != lanes) & (self.written[places] >= known)
        if unordered.any():
            at = np.argmax(unordered)
            raise Fault(
                f"race: thread {lanes[at]} {does} shared memory that thread {writer[at]} writes, "
                "without order between them"
            )

    def _mark_written(self, addresses: np.ndarray, size: int, threads: np.ndarray) -> None:
        places, lanes, warps = self._granules(addresses, size, threads)
        self.writer[places], self.written[places] = lanes, self.clocks[warps, warps]
        self.origin[places] = 0
