"""PTX as nvcc writes it, parsed into kernels."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

BYTES = {"pred": 1, **{f"{kind}{bits}": bits // 8 for kind in "busf" for bits in (8, 16, 32, 64)}}
REGISTER_DTYPES: dict[str, Any] = {"pred": np.bool_, "f32": np.float32, "f64": np.float64, **{
    f"{kind}{bits}": np.dtype(f"u{bits // 8}").type for kind in "bus" for bits in (8, 16, 32, 64)
}, "f16": np.uint16, "f16x2": np.uint32}  # fmt: skip

STATEMENT = re.compile(
    r"\s+"
    r"|(?P<scope>[{}])"
    r"|(?P<location>\.loc\s[^\n]*\n)"
    r"|(?P<label>[\w$]+):(?!:)"
    r"|(?P<text>[^;]+);"
)


class UnsupportedPtx(Exception):
    """The interpreter lacks an instruction or a directive."""


@dataclass(frozen=True)
class Instruction:
    """One instruction; registers that an inner scope declares have names of their own."""

    text: str
    line: int  # of the PTX
    source: tuple[int, int]  # file and line of the CUDA source, (0, 0) if unknown
    guard: str  # the predicate register, "" for none
    negated: bool  # whether the guard must be false
    opcode: tuple[str, ...]  # split at the dots
    operands: tuple[str, ...]


@dataclass
class Kernel:
    """An entry of a module. Addresses of its variables count from the start of their memory."""

    name: str
    parameters: dict[str, int] = field(default_factory=dict)  # bytes of each
    registers: dict[str, type] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)  # addresses
    static_shared: int = 0
    local: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0
    labels: dict[str, int] = field(default_factory=dict)  # places in `code`
    targets: dict[str, list[str]] = field(default_factory=dict)  # of indirect branches
    code: list[Instruction] = field(default_factory=list)

    def shared_bytes(self, dynamic: int) -> int:
        """Return the bytes of a block that asks for `dynamic` ones beside the static variables."""
        return -(-self.static_shared // 16) * 16 + dynamic if dynamic else self.static_shared


@dataclass
class Module:
    """Kernels, and the tables in device memory that they share."""

    kernels: dict[str, Kernel]
    tables: dict[str, bytes]
    files: dict[int, str]  # names of the sources by their numbers


def load(path: Path) -> Module:
    """Parse a file of PTX."""
    text = re.sub(r"/\*.*?\*/", lambda comment: re.sub(r"[^\n]", " ", comment[0]), path.read_text(), flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    entries = list(re.finditer(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{;]*)\{", text))
    dynamic = re.findall(r"\.extern\s+\.shared[^;]*?([\w$]+)\s*\[\s*\]", text)
    first = entries[0].start() if entries else len(text)
    static = re.findall(r"(?<!extern )\.shared\s[^;]*", text[:first])
    kernels = {}
    for entry in entries:
        kernel = Kernel(entry[1])
        for kind, name, count in re.findall(
            r"\.param(?:\s+\.align\s+\d+)?\s+\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?", entry[2]
        ):
            kernel.parameters[name] = BYTES[kind] * int(count or 1)
        for declaration in static:
            _declare(kernel, declaration, None)
        _read_body(kernel, text, entry.end())
        kernel.shared |= dict.fromkeys(dynamic, -(-kernel.static_shared // 16) * 16)
        kernels[kernel.name] = kernel
    files = {int(number): name for number, name in re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text)}
    return Module(kernels, dict(_tables(text)), files)


def _tables(text: str) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the arrays in global and constant memory."""
    pattern = (
        r"\.(?:global|const)\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?(?:\s*=\s*\{?([^;}]*)\}?)?\s*;"
    )
    for kind, name, count, values in re.findall(pattern, text):
        numbers = [value.strip() for value in values.split(",") if value.strip()]
        content = b"".join(_encoded(value, BYTES[kind]) for value in numbers)
        yield name, content.ljust(BYTES[kind] * int(count or 1), b"\0")


