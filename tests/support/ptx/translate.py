"""Turns the instructions of a kernel into functions, once."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from . import matrices
from .arithmetic import DTYPES, LOGIC, Value, comparison, operation
from .block import PARKED, Block, Control, Copies, Mask, Program, Step
from .memory import WARP, Fault
from .module import BYTES, Instruction, Kernel, UnsupportedPtx

Reader = Callable[[Block], Value]
Writer = Callable[[Block, Value, Mask], None]
# Generic addresses of memory that belongs to a block, a thread or a launch; device memory is below.
WINDOWS = {"shared": 1 << 56, "local": 2 << 56, "param": 3 << 56}
WIDEST = 16
DECIDES, ADDRESSES = "decides by", "takes an address from"
# Instructions that follow undefined values in their own way; the results of others follow from all of their operands.
OWN_WAY = (
    "ld",
    "ldu",
    "st",
    "atom",
    "red",
    "cp",
    "selp",
    "shfl",
    "vote",
    "redux",
    "mma",
    "ldmatrix",
    "stmatrix",
    "movmatrix",
)
WHOLE_WARP = ("shfl", "vote", "mma", "ldmatrix", "stmatrix", "movmatrix", "redux")


def translate(kernel: Kernel) -> Program:
    """Translate a kernel.

    Raises:
        UnsupportedPtx: the message shows the instruction that the interpreter lacks.
    """
    return _Translator(kernel).program


def _names(operand: str) -> list[str]:
    """Return the parts of a vector operand, or the operand itself."""
    return [part.strip() for part in operand.strip("{}").split(",")]


class _Translator:
    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.numbers = {name: number for number, name in enumerate(kernel.registers)}
        self.dtypes = list(kernel.registers.values())
        self.parameters: dict[str, int] = {}  # addresses
        used = 0
        for name, size in kernel.parameters.items():
            self.parameters[name] = used
            used += -(-size // 16) * 16
        granule = min(
            [4, *(BYTES[i.opcode[-1]] for i in kernel.code if i.opcode[0] in ("ld", "st") and "shared" in i.opcode)]
        )
        self.program = Program(kernel, [], [], {}, granule, self.dtypes)
        for place, instruction in enumerate(kernel.code):
            try:
                step, control = self._instruction(instruction, place)
            except (UnsupportedPtx, KeyError, ValueError, IndexError) as reason:
                raise UnsupportedPtx(f"line {instruction.line} of the PTX: {instruction.text} ({reason!r})") from reason
            self.program.steps.append(step)
            self.program.controls.append(control)

    # ---- operands ----

    def read(self, operand: str, kind: str) -> Reader:
        """Return a function that reads an operand as a type."""
        dtype = DTYPES[kind]
        if operand.startswith("!"):
            positive = self.read(operand[1:], kind)
            return lambda block: np.logical_not(positive(block))
        if operand in self.numbers:
            number, own = self.numbers[operand], np.dtype(self.dtypes[self.numbers[operand]])
            if own == np.dtype(dtype):
                return lambda block: block.registers[number]
            if own.itemsize == np.dtype(dtype).itemsize and kind != "pred":
                return lambda block: block.registers[number].view(dtype)
            unsigned, narrow = np.dtype(f"u{own.itemsize}"), np.dtype(f"u{np.dtype(dtype).itemsize}")
            if own.itemsize < narrow.itemsize:
                raise UnsupportedPtx(f"{operand} is narrower than {kind}")
            return lambda block: block.registers[number].view(unsigned).astype(narrow).view(dtype)
        if operand.startswith("%"):
            return _special(operand, dtype)
        constant = self.constant(operand, kind)
        if constant is not None:
            return lambda block: constant
        if (
            operand in self.program.kernel.labels
            or operand in self.parameters
            or operand in self.kernel.shared | self.kernel.local
        ):
            address = dtype((self.parameters | self.kernel.shared | self.kernel.local)[operand])
            return lambda block: address
        return lambda block: dtype(block.launch.tables[operand])

    def constant(self, operand: str, kind: str) -> Value:
        """Return a literal as a value of a type, None if the operand is none."""
        dtype = DTYPES[kind]
        if match := re.fullmatch(r"0([fd])([0-9a-f]+)", operand, re.I):
            value = np.frombuffer(bytes.fromhex(match[2])[::-1], np.float32 if match[1] in "fF" else np.float64)[0]
            return value if value.dtype == dtype else value.view(dtype)
        if re.fullmatch(r"0xH[0-9a-f]{4}", operand, re.I):
            return np.uint16(int(operand[3:], 16)).view(dtype)
        if not re.fullmatch(r"-?(0x)?[0-9a-f]+U?", operand, re.I) or not re.match(r"-?\d", operand):
            return None
        size = np.dtype(dtype).itemsize
        if kind == "pred":
            return np.bool_(int(operand.rstrip("U"), 0))
        number = int(operand.rstrip("U"), 0)
        if kind in ("f32", "f64"):
            return dtype(number)
        return np.frombuffer((number & (1 << 8 * size) - 1).to_bytes(size, "little"), dtype)[0]

    def write(self, operand: str, kind: str) -> Writer:
        """Return a function that writes values of a type to a register, or nowhere for "_"."""
        if operand == "_":
            return lambda block, value, mask: None
        number = self.numbers[operand]
        own, dtype = np.dtype(self.dtypes[number]), np.dtype(DTYPES[kind])
        cast: Callable[[Value], Value] | None = None
        if own != dtype:
            if own.itemsize == dtype.itemsize:
                cast = lambda value: value.view(own)  # noqa: E731
            elif own.itemsize > dtype.itemsize:
                extended = np.dtype(f"{'i' if dtype.kind == 'i' else 'u'}{own.itemsize}")
                narrow = np.dtype(f"{extended.kind}{dtype.itemsize}")
                cast = lambda value: value.view(narrow).astype(extended).view(own)  # noqa: E731
            else:
                raise UnsupportedPtx(f"{operand} is narrower than {kind}")

        def put(block: Block, value: Value, mask: Mask) -> None:
            if cast is not None:
                value = cast(np.asarray(value)[()])
            block.registers[number] = value if mask is None else np.where(mask, value, block.registers[number])

        return put

    def address(self, operand: str, space: str) -> Reader:
        """Return a function that reads addresses, such as [%rd1+8], as int64."""
        base, _, offset = operand.strip("[] ").partition("+")
        distance = int(offset or "0", 0)
        if re.match(r"-?\d", base):
            return lambda block: np.int64(int(base, 0) + distance)
        wide = base in self.numbers and np.dtype(self.dtypes[self.numbers[base]]).itemsize == 8
        read = self.read(base, "s64" if wide or space in ("global", "const") else "u32")
        return lambda block: read(block).astype(np.int64) + distance

    def registers(self, *operands: str) -> tuple[int, ...]:
        """Return the numbers of the registers that operands name."""
        names = re.findall(r"%[\w.$]+", " ".join(operands))
        return tuple(self.numbers[name] for name in names if name in self.numbers)

    # ---- instructions ----

    def _instruction(self, instruction: Instruction, place: int) -> tuple[Step | None, Control | None]:
        name = instruction.opcode[0]
        if name in ("bra", "brx", "ret", "exit", "bar", "barrier", "trap"):
            if name in ("bar", "barrier") and instruction.opcode[1] == "warp":
                return None, self._whole_warp(instruction, lambda block, mask: None)
            return None, self._control(instruction, place)
        step = self._step(instruction)
        if name not in OWN_WAY:
            step = self._following(instruction, step)
        if name in WHOLE_WARP:
            return None, self._whole_warp(instruction, step)
        return self._guarded(instruction, step), None

    def _following(self, instruction: Instruction, step: Step) -> Step:
        """Let results follow from the operands."""
        targets, sources = (self.registers(*part) for part in (instruction.operands[:1], instruction.operands[1:]))

        def follow(block: Block, mask: Mask) -> None:
            if not block.undefined:
                step(block, mask)
                return
            origin = block.origin(sources)
            step(block, mask)
            block.set_origin(targets, origin, mask)

        return follow

    def _guarded(self, instruction: Instruction, step: Step) -> Step:
        if not instruction.guard:
            return step
        holds = self.read("!" * instruction.negated + instruction.guard, "pred")
        guard = self.registers(instruction.guard)

        def guarded(block: Block, mask: Mask) -> None:
            block.demand(guard, mask, DECIDES)
            condition = holds(block)
            chosen = condition if mask is None else condition & mask
            if np.ndim(chosen) == 0:
                if chosen:
                    step(block, mask)
                return
            count = np.count_nonzero(chosen)
            if count:
                step(block, None if count == block.size else chosen)

        return guarded

    def _whole_warp(self, instruction: Instruction, step: Step) -> Control:
        """Run a step for the warps whose lanes have all come; hold the others."""
        exchanges, orders = (
            instruction.opcode[0] in ("shfl", "vote", "redux"),
            instruction.opcode[0] in ("bar", "barrier"),
        )
        has_mask = exchanges or orders
        members = self.read(instruction.operands[-1], "u32") if has_mask else lambda block: np.uint32(0xFFFFFFFF)
        lanes = np.arange(WARP, dtype=np.uint32)
        if instruction.guard:
            raise UnsupportedPtx("a guard before an instruction of the whole warp")

        def order(block: Block, warps: np.ndarray) -> None:
            if orders:
                block.shared.synchronise_lanes(warps)
            elif exchanges:
                block.shared.exchange_values(warps)

        def run(block: Block, mask: Mask, place: int) -> int:
            if mask is None:
                step(block, None)
                order(block, np.arange(block.warps))
                return place + 1
            waiting = block.held & (block.places == place)  # came earlier, and go on from here when they are next
            block.held &= ~waiting
            mask = mask | waiting
            here = mask.reshape(-1, WARP)
            wanted = np.broadcast_to(members(block), block.size).reshape(-1, WARP)
            wanted = np.bitwise_or.reduce(np.where(here, wanted, np.uint32(0)), 1)
            missing = ((wanted[:, None] >> lanes & np.uint32(1)) > 0) & ~here
            if (missing & block.done.reshape(-1, WARP)).any():
                raise Fault("an instruction of a whole warp after some of its lanes have ended")
            complete = here.any(1) & ~missing.any(1)
            ready = (here & complete[:, None]).ravel()
            if ready.any():
                step(block, ready)
                order(block, np.flatnonzero(complete & (wanted == 0xFFFFFFFF)))
            block.places[ready & waiting] = place + 1
            stay = mask & ~ready
            if not stay.any():
                return place + 1
            block.places[ready], block.places[stay] = place + 1, place
            block.held |= stay
            return PARKED

        return run

    def _control(self, instruction: Instruction, place: int) -> Control:
        name, operands = instruction.opcode[0], instruction.operands
        holds = self.read("!" * instruction.negated + instruction.guard, "pred") if instruction.guard else None
        guard = self.registers(instruction.guard)
        if name == "bra":
            target = self.kernel.labels[operands[0]]
            return _decided(guard, _branch(holds, target))
        if name in ("ret", "exit"):
            return _decided(guard, _end(holds))
        if holds is not None:
            raise UnsupportedPtx("a guard before this instruction")
        if name == "brx":
            targets = [self.kernel.labels[label] for label in self.kernel.targets[operands[1]]]
            return _decided(self.registers(operands[0]), _indirect_branch(self.read(operands[0], "u32"), targets))
        if name == "trap":
            return _trap
        return self._barrier(instruction, place)

    def _barrier(self, instruction: Instruction, place: int) -> Control:
        kinds, operands = (
            [part for part in instruction.opcode[1:] if part not in ("cta", "aligned")],
            list(instruction.operands),
        )
        vote: Reader = lambda block: False  # noqa: E731
        votes: tuple[int, ...] = ()
        if kinds[0] == "red":
            votes, target = self.registers(operands[-1]), self.registers(operands[0])
            vote = self.read(operands.pop(), "pred")
            write = self.write(operands.pop(0), kinds[2])
            self.program.reductions[place] = _reduction(kinds[1], write, target)
        number = self.read(operands[0], "u32")
        count = self.read(operands[1], "u32") if len(operands) > 1 else None
        waits = kinds[0] != "arrive"

        def arrive(block: Block, mask: Mask, place: int) -> int:
            numbers = np.unique(np.broadcast_to(number(block), block.size)[block.active(mask)])
            if len(numbers) > 1:
                raise UnsupportedPtx("different barriers at one instruction")
            wanted = None if count is None else int(np.max(count(block)))
            return block.arrive(mask, place, int(numbers[0]), wanted, vote(block), waits)

        return _decided(votes, arrive)

    def _step(self, instruction: Instruction) -> Step:
        name, opcode, operands = instruction.opcode[0], instruction.opcode, instruction.operands
        if name in ("ld", "ldu"):
            return self._load(opcode, operands)
        if name == "st":
            return self._store(opcode, operands)
        if name in ("atom", "red"):
            return self._atomic(opcode, operands)
        if name == "cp":
            return self._copy(opcode, operands)
        if name == "mov":
            return self._move(opcode[-1], operands)
        if name == "cvta":
            return self._change_of_space(opcode, operands)
        if name == "setp":
            return self._comparison(opcode, operands)
        if name in ("shfl", "vote", "redux"):
            return self._exchange(opcode, operands)
        if name == "selp":
            return self._selection(opcode, operands)
        if name == "activemask":
            write = self.write(operands[0], "b32")
            return lambda block, mask: write(block, _ballot(block, block.everyone(mask), mask), mask)
        if name == "mma":
            return self._mma(opcode, operands)
        if name in ("ldmatrix", "stmatrix", "movmatrix"):
            return self._matrices(opcode, operands)
        if name in ("fence", "membar", "prefetch", "prefetchu", "nanosleep", "griddepcontrol"):
            return lambda block, mask: None
        computed = operation(opcode)
        return self._arithmetic(computed.function, computed.sources, computed.result, operands)

    def _arithmetic(
        self, function: Callable[..., Value], sources: tuple[str, ...], result: str, operands: tuple[str, ...]
    ) -> Step:
        write = self.write(operands[0], result)
        readers = [self.read(operand, kind) for operand, kind in zip(operands[1:], sources)]
        if len(readers) == 2:
            first, second = readers
            return lambda block, mask: write(block, function(first(block), second(block)), mask)
        return lambda block, mask: write(block, function(*[read(block) for read in readers]), mask)

    def _selection(self, opcode: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        """Choose; the result follows from what is chosen."""
        computed = operation(opcode)
        step = self._arithmetic(computed.function, computed.sources, computed.result, operands)
        target, first, second, deciding = map(self.registers, operands)
        holds = self.read(operands[3], "pred")

        def select(block: Block, mask: Mask) -> None:
            origin = None
            if block.undefined:
                either = [block.origin(one) for one in (first, second, deciding)]
                if any(one is not None for one in either):
                    one, other, decided = (0 if one is None else one for one in either)
                    origin = np.maximum(np.where(np.broadcast_to(holds(block), block.size), one, other), decided)
            step(block, mask)
            block.set_origin(target, origin, mask)

        return select

    def _move(self, kind: str, operands: tuple[str, ...]) -> Step:
        target, source = map(_names, operands)
        if len(target) == len(source) == 1:
            return self._arithmetic(lambda x: x, (kind,), kind, operands)
        bits = BYTES[kind] * 8 // max(len(target), len(source))
        if len(source) > 1:
            readers, write = [self.read(name, f"b{bits}") for name in source], self.write(target[0], kind)
            dtype = DTYPES[f"b{8 * BYTES[kind]}"]

            def pack(block: Block, mask: Mask) -> None:
                value = dtype(0)
                for i, read in enumerate(readers):
                    value = value | (read(block).astype(dtype) << dtype(bits * i))
                write(block, value.view(DTYPES[kind]), mask)

            return pack
        read, writers = self.read(source[0], f"b{8 * BYTES[kind]}"), [self.write(name, f"b{bits}") for name in target]

        def unpack(block: Block, mask: Mask) -> None:
            value = read(block)
            for i, write in enumerate(writers):
                write(block, (value >> value.dtype.type(bits * i)).astype(f"u{bits // 8}"), mask)

        return unpack

    def _change_of_space(self, opcode: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        window = DTYPES[opcode[-1]](WINDOWS.get(opcode[-2].partition("::")[0], 0))
        change = (lambda x: x - window) if "to" in opcode else (lambda x: x + window)
        return self._arithmetic(change, (opcode[-1],), opcode[-1], operands)

    def _comparison(self, opcode: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        kind, compare = opcode[-1], comparison(opcode[1], opcode[-1])
        targets = operands[0].split("|")
        writers = [self.write(name.strip(), "pred") for name in targets]
        first, second = self.read(operands[1], kind), self.read(operands[2], kind)
        combine = LOGIC.get(opcode[2])
        third = self.read(operands[3], "pred") if combine else None
        if kind.endswith("x2"):
            raise UnsupportedPtx("a comparison of packed floats")

        def run(block: Block, mask: Mask) -> None:
            holds = compare(first(block), second(block))
            for write, value in zip(writers, (holds, np.logical_not(holds))):
                write(block, value if third is None else combine(value, third(block)), mask)  # type: ignore[misc]

        return run

    # ---- memory ----

    def _place(self, opcode: tuple[str, ...]) -> tuple[str, str, int]:
        """Return space, element type and number of elements of a load or store."""
        spaces = [part.partition("::")[0] for part in opcode[1:]]
        space = next((part for part in spaces if part in ("global", "shared", "local", "param", "const")), "generic")
        return space, opcode[-1], next((int(part[1:]) for part in opcode if re.fullmatch(r"v[248]", part)), 1)

    def _load(self, opcode: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        space, kind, count = self._place(opcode)
        writers = [self.write(name, kind) for name in _names(operands[0])]
        address, size, dtype = self.address(operands[1], space), count * BYTES[kind], np.dtype(DTYPES[kind])
        targets, base = [self.registers(name) for name in _names(operands[0])], self.registers(operands[1])

        def run(block: Block, mask: Mask) -> None:
            block.demand(base, mask, ADDRESSES)
            addresses = address(block)
            if addresses.ndim == 0 and space == "param":
                values = block.launch.parameters[addresses : addresses + size].view(dtype)
                for write, target, value in zip(writers, targets, values):
                    write(block, value, mask)
                    block.set_origin(target, None, mask)
                return
            threads = block.active(mask)
            own = np.broadcast_to(addresses, block.size)[threads]
            columns = np.ascontiguousarray(load(block, space, own, size, threads)).view(dtype)
            origins = origins_of(block, space, own, size, dtype.itemsize, threads)
            for i, (write, target) in enumerate(zip(writers, targets)):
                write(block, spread(block, columns[:, i], mask), mask)
                block.set_origin(target, None if origins is None else spread(block, origins[:, i], mask), mask)

        return run

    def _store(self, opcode: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        space, kind, count = self._place(opcode)
        address = self.address(operands[0], space)
        readers = [self.read(name, kind) for name in _names(operands[1])]
        assert len(readers) == count
        sources, base = [self.registers(name) for name in _names(operands[1])], self.registers(operands[0])

        def run(block: Block, mask: Mask) -> None:
            block.demand(base, mask, ADDRESSES)
            threads = block.active(mask)
            columns = [np.broadcast_to(read(block), block.size)[threads] for read in readers]
            data = np.stack(columns, 1).view(np.uint8).reshape(len(threads), -1)
            addresses = np.broadcast_to(address(block), block.size)[threads]
            store(block, space, addresses, data, threads)
            if block.undefined:
                set_origins(block, space, addresses, data.shape[1], sources, mask)

        return run

    def _atomic(self, opcode: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        """Let the lanes change memory one after another."""
        space, kind, _ = self._place(opcode)
        does, dtype = next(part for part in opcode if part in ATOMICS), np.dtype(DTYPES[kind])
        write = self.write(operands[0], kind) if opcode[0] == "atom" else None
        rest = operands[1:] if write else operands
        address, readers = self.address(rest[0], space), [self.read(name, kind) for name in rest[1:]]
        target, sources = self.registers(operands[0]) if write else (), self.registers(*rest)

        def run(block: Block, mask: Mask) -> None:
            block.demand(sources, mask, "changes memory by")
            block.set_origin(target, None, mask)
            threads = block.active(mask)
            addresses = np.broadcast_to(address(block), block.size)[threads]
            values = [np.broadcast_to(read(block), block.size)[threads] for read in readers]
            before = np.zeros(block.size, dtype)
            for i, thread in enumerate(threads):
                arguments = [value[i] for value in values]

                def change(data: np.ndarray, thread=thread, arguments=arguments) -> np.ndarray:
                    before[thread] = data.view(dtype)[0, 0]
                    return np.asarray(ATOMICS[does](before[thread], *arguments), dtype).reshape(1, 1).view(np.uint8)

                one = slice(i, i + 1)
                if space == "shared":
                    block.shared.update(addresses[one], dtype.itemsize, change)
                else:
                    data = load(block, space, addresses[one], dtype.itemsize, threads[one])
                    store(block, space, addresses[one], change(data), threads[one])
            if write:
                write(block, before, mask)

        return run

    def _copy(self, opcode: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        if opcode[1] != "async" or "bulk" in opcode or "mbarrier" in opcode:
            raise UnsupportedPtx(".".join(opcode))
        if opcode[2] == "commit_group":

            def commit(block: Block, mask: Mask) -> None:
                block.groups[block.everyone(mask)] += 1

            return commit
        if opcode[2] == "wait_group":
            left = int(operands[0], 0)
            return lambda block, mask: block.wait_for_copies(mask, left)
        if opcode[2] == "wait_all":
            return lambda block, mask: block.wait_for_copies(mask, -1)
        size = int(operands[2], 0)
        target, source = self.address(operands[0], "shared"), self.address(operands[1], "global")
        has_size = len(operands) > 3 and not (len(operands) == 4 and "cache_hint" in ".".join(opcode))
        length = self.read(operands[3], "u32") if has_size else lambda block: np.uint32(size)
        if size not in (4, 8, 16) or (size != 16 and "cg" in opcode):
            raise UnsupportedPtx(f"a copy of {size} bytes")

        named = self.registers(*operands)

        def copy(block: Block, mask: Mask) -> None:
            block.demand(named, mask, ADDRESSES)
            threads = block.active(mask)
            targets, sources, lengths = (
                np.broadcast_to(read(block), block.size)[threads] for read in (target, source, length)
            )
            if (lengths > size).any():
                raise Fault(f"copies {lengths.max()} of {size} bytes")
            if (sources % size).any():
                raise Fault(f"the source of a copy is not aligned to {size} bytes")
            data = np.zeros((len(threads), size), np.uint8)
            whole = lengths == size
            if whole.any():
                data[whole] = block.launch.memory.load(sources[whole], size, block.number)
            for i in np.flatnonzero(~whole & (lengths > 0)):
                each = sources[i] + np.arange(lengths[i])
                data[i, : lengths[i]] = block.launch.memory.load(each, 1, block.number)[:, 0]
            if block.launch.traffic:
                asked = lengths > 0
                block.launch.counts.add_global("load", sources[asked], size, threads[asked])
                block.launch.counts.add_shared("cp.async", targets, size, threads)
            block.shared.begin_copy(targets, size, threads)
            block.copies.append(Copies(threads, targets, data, block.groups[threads]))

        return copy

    # ---- warps ----

    def _exchange(self, opcode: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        name, mode, kind = opcode[0], opcode[2], opcode[-1]
        targets = operands[0].split("|")
        if name == "shfl":
            write = self.write(targets[0], "b32")
            valid = self.write(targets[1], "pred") if len(targets) > 1 else None
            value, lane, clamp = (self.read(operand, "b32") for operand in operands[1:4])
            moved, deciding = self.registers(operands[1]), self.registers(*operands[2:])

            def shuffle(block: Block, mask: Mask) -> None:
                source, inside = shuffle_source(mode, block.lanes % WARP, lane(block), clamp(block))
                from_lane = block.lanes // WARP * WARP + source
                if (inside & ~block.everyone(mask)[from_lane])[block.everyone(mask)].any():
                    raise Fault("shuffles a value from a lane that does not take part")
                block.demand(deciding, mask, DECIDES)
                origin = block.origin(moved)
                write(block, np.broadcast_to(value(block), block.size)[from_lane], mask)
                block.set_origin(self.registers(targets[0]), None if origin is None else origin[from_lane], mask)
                if valid:
                    valid(block, np.broadcast_to(inside, block.size), mask)

            return shuffle
        write = self.write(targets[0], kind)
        sources, results = self.registers(*operands[1:]), self.registers(operands[0])
        if name == "vote":
            condition = self.read(operands[1], "pred")

            def vote(block: Block, mask: Mask) -> None:
                block.demand(sources, mask, DECIDES)
                block.set_origin(results, None, mask)
                everyone = block.everyone(mask)
                true = np.broadcast_to(condition(block), block.size)
                if mode == "ballot":
                    write(block, _ballot(block, true & everyone, mask), mask)
                    return
                some, all_ = (true & everyone).reshape(-1, WARP).any(1), (true | ~everyone).reshape(-1, WARP).all(1)
                result = {"any": some, "all": all_, "uni": all_ | ~some}[mode]
                write(block, np.repeat(result, WARP), mask)

            return vote
        value = self.read(operands[1], kind)

        def reduce(block: Block, mask: Mask) -> None:
            block.demand(sources, mask, DECIDES)
            block.set_origin(results, None, mask)
            values, everyone = np.broadcast_to(value(block), block.size), block.everyone(mask)
            result = np.zeros(block.size, values.dtype)
            for warp in block.active_warps(mask):
                lanes = slice(warp * WARP, warp * WARP + WARP)
                result[lanes] = ATOMIC_REDUCTIONS[mode].reduce(values[lanes][everyone[lanes]])
            write(block, result, mask)

        return reduce

    def _mma(self, opcode: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        writers = [self.write(name, "b32") for name in _names(operands[0])]
        readers = [[self.read(name, "b32") for name in _names(operand)] for operand in operands[1:4]]
        matrices.mma(opcode, *([np.zeros(32, np.uint32)] * len(group) for group in readers))  # refuse what it cannot do

        targets = [self.registers(name) for name in _names(operands[0])]
        sources = [[self.registers(name) for name in _names(operand)] for operand in operands[1:4]]

        def run(block: Block, mask: Mask) -> None:
            groups = [[np.broadcast_to(read(block), block.size) for read in group] for group in readers]
            origins: list[np.ndarray] | list[None] = [None] * len(targets)
            if block.undefined:
                defined = np.zeros(block.size, np.int32)
                found = [[block.origin(one) for one in group] for group in sources]
                filled = [[defined if one is None else one for one in group] for group in found]
                origins = matrices.mma_origins(*filled)
            for write, value, target, origin in zip(writers, matrices.mma(opcode, *groups), targets, origins):
                write(block, value, mask)
                block.set_origin(target, origin, mask)

        return run

    def _matrices(self, opcode: tuple[str, ...], operands: tuple[str, ...]) -> Step:
        transposed = "trans" in opcode
        if "m8n8" not in opcode or opcode[-1] != "b16":
            raise UnsupportedPtx(".".join(opcode))
        if opcode[0] == "movmatrix":
            write, read = self.write(operands[0], "b32"), self.read(operands[1], "b32")
            target, source = self.registers(operands[0]), self.registers(operands[1])

            def move(block: Block, mask: Mask) -> None:
                origin = block.origin(source)
                if origin is not None:
                    by_row = np.repeat(origin.reshape(-1, 8, 4), 2, 2)
                    origin = matrices.largest_of_registers(by_row, transposed).ravel()
                block.set_origin(target, origin, mask)
                words = np.broadcast_to(read(block), block.size).reshape(-1, WARP)
                rows = matrices.registers_to_rows(words, False)
                write(block, matrices.rows_to_registers(rows, transposed).ravel(), mask)

            return move
        loads = opcode[0] == "ldmatrix"
        address = self.address(operands[1 if loads else 0], "shared")
        names = _names(operands[0 if loads else 1])
        count = len(names)
        writers = [self.write(name, "b32") for name in names] if loads else []
        readers = [] if loads else [self.read(name, "b32") for name in names]
        base, held = self.registers(operands[1 if loads else 0]), [self.registers(name) for name in names]

        def places(block: Block, mask: Mask) -> tuple[np.ndarray, np.ndarray]:
            block.demand(base, mask, ADDRESSES)
            threads = block.active(mask)
            threads = threads[threads % WARP < 8 * count]
            addresses = np.broadcast_to(address(block), block.size)[threads]
            if block.launch.traffic:
                block.launch.counts.add_shared(opcode[0], addresses, WIDEST, threads)
            return addresses, threads

        def load_matrices(block: Block, mask: Mask) -> None:
            addresses, threads = places(block, mask)
            rows = block.shared.load(addresses, WIDEST, threads).copy().view(np.uint16).reshape(-1, count, 8, 8)
            words = matrices.rows_to_registers(rows, transposed)
            origins = origins_of(block, "shared", addresses, WIDEST, 2, threads)
            if origins is not None:
                origins = matrices.largest_of_registers(origins.reshape(-1, count, 8, 8), transposed)
            for i, write in enumerate(writers):
                write(block, spread(block, words[:, i].ravel(), mask), mask)
                origin = None if origins is None else spread(block, origins[:, i].ravel(), mask)
                block.set_origin(held[i], origin, mask)

        def store_matrices(block: Block, mask: Mask) -> None:
            for one in held:
                block.demand(one, mask, "stores as a matrix")
            addresses, threads = places(block, mask)
            active = block.active_warps(mask)
            words = np.stack(
                [np.broadcast_to(read(block), block.size).reshape(-1, WARP)[active] for read in readers], 1
            )
            rows = matrices.registers_to_rows(words, transposed).reshape(-1, 8)
            block.shared.store(addresses, np.ascontiguousarray(rows).view(np.uint8), threads)

        return load_matrices if loads else store_matrices


# ---- what steps do ----

ATOMIC_REDUCTIONS = {
    "add": np.add, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip
ATOMICS: dict[str, Callable[..., Value]] = {
    **ATOMIC_REDUCTIONS,
    "exch": lambda old, new: new,
    "cas": lambda old, expected, new: new if old == expected else old,
    "inc": lambda old, limit: 0 if old >= limit else old + 1,
    "dec": lambda old, limit: limit if old == 0 or old > limit else old - 1,
}


def spread(block: Block, values: np.ndarray, mask: Mask) -> np.ndarray:
    """Put values of the active threads into an array of all threads."""
    if mask is None:
        return values
    everyone = np.zeros(block.size, values.dtype)
    everyone[mask] = values
    return everyone


def _space_of(addresses: np.ndarray, space: str) -> tuple[str, np.ndarray]:
    """Resolve generic addresses."""
    if space != "generic":
        return ("global" if space == "const" else space), addresses
    windows = np.unique(addresses >> 56)
    if len(windows) > 1:
        raise UnsupportedPtx("generic addresses of different memories in one instruction")
    names = {window >> 56: name for name, window in WINDOWS.items()}
    name = names.get(int(windows[0]), "global")
    return name, addresses - WINDOWS.get(name, 0)


def load(block: Block, space: str, addresses: np.ndarray, size: int, threads: np.ndarray) -> np.ndarray:
    """Return `size` bytes for each of the threads."""
    space, addresses = _space_of(addresses, space)
    counts, traffic = block.launch.counts, block.launch.traffic
    if space == "global":
        if traffic:
            counts.add_global("load", addresses, size, threads)
        return block.launch.memory.load(addresses, size, block.number)
    if space == "shared":
        if traffic:
            counts.add_shared("load", addresses, size, threads)
        return block.shared.load(addresses, size, threads)
    places = addresses[:, None] + np.arange(size)
    if space == "param":
        return block.launch.parameters[places]
    return block.local[threads[:, None], places]


def origins_of(
    block: Block, space: str, addresses: np.ndarray, size: int, unit: int, threads: np.ndarray
) -> np.ndarray | None:
    """Return what each unit of what was just loaded follows from, (n, size / unit), None if all have values."""
    space, addresses = _space_of(addresses, space)
    if not block.launch.checks or space not in ("shared", "local"):
        return None
    if space == "shared":
        return block.shared.origins(addresses, size, unit, block.at + 1)
    found = block.local_origin[threads[:, None], addresses[:, None] + np.arange(size)]
    return found.reshape(len(threads), -1, unit).max(2) if found.any() else None


def set_origins(
    block: Block, space: str, addresses: np.ndarray, size: int, sources: list[tuple[int, ...]], mask: Mask
) -> None:
    """Say what was just stored follows from: registers, one for each equal part of `size` bytes."""
    space, addresses = _space_of(addresses, space)
    threads = block.active(mask)
    if space == "global":
        for source in sources:
            block.demand(source, mask, "stores to device memory")
        return
    found = [block.origin(source) for source in sources]
    origins = np.stack([np.zeros(len(threads), np.int32) if one is None else one[threads] for one in found], 1)
    if space == "shared":
        block.shared.set_origins(addresses, size, origins)
    else:
        places = addresses[:, None] + np.arange(size)
        block.local_origin[threads[:, None], places] = np.repeat(origins, size // len(sources), 1)


def store(block: Block, space: str, addresses: np.ndarray, data: np.ndarray, threads: np.ndarray) -> None:
    space, addresses = _space_of(addresses, space)
    counts, traffic = block.launch.counts, block.launch.traffic
    if space == "global":
        if traffic:
            counts.add_global("store", addresses, data.shape[1], threads)
        block.launch.memory.store(addresses, data, block.number)
    elif space == "shared":
        if traffic:
            counts.add_shared("store", addresses, data.shape[1], threads)
        block.shared.store(addresses, data, threads)
    else:
        block.local[threads[:, None], addresses[:, None] + np.arange(data.shape[1])] = data


def shuffle_source(mode: str, lane: np.ndarray, b: Value, c: Value) -> tuple[np.ndarray, np.ndarray]:
    """Return the lanes that values come from, and whether they are inside the segment."""
    segment, clamp = (c >> np.uint32(8)) & np.uint32(31), c & np.uint32(31)
    lane, b = lane.astype(np.int64), (b & np.uint32(31)).astype(np.int64)
    highest, lowest = (lane & segment) | (clamp & ~segment & np.uint32(31)), lane & segment
    if mode == "up":
        source = lane - b
        inside = source >= highest
    elif mode == "down":
        source = lane + b
        inside = source <= highest
    else:
        source = lane ^ b if mode == "bfly" else lowest | (b & ~segment.astype(np.int64) & 31)
        inside = source <= highest
    return np.where(inside, source, lane).astype(np.int64), inside


def _ballot(block: Block, true: np.ndarray, mask: Mask) -> np.ndarray:
    bits = np.where(true, np.uint32(1) << (block.lanes % WARP).astype(np.uint32), np.uint32(0)).reshape(-1, WARP)
    return np.repeat(np.bitwise_or.reduce(bits, 1), WARP)


def _reduction(does: str, write: Writer, target: tuple[int, ...]) -> Callable[[Block, np.ndarray, np.ndarray], None]:
    """Return what bar.red does with the votes once all threads have come."""
    reductions: dict[str, Callable[..., Value]] = {"or": np.any, "and": np.all}
    reduce = reductions[does]

    def write_result(block: Block, mask: np.ndarray, votes: np.ndarray) -> None:
        mask_or_all = None if mask.all() else mask
        write(block, reduce(votes), mask_or_all)
        block.set_origin(target, None, mask_or_all)

    return write_result


def _decided(registers: tuple[int, ...], control: Control) -> Control:
    """Return the control; Fault if threads decide by undefined values."""
    if not registers:
        return control

    def decide(block: Block, mask: Mask, place: int) -> int:
        block.demand(registers, mask, DECIDES)
        return control(block, mask, place)

    return decide


def _branch(holds: Reader | None, target: int) -> Control:
    if holds is None:
        return lambda block, mask, place: target

    def branch(block: Block, mask: Mask, place: int) -> int:
        condition = holds(block)
        if np.ndim(condition) == 0:
            return target if condition else place + 1
        taken = condition if mask is None else condition & mask
        count = np.count_nonzero(taken)
        if count == 0:
            return place + 1
        if count == (block.size if mask is None else np.count_nonzero(mask)):
            return target
        block.places[block.everyone(mask)] = place + 1
        block.places[taken] = target
        return PARKED

    return branch


def _indirect_branch(index: Reader, targets: list[int]) -> Control:
    table = np.array(targets)

    def branch(block: Block, mask: Mask, place: int) -> int:
        threads = block.active(mask)
        block.places[threads] = table[np.broadcast_to(index(block), block.size)[threads]]
        return PARKED

    return branch


def _end(holds: Reader | None) -> Control:
    def end(block: Block, mask: Mask, place: int) -> int:
        ending = block.everyone(mask)
        if holds is not None:
            block.places[ending] = place + 1
            ending = ending & holds(block)
        block.done |= ending
        return PARKED

    return end


def _trap(block: Block, mask: Mask, place: int) -> int:
    raise Fault("trap")


def _special(operand: str, dtype: type) -> Reader:
    """Read a register that the hardware sets."""
    name, _, axis = operand[1:].partition(".")
    place = "xyz".find(axis or "x")

    def read(block: Block) -> Value:
        x, y, _ = block.launch.threads
        if name == "tid":
            if x == block.count:
                return block.lanes.astype(dtype) if place == 0 else dtype(0)
            return (block.lanes % x, block.lanes // x % y, block.lanes // (x * y))[place].astype(dtype)
        if name == "ctaid":
            width, height, _ = block.launch.grid
            return dtype(
                (block.number % width, block.number // width % height, block.number // (width * height))[place]
            )
        if name == "laneid":
            return (block.lanes % WARP).astype(dtype)
        return dtype({"ntid": block.launch.threads, "nctaid": block.launch.grid}[name][place])

    if name not in ("tid", "ctaid", "laneid", "ntid", "nctaid"):
        raise UnsupportedPtx(operand)
    return read
