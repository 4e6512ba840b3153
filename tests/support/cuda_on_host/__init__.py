"""The CUDA module compiled for the CPU: the same .cu and binding sources; the threads of a block take turns."""

import functools
import importlib.util
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"


@functools.cache
def build(directory: Path) -> ModuleType:
    """Compile fovblur._cuda for the CPU into the directory, and import it."""
    import pybind11

    target = directory / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = [HERE, CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    compiler = ["c++", "-std=c++17", "-O1", "-fPIC", *(f"-I{path}" for path in include)]
    checked = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    sources = {
        CSRC / "bind_cuda.cpp": [],
        HERE / "order.cpp": [],
        **dict.fromkeys(sorted(CSRC.glob("*/cuda*.cu")), checked),
    }
    objects = {str(directory / f"{source.parent.name}_{source.stem}.o"): source for source in sources}
    commands = [
        [*compiler, *sources[source], "-x", "c++", "-c", str(source), "-o", name] for name, source in objects.items()
    ]
    with ThreadPoolExecutor() as pool:
        list(pool.map(functools.partial(subprocess.run, check=True), commands))
    subprocess.run(["c++", "-shared", *objects, "-o", str(target)], check=True)
    spec = importlib.util.spec_from_file_location("_cuda", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
