"""Compiles the Triton kernels for a GPU that need not be there, and prints what each of them uses, as JSON.

    python triton_resources.py 86 90
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"
warnings.simplefilter("ignore")

import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fovblur.foveated_blur import triton as blur  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
NAMES = {torch.uint8: "u8", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
PIXELS = {"source", "target", "images", "grad"}
FLOATS = {"decay", "scale"}


def signature(kernel, constants: dict, dtypes: dict[str, torch.dtype]) -> dict[str, str]:
    """Types of a kernel's arguments, as a call with small images has them."""
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in PIXELS:
            types[name] = "*" + NAMES[dtypes[name]]
        elif name == "kernel_size_of":
            types[name] = "*i32"
        elif name.endswith("_of") or name.startswith("of_"):
            types[name] = "*fp32"
        else:
            types[name] = "fp32" if name in FLOATS else "i32"
    return types


def resources(kernel, constants: dict, dtypes: dict[str, torch.dtype], architecture: int) -> dict[str, int]:
    constants = dict(constants)
    warps = constants.pop("num_warps")
    options = {"num_warps": warps} | ({"num_stages": constants.pop("num_stages")} if "num_stages" in constants else {})
    # Row strides and addresses are multiples of 16 in practice, which the launcher finds out and the compiler uses.
    source = ASTSource(kernel, signature(kernel, constants, dtypes), constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        code = subprocess.run([CUOBJDUMP, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    return {
        "architecture": architecture,
        "threads": 32 * warps,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "shared": compiled.metadata.shared,
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "matrix_instructions": len(re.findall(r"\b[HQI]?G?MMA\b", code)),
    }


def all_kernels(architecture: int):
    for dtype in NAMES:
        out = torch.float16 if dtype == torch.uint8 else dtype
        common = {"FALLOFF": "exp", "NORMALISE": True}
        forward = {**common, "ADJOINT": False, **blur.launch_configuration(dtype)}
        yield f"forward {NAMES[dtype]}", resources(blur._blur_kernel, forward, {"source": dtype, "target": out}, architecture)
        if dtype != torch.uint8:
            adjoint = {**forward, "ADJOINT": True}
            yield f"adjoint {NAMES[dtype]}", resources(blur._blur_kernel, adjoint, {"source": dtype, "target": dtype}, architecture)
        parameters = {**common, **blur.parameter_gradient_configuration(dtype)}
        kernel = blur._parameter_gradient_kernel
        yield f"parameters {NAMES[dtype]}", resources(kernel, parameters, {"images": dtype, "grad": out}, architecture)


if __name__ == "__main__":
    found = [{"kernel": name, **used} for sm in sys.argv[1:] for name, used in all_kernels(int(sm))]
    print(json.dumps(found, indent=1))
