"""Compiles the Triton kernels of an op for a GPU that need not be there, and prints what each of them uses, as JSON.

    python triton_resources.py blur 86 90
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

from fovblur.enhanced_similarity import triton as similarity  # noqa: E402
from fovblur.foveated_blur import triton as blur  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
NAMES = {torch.uint8: "u8", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
FLOATS = {"decay", "scale"}
INTEGERS = {"kernel_size_of": "*i32", "keys": "*i64"}
EMBEDDINGS = ("brain_image", "image", "brain_text", "text", "out")
CONTIGUOUS = dict.fromkeys(("brain_image_d", "image_d", "brain_text_e", "text_e", "row_gate_n", "column_gate_m", "out_m"), 1)
ALIGNED = {"image_width", "text_width", "brain_image_n", "image_m", "brain_text_n", "text_m", "out_n"}


def signature(kernel, constants: dict, dtypes: dict[str, torch.dtype]) -> dict[str, str]:
    """Types of a kernel's arguments, as a call with small inputs has them."""
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in dtypes:
            types[name] = "*" + NAMES[dtypes[name]]
        elif name in INTEGERS:
            types[name] = INTEGERS[name]
        elif name.endswith("_gate"):
            types[name] = "*fp32"
        elif name.endswith("_of") or name.startswith("of_"):
            types[name] = "*fp32"
        else:
            types[name] = "fp32" if name in FLOATS else "i32"
    return types


def resources(kernel, constants: dict, dtypes: dict[str, torch.dtype], architecture: int) -> dict[str, int]:
    constants = {name: value for name, value in constants.items() if name in (*kernel.arg_names, "num_warps", "num_stages")}
    warps = constants.pop("num_warps")
    options = {"num_warps": warps} | ({"num_stages": constants.pop("num_stages")} if "num_stages" in constants else {})
    types = signature(kernel, constants, dtypes)
    # Of embeddings, addresses, widths and strides are multiples of 16, which the launcher finds out and the compiler uses.
    aligned = ALIGNED.union(name for name in types if types[name][0] == "*") if "brain_image" in types else ()
    attributes = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(types) if name in aligned}
    source = ASTSource(kernel, types, constants, attributes)
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
        "of_warp_groups": len(re.findall(r"\bHGMMA\b", code)),
    }


def similarity_kernels(architecture: int):
    """The configurations that come nearest to their limits, as (dtype, precision, recordings, kept); bfloat16 has float16's."""
    tight = [(torch.float16, "highest", 1000, 0), (torch.float16, "highest", 1000, 16), (torch.float32, "highest", 1000, 16)]
    tight += {
        86: [(torch.float16, "highest", 1000, 100), (torch.float32, "high", 1000, 0)],
        90: [(torch.float32, "high", 1000, 16), (torch.float32, "highest", 1000, 0)],
    }[architecture]
    for dtype, precision, recordings, kept in tight:
        torch.set_float32_matmul_precision(precision)
        configuration = similarity.launch_configuration(dtype, architecture, recordings, kept)
        constants = {"ROW_GATED": True, "COLUMN_GATED": True, **CONTIGUOUS, **configuration}
        kernel = similarity._topk_kernel if kept else similarity._similarity_kernel
        name = f"{'topk' if kept else 'similarity'} {NAMES[dtype]} {configuration['PRECISION']} {kept}"
        yield name, resources(kernel, constants, dict.fromkeys(EMBEDDINGS, dtype), architecture)


def blur_kernels(architecture: int):
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
    kernels = {"blur": blur_kernels, "similarity": similarity_kernels}[sys.argv[1]]
    found = [{"kernel": name, **used} for sm in sys.argv[2:] for name, used in kernels(int(sm))]
    print(json.dumps(found, indent=1))
