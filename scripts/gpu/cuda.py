"""The resources of the CUDA kernels, compiled by nvcc and launched as the launch code would, without a GPU."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu.instructions import cuobjdump, instruction_mix, lines_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
RUNTIME = ROOT / "tests" / "support" / "ptx" / "runtime.cpp"  # hands launches over, and needs no GPU
SOURCES = sorted(CSRC.glob("*/cuda*.cu"))


def nvcc() -> str | None:
    """Return the path of nvcc, if any."""
    return shutil.which("nvcc")


def run(command: list[str]) -> subprocess.CompletedProcess:
    """Run a command; RuntimeError with its messages if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr}")
    return done


def nvcc_version() -> str:
    """Return nvcc's version, such as 13.0.88."""
    return re.search(r"V([\d.]+)", run([nvcc(), "--version"]).stdout)[1]


def kernels(architectures: tuple[int, ...]) -> list[dict]:
    """Return a row for every architecture and every kernel that a call launches.

    Raises:
        RuntimeError: a compiler failed, or a kernel was compiled that no call launches, or the other way round.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        objects = [Path(folder) / f"{source.parent.name}_{source.stem}.o" for source in SOURCES]
        compiled = pool.map(lambda source, target: compile_source(source, target, architectures), SOURCES, objects)
        used = [row for rows in compiled for row in rows]
        launches = launches_of(objects, Path(folder) / "launches")
    launched = {launch["kernel"] for launch in launches}
    if launched != {row["name"] for row in used}:
        raise RuntimeError(f"compiled and launched kernels differ in {launched ^ {row['name'] for row in used}}")
    calls = {name: [launch["call"] for launch in launches if launch["kernel"] == name] for name in launched}
    shapes = {launch["kernel"]: (launch["threads"], launch["dynamic_shared"]) for launch in launches}
    readable = dict(zip(launched, demangled(list(launched))))
    return [
        {
            "backend": "cuda",
            "kernel": readable[name := row.pop("name")],
            "calls": list(dict.fromkeys(calls[name])),
            "threads": shapes[name][0],
            "dynamic_shared": shapes[name][1],
            **row,
        }
        for row in used
    ]


def compile_source(source: Path, target: Path, architectures: tuple[int, ...]) -> list[dict]:
    """Return registers, spills, shared memory and instructions of all kernels of a source, also by its lines."""
    gencode = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in architectures]
    command = [
        nvcc(),
        "-std=c++17",
        "-O3",
        "-lineinfo",
        *gencode,
        "-Xptxas=-v",
        "-c",
        str(source),
        "-o",
        str(target),
    ]
    report = run(command).stderr
    code = run([cuobjdump(), "-sass", str(target)]).stdout
    folder = target.with_suffix("")
    folder.mkdir()
    subprocess.run([cuobjdump(), "-xelf", "all", str(target)], check=True, capture_output=True, cwd=folder)
    lines = {sm: lines_of(next(folder.glob(f"*.sm_{sm}.cubin"))) for sm in architectures}
    mixes = {}
    for text in code.split("arch = sm_")[1:]:
        for function in text.split("Function : ")[1:]:
            mixes[function.split()[0], int(re.match(r"\d+", text)[0])] = instruction_mix(function)
    rows = []
    for block in report.split("Compiling entry function '")[1:]:
        number = lambda pattern: int((re.search(pattern, block) or [0, 0])[1])  # noqa: B023, E731
        name, architecture = re.match(r"(\w+)' for 'sm_(\d+)", block).groups()
        rows.append({
            "name": name,
            "architecture": int(architecture),
            "registers": number(r"Used (\d+) registers"),
            "stack": number(r"(\d+) bytes stack frame"),
            "spill_stores": number(r"(\d+) bytes spill stores"),
            "spill_loads": number(r"(\d+) bytes spill loads"),
            "static_shared": number(r"(\d+) bytes smem"),
            "instructions": mixes[name, int(architecture)],
            "lines": lines[int(architecture)][name],
        })  # fmt: skip
    return rows


def launches_of(objects: list[Path], program: Path) -> list[dict]:
    """Return the launches of the ops, printed by launches.cpp."""
    sources = [str(HERE / "launches.cpp"), str(RUNTIME), *map(str, objects)]
    run([nvcc(), "-std=c++17", "-cudart=none", f"-I{CSRC}", *sources, "-o", str(program)])
    return [json.loads(line) for line in run([str(program)]).stdout.splitlines()]


def demangled(names: list[str]) -> list[str]:
    """Return readable names, such as blur_direct<4, Images>."""
    full = run(["c++filt", *names]).stdout.splitlines()
    templates = (re.sub(r"\bfovblur::|_GLOBAL__N__\w+::|\(anonymous namespace\)::|^void ", "", name) for name in full)
    return [re.match(r"\w+(<.*>)?(?=\()", name)[0] for name in templates]