def _encoded(value: str, size: int) -> bytes:
    if re.match(r"0[fd]", value, re.I):
        return bytes.fromhex(value[2:])[::-1]
    return struct.pack("<Q", int(value, 0) & 2**64 - 1)[:size]


def _read_body(kernel: Kernel, text: str, start: int) -> None:
    """Read declarations and instructions up to the brace that ends the kernel."""
    scopes: list[dict[str, str]] = [{}]
    place, line, source = start, text.count("\n", 0, start) + 1, (0, 0)
    while scopes:
        match = STATEMENT.match(text, place)
        if match is None:
            raise UnsupportedPtx(f"{kernel.name}, line {line}: no end of the statement {text[place : place + 60]!r}")
        if match["scope"]:
            scopes = [*scopes, {}] if match["scope"] == "{" else scopes[:-1]
        elif match["location"]:
            file, number = match["location"].split()[1:3]
            source = (int(file), int(number))
        elif match["label"]:
            kernel.labels[match["label"]] = len(kernel.code)
        elif match["text"]:
            statement = match["text"].strip()
            if statement.startswith(".branchtargets"):
                name = next(name for name, at in reversed(kernel.labels.items()) if at == len(kernel.code))
                kernel.targets[name] = [target.strip() for target in statement.split(None, 1)[1].split(",")]
            elif statement.startswith("."):
                _declare(kernel, statement, scopes[-1] if len(scopes) > 1 else None)
            else:
                kernel.code.append(_instruction(statement, line, source, scopes))
        line += match[0].count("\n")
        place = match.end()


def _declare(kernel: Kernel, statement: str, scope: dict[str, str] | None) -> None:
    """Add registers or memory; `scope` maps names of an inner scope to unique ones."""
    if match := re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.S):
        for name in match[2].split(","):
            stem, count = re.match(r"\s*([\w%$]+)(?:<(\d+)>)?", name).groups()  # type: ignore[union-attr]
            for declared in [f"{stem}{i}" for i in range(int(count))] if count else [stem]:
                unique = declared
                if scope is not None:
                    scope[declared] = unique = f"{declared}'{len(kernel.registers)}"
                kernel.registers[unique] = REGISTER_DTYPES[match[1]]
    elif match := re.match(r"\.(shared|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)((?:\[\d+\])*)", statement):
        space, align, kind, name, counts = match.groups()
        size = BYTES[kind] * int(np.prod([int(n) for n in re.findall(r"\d+", counts)], initial=1))
        used = kernel.static_shared if space == "shared" else kernel.local_bytes
        at = -(-used // int(align or BYTES[kind])) * int(align or BYTES[kind])
        if space == "shared":
            kernel.shared[name], kernel.static_shared = at, at + size
        else:
            kernel.local[name], kernel.local_bytes = at, at + size
    elif not statement.startswith(".pragma"):
        raise UnsupportedPtx(f"{kernel.name}: {statement}")


def _instruction(statement: str, line: int, source: tuple[int, int], scopes: list[dict[str, str]]) -> Instruction:
    def unique(name: re.Match) -> str:
        return next((scope[name[0]] for scope in reversed(scopes) if name[0] in scope), name[0])

    guard, negated, rest = "", False, statement
    if match := re.match(r"@(!?)([\w%$]+)\s+", statement):
        negated, guard, rest = bool(match[1]), re.sub(r"[\w%$]+", unique, match[2]), statement[match.end() :]
    opcode, _, operands = rest.partition(" ") if " " in rest.split("\t")[0] else rest.partition("\t")
    # Commas within braces and brackets belong to one operand.
    parts = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,])+", operands)
    named = tuple(re.sub(r"[\w%$]+", unique, part).strip() for part in parts if part.strip())
    text = " ".join(statement.split())
    return Instruction(text, line, source, guard, negated, tuple(opcode.strip().split(".")), named)
