"""Build csrc/ into fovblur._cpu (always) and fovblur._cuda (if nvcc is found), with ninja and without torch.

build.ninja is written by hand: setuptools compiles neither CUDA nor one source in several variants, and torch's
extension builder would tie the modules to the ABI of one torch.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
OPS = ("foveated_blur", "enhanced_similarity", "retinal_blur")
DEFAULT_CUDA_ARCHITECTURES = "8.0;8.6;8.9;9.0+PTX"

# Variants of the CPU kernels: (name, bytes of a vector register, compiler flags).
if platform.machine().lower() in ("x86_64", "amd64"):
    CPU_VARIANTS = [
        ("baseline", 16, []),
        ("avx2", 32, ["-march=x86-64-v3"]),
        ("avx512", 64, ["-march=x86-64-v4", "-mprefer-vector-width=512"]),
    ]
else:
    CPU_VARIANTS = [("baseline", 16, [])]


class CudaUnavailable(Exception):
    """The CUDA module cannot be built; the message is the reason."""


def find_nvcc() -> Path:
    """Return the nvcc of CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [f"{home}/bin/nvcc" for home in homes if home]
    for candidate in (*candidates, shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    raise CudaUnavailable("nvcc not found (looked in CUDA_HOME, PATH and /usr/local/cuda)")


def cuda_architectures() -> list[str]:
    """Return the architectures to build for, such as "8.6" or "9.0+PTX", from TORCH_CUDA_ARCH_LIST or the default."""
    requested = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    architectures = re.split(r"[;,\s]+", requested or DEFAULT_CUDA_ARCHITECTURES)
    for architecture in architectures:
        if not re.fullmatch(r"\d+\.\d[a-z]?(\+PTX)?", architecture):
            raise CudaUnavailable(f"TORCH_CUDA_ARCH_LIST names {architecture!r}; write numbers such as 8.6 or 9.0+PTX")
    return architectures


def gencode_flags(architectures: list[str]) -> list[str]:
    """Return nvcc's flags for machine code of every architecture, and PTX where it is requested."""
    flags = []
    for architecture in architectures:
        number = architecture.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if architecture.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def first_line_of(command: list[str]) -> str:
    """Run a command and return the first line that it prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


class Ninja:
    """Write and run the build.ninja of a directory."""

    def __init__(self, directory: Path):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.lines = ["ninja_required_version = 1.5"]

    def compile(self, compiler: str, flags: list[str], source: Path, target: str) -> str:
        """Add an object file, rebuilt when its source, an included header or a flag changes; return its name."""
        depfile = f"{target}.d"
        command = [compiler, *flags, "-MD", "-MF", depfile, "-c", str(source), "-o", target]
        return self._add(target, command, [str(source)], depfile)

    def link(self, linker: list[str], objects: list[str], target: Path) -> None:
        """Add a module linked from objects."""
        self._add(str(target), [*linker, *objects, "-o", str(target)], objects)

    def _add(self, target: str, command: list[str], inputs: list[str], depfile: str = "") -> str:
        rule = f"rule_{len(self.lines)}"
        quoted = subprocess.list2cmdline(command).replace("$", "$$")
        self.lines += [f"rule {rule}", f"  command = {quoted}", f"  description = {Path(target).name}"]
        self.lines += [f"  depfile = {depfile}", "  deps = gcc"] if depfile else []
        escape = lambda path: path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")  # noqa: E731
        self.lines.append(f"build {escape(target)}: {rule} {' '.join(map(escape, inputs))}")
        return target

    def run(self) -> None:
        """Build what has changed; CalledProcessError if a command fails."""
        import ninja  # of build-system.requires

        (self.directory / "build.ninja").write_text("\n".join(self.lines) + "\n")
        program = Path(ninja.BIN_DIR) / "ninja"
        done = subprocess.run([str(program), "-C", str(self.directory)], capture_output=True, text=True)
        print(done.stdout, end="")
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)


class BuildKernels(build_ext):
    """The build_ext command: the CUDA module first, whose facts the CPU module keeps."""

    def run(self) -> None:
        self.into_checkout = bool(self.inplace) or getattr(self, "editable_mode", False)
        super().run()

    def build_extensions(self) -> None:
        self.cxx = os.environ.get("CXX", "c++")
        cuda = self.build_cuda_if_possible()
        info = {
            "compiler": first_line_of([self.cxx, "--version"]),
            "cpu_variants": [name for name, _, _ in CPU_VARIANTS],
            "cuda": cuda,
        }
        self.build_cpu(info)

    def extension_path(self, name: str) -> Path:
        """Return the file of a module, in a folder that exists."""
        path = Path(self.get_ext_fullpath(name)).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def build_directory(self, name: str) -> Path:
        """Return the folder of objects, in the checkout, so that a second install compiles only what has changed."""
        return ROOT / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / name

    def bind_flags(self) -> list[str]:
        """Return the compiler flags of the Python bindings."""
        import pybind11  # of build-system.requires

        includes = [pybind11.get_include(), sysconfig.get_path("include"), str(CSRC)]
        return ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", *(f"-I{path}" for path in includes)]

    def link_command(self) -> list[str]:
        """Return the command that links a module."""
        if sys.platform == "darwin":
            return [self.cxx, "-bundle", "-undefined", "dynamic_lookup"]
        return [self.cxx, "-shared", "-pthread"]

    def build_cpu(self, info: dict) -> None:
        """Build the CPU module, which holds `info`."""
        directory = self.build_directory("cpu")
        ninja = Ninja(directory)
        header = directory / "build_info.h"
        text = f'#define FOVBLUR_BUILD_INFO R"json({json.dumps(info)})json"\n'
        if not header.exists() or header.read_text() != text:
            header.write_text(text)
        # Without predictive commoning, taps are broadcast by loads, which take no slot of the multipliers.
        common = "-std=c++17 -O3 -fPIC -pthread -fvisibility=hidden -fno-math-errno -fno-trapping-math"
        common = [*common.split(), "-fno-predictive-commoning"]
        shared = ("thread_pool", "scratch")
        objects = [ninja.compile(self.cxx, common, CSRC / "common" / f"{name}.cpp", f"{name}.o") for name in shared]
        # The baseline first: of a function that several objects hold, the linker takes the first.
        for name, vector_bytes, flags in CPU_VARIANTS:
            variant = [*flags, f"-DFOVBLUR_VARIANT={name}", f"-DFOVBLUR_VECTOR_BYTES={vector_bytes}"]
            for op in OPS:
                objects.append(ninja.compile(self.cxx, common + variant, CSRC / op / "cpu.cpp", f"{op}_{name}.o"))
        flags = [*self.bind_flags(), f"-I{directory}"]
        objects.append(ninja.compile(self.cxx, flags, CSRC / "bind_cpu.cpp", "bind_cpu.o"))
        ninja.link(self.link_command(), objects, self.extension_path("fovblur._cpu"))
        try:
            ninja.run()
        except subprocess.CalledProcessError as error:
            sys.exit(f"fovblur: the CPU module does not compile with {self.cxx}:\n{error.stdout}{error.stderr}")

    def build_cuda_if_possible(self) -> dict:
        """Build the CUDA module and return its build facts, or {"skipped": reason}."""
        wanted = os.environ.get("FOVBLUR_BUILD_CUDA", "")
        if wanted not in ("", "0", "1"):
            sys.exit(f"fovblur: FOVBLUR_BUILD_CUDA is {wanted!r}; set it to 1 (must build), 0 (skip) or leave it unset")
        try:
            if wanted == "0":
                raise CudaUnavailable("FOVBLUR_BUILD_CUDA=0")
            return self.build_cuda()
        except CudaUnavailable as reason:
            stale = self.extension_path("fovblur._cuda")
            for path in [stale, *([ROOT / "fovblur" / stale.name] if self.into_checkout else [])]:
                path.unlink(missing_ok=True)
            if wanted == "1":
                sys.exit(f"fovblur: FOVBLUR_BUILD_CUDA=1, but the CUDA module cannot be built: {reason}")
            print(f"fovblur: CUDA module skipped: {reason}", file=sys.stderr)
            return {"skipped": str(reason)}

    def build_cuda(self) -> dict:
        """Build the CUDA module and return its compiler and architectures; CudaUnavailable if that fails."""
        nvcc = find_nvcc()
        architectures = cuda_architectures()
        directory = self.build_directory("cuda")
        ninja = Ninja(directory)
        flags = ["-std=c++17", "-O3", "--threads=0", "-Xcompiler=-fPIC,-fvisibility=hidden"]
        flags += gencode_flags(architectures)
        objects = [
            *(
                ninja.compile(str(nvcc), flags, source, f"{source.parent.name}_{source.stem}.o")
                for source in sorted(CSRC.glob("*/cuda*.cu"))
            ),
            ninja.compile(self.cxx, self.bind_flags(), CSRC / "bind_cuda.cpp", "bind_cuda.o"),
        ]
        linker = [str(nvcc), "-shared", "-cudart=static", "-ccbin", self.cxx]
        ninja.link(linker, objects, self.extension_path("fovblur._cuda"))
        try:
            version = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=True).stdout
            ninja.run()
        except (OSError, subprocess.CalledProcessError) as error:
            log = directory / "build.log"
            output = (getattr(error, "stdout", "") or "") + (getattr(error, "stderr", "") or "") or str(error)
            log.write_text(output)
            lines = output.strip().splitlines()
            reason = next((line for line in lines if "error" in line.lower()), lines[-1])
            raise CudaUnavailable(f"{nvcc} failed: {reason.strip()} (all of it in {log})") from error
        return {"compiler": re.search(r"release ([\d.]+)", version)[0], "architectures": architectures}


setup(
    ext_modules=[Extension("fovblur._cpu", []), Extension("fovblur._cuda", [], optional=True)],
    cmdclass={"build_ext": BuildKernels},
)
