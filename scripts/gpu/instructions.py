"""The instructions of a kernel's machine code."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import triton

# Loads and stores are named by their width in bits, the rest by the unit that they use.
MATRIX = ("HMMA", "HGMMA")
INSTRUCTION = 16  # bytes


def cuobjdump() -> str:
    """Return the cuobjdump of the CUDA toolkit, else of Triton."""
    return shutil.which("cuobjdump") or str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def lines_of(cubin: Path) -> dict[str, Counter[tuple[str, int]]]:
    """Count the instructions of each kernel by file and line of the source; compiled with -lineinfo."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    code = subprocess.run([program, "-g", "-c", cubin], check=True, capture_output=True, text=True).stdout
    counts = {}
    for kernel, text in re.findall(r"^\.text\.(\S+):\n(.*?)(?=^//-----|\Z)", code, re.M | re.S):
        lines, place = Counter(), ("", 0)
        for file, line, instruction in re.findall(
            r'//## File "([^"]*)", line (\d+)|^\s+/\*[0-9a-f]{4,}\*/\s+(\S)', text, re.M
        ):
            if instruction:
                lines[place] += 1
            else:
                place = Path(file).name, int(line)
        counts[kernel] = lines
    return counts


def instruction_mix(code: str) -> dict[str, int]:
    """Count the instructions of each kind in the output of cuobjdump -sass for one kernel; loops count once."""
    counts = Counter(map(kind_of, re.findall(r"\s([A-Z][A-Z0-9]*(?:\.\w+)*)\s", code)))
    del counts[""]
    return dict(sorted(counts.items()))


def walks(code: str) -> list[tuple[int, int, int]]:
    """Return the lengths of the loops that multiply matrices and take square roots, in order.

    Each is the instructions of the loop, those of them that its longest branch skips, and those that come before the
    loop, since the last one.
    """
    pattern = r"/\*([0-9a-f]{4,5})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9.]*)([^;]*);"
    rows = [(int(at, 16), bool(guard), name, rest) for at, guard, name, rest in re.findall(pattern, code)]
    jumps = []
    for at, guarded, name, rest in rows:
        target = re.search(r"0x([0-9a-f]+)\s*$", rest)
        if name.startswith("BRA") and target:
            jumps.append((at, guarded, int(target[1], 16)))
    loops = sorted((target, at) for at, _, target in jumps if target < at)
    found, end_of_last = [], 0
    for start, end in loops:
        names = [name for at, _, name, _ in rows if start <= at <= end]
        nested = any(
            start <= first and last <= end and last - first >= 4096
            for first, last in loops
            if (first, last) != (start, end)
        )
        if nested or not any(n.startswith(MATRIX) for n in names) or "MUFU.SQRT" not in names or len(names) < 250:
            continue
        skipped = [
            min(target, end) - at for at, guarded, target in jumps if guarded and start <= at < target <= end + 64
        ]
        before = sum(end_of_last <= at < start for at, *_ in rows)
        found.append((len(names), max(skipped, default=0) // INSTRUCTION, before))
        end_of_last = end
    return found


def kind_of(opcode: str) -> str:
    """Return the kind of an opcode, "" for one that is not counted."""
    name, *suffixes = opcode.split(".")
    if name in ("LDG", "STG", "LDGSTS", "LDS", "STS", "LDL", "STL"):
        width = next((suffix for suffix in suffixes if suffix in ("64", "128")), "")
        narrow = next((suffix for suffix in suffixes if suffix in ("U8", "S8", "U16", "S16")), "")
        return f"{name}.{width or narrow[1:] or '32'}"
    return name if name in (*MATRIX, "FFMA", "LDSM", "UTMALDG", "MUFU") else ""
