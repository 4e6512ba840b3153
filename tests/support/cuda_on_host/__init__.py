"""The CUDA module, compiled for the CPU: the same .cu and binding sources, with threads of a block taking turns."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"


@functools.cache
def build(directory: Path) -> ModuleType:
    """fovblur._cuda for the CPU, compiled into the directory."""
    import pybind11

    target = directory / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = [HERE, CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    sources = ["-x", "c++", *map(str, sorted(CSRC.glob("*/cuda.cu"))), str(CSRC / "bind_cuda.cpp"), str(HERE / "order.cpp")]
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    command = ["c++", *flags, *(f"-I{path}" for path in include), *sources, "-o", str(target)]
    subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location("_cuda", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
