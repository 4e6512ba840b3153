"""The resources of the Triton kernels, compiled with the arguments that the launch code passes, without a GPU."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from unittest import mock

os.environ["TRITON_INTERPRET"] = "0"
warnings.simplefilter("ignore")

import torch  # noqa: E402
import triton  # noqa: E402
from gpu.instructions import cuobjdump, instruction_mix, walks  # noqa: E402
from gpu.occupancy import RESERVED_SHARED  # noqa: E402
from torch import Tensor  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

from fovblur.enhanced_similarity import triton as similarity  # noqa: E402
from fovblur.enhanced_similarity.params import Inputs  # noqa: E402
from fovblur.foveated_blur import triton as blur  # noqa: E402
from fovblur.foveated_blur import triton_general as general  # noqa: E402
from fovblur.foveated_blur import triton_parts as parts  # noqa: E402
from fovblur.foveated_blur.params import BlurGradients, BlurParams  # noqa: E402
from fovblur.retinal_blur import triton as retina  # noqa: E402
from fovblur.retinal_blur.params import LevelParams  # noqa: E402

TYPES = {
    torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64",
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32",
}  # fmt: skip
MODULES = (blur, general, retina, similarity)
OPTIONS = ("num_warps", "num_stages")
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Launch:
    """One configuration of a kernel: types of its arguments, alignment, and compile-time constants."""

    module: str
    kernel: str
    architecture: int
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    aligned: tuple[int, ...]  # places of the arguments that are multiples of 16
    options: tuple[tuple[str, int], ...]


class Recorder:
    """Replaces a kernel in the launch code and records its launches."""

    def __init__(self, module, name: str, launches: list[Launch], architecture: int):
        self.kernel, self.launches = getattr(module, name), launches
        self.place = (module.__name__, name, architecture)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.launched

    def launched(self, *arguments: object, **named: object) -> None:
        options = tuple((name, named.pop(name)) for name in OPTIONS if name in named)
        values = dict(zip(self.kernel.arg_names, arguments)) | named
        signature, constants, aligned = [], [], []
        for place, parameter in enumerate(self.kernel.params):
            value = values[parameter.name]
            kind, is_aligned = specialised(value, parameter)
            signature.append((parameter.name, kind))
            constants += [(parameter.name, value)] if kind == "constexpr" else []
            aligned += [place] if is_aligned else []
        self.launches.append(Launch(*self.place, tuple(signature), tuple(constants), tuple(aligned), options))


def specialised(value: object, parameter) -> tuple[str, bool]:
    """Return an argument's type for the compiler and whether it is a multiple of 16, as Triton's launcher does."""
    if parameter.is_constexpr:
        return "constexpr", False
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype]}{value.block_shape}>", False
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype], value.data_ptr() % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    if parameter.do_not_specialize:
        return "i32", False
    return ("constexpr", False) if value == 1 else ("i32", value % 16 == 0)


def record(architecture: int, calls: Iterable[Callable[[], None]]) -> list[Launch]:
    """Return the configurations that the calls would launch on an architecture."""
    launches: list[Launch] = []
    kernels = [(module, name) for module in MODULES for name in vars(module) if name.endswith("_kernel")]
    with ExitStack() as stack:
        for module, name in kernels:
            stack.enter_context(mock.patch.object(module, name, Recorder(module, name, launches, architecture)))
        stack.enter_context(mock.patch.object(similarity, "_architecture", lambda tensor: architecture))
        for call in calls:
            call()
    return list(dict.fromkeys(launches))


def blur_calls() -> Iterator[Callable[[], None]]:
    """Yield forward and backward of every type for normalised, contiguous images of 224 x 224."""
    sigma, size, gain, fixation = torch.ones(2), torch.ones(2, dtype=torch.int32), torch.ones(2), torch.ones(2, 2)
    params = BlurParams(sigma, size, gain, fixation, torch.ones(3), torch.ones(3), None, "exp", 3.0)
    for source in (torch.uint8, *FLOATS):
        result = torch.float16 if source == torch.uint8 else source
        images, out = (torch.empty(2, 3, 224, 224, dtype=dtype) for dtype in (source, result))
        yield functools.partial(blur.triton_forward, images, out, params)
        grads = BlurGradients(None if source == torch.uint8 else images, torch.empty(2), torch.empty(2))
        yield functools.partial(blur.triton_backward, out, images, grads, params)


def option_calls() -> Iterator[Callable[[], None]]:
    """Yield forward, also of a list, and backward with the options; and a blend of levels."""
    pairs, gain, weight = torch.ones(2, 2), torch.ones(2), torch.ones(2, 224, 224)
    params = BlurParams(
        pairs, pairs.int(), gain, pairs, torch.ones(3), torch.ones(3), weight, "exp", 3.0, border="symmetric"
    )
    levels = LevelParams(weight, (0.0, 1.0, 2.0), (1, 9, 17), "reflect")
    for dtype in (torch.float16, torch.float32):
        images = torch.empty(2, 3, 224, 224, dtype=dtype)
        yield functools.partial(general.blur_general, images, images, False, params)
        yield functools.partial(general.blur_general, images, images, True, params)
        yield functools.partial(general.triton_forward_list, images, images, params._replace(weight=None))
        grads = BlurGradients(None, torch.empty(2, 2), torch.empty(2))
        yield functools.partial(general.general_parameter_gradients, images, images, grads, params)
        yield functools.partial(retina.triton_forward, images, images, levels)


def similarity_calls() -> Iterator[Callable[[], None]]:
    """Yield gated matrices and top-k for few and many recordings of 1024 numbers, contiguous or one and the same."""
    for dtype, recordings, same in itertools.product(FLOATS, (64, 1024), (False, True)):
        brain, image = torch.empty(1 if same else recordings, 1024, dtype=dtype), torch.empty(4096, 1024, dtype=dtype)
        brain = brain.expand(recordings, 1024)
        inputs = Inputs(brain, image, brain, image, torch.ones(recordings), torch.ones(4096))
        for precision in ("highest", "high") if dtype == torch.float32 else ("highest",):
            out = torch.empty(recordings, 4096, dtype=dtype)
            yield at_precision(precision, similarity.triton_similarity, out, inputs)
            for k in (16, 32, similarity.LARGEST_FUSED_K):
                best = torch.empty(recordings, k), torch.empty(recordings, k, dtype=torch.int64)
                yield at_precision(precision, similarity.triton_topk, *best, inputs)


def at_precision(precision: str, function: Callable, *arguments: object) -> Callable[[], None]:
    """Return a call at one of PyTorch's matmul precisions."""

    def call() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        function(*arguments)
        torch.set_float32_matmul_precision(before)

    return call


def compiled(launch: Launch) -> dict:
    """Return registers, spills, shared memory and instructions of one configuration."""
    kernel = getattr({module.__name__: module for module in MODULES}[launch.module], launch.kernel)
    constants, options = dict(launch.constants), dict(launch.options)
    attributes = {(place,): [["tt.divisibility", 16]] for place in launch.aligned}
    source = ASTSource(kernel, dict(launch.signature), constants, attributes)
    with mock.patch.dict(os.environ, parts.WITHOUT_WARP_GROUPS if launch.module != similarity.__name__ else {}):
        result = triton.compile(source, target=GPUTarget("cuda", launch.architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        commands = ([cuobjdump(), option, file.name] for option in ("-res-usage", "-sass"))
        usage, code = (subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in commands)
    number = lambda name: int(re.search(rf"\b{name}:(\d+)", usage)[1])  # noqa: E731
    mix = instruction_mix(code)
    return {
        "backend": "triton",
        **names_of(launch),
        "architecture": launch.architecture,
        "threads": 32 * options["num_warps"],
        "registers": number("REG"),
        "stack": number("STACK"),
        "spill_stores": bytes_of(mix, "STL"),
        "spill_loads": bytes_of(mix, "LDL"),
        # cuobjdump counts the reserved bytes on sm_90
        "static_shared": number("SHARED") - (RESERVED_SHARED if launch.architecture >= 90 else 0),
        "dynamic_shared": result.metadata.shared,
        "instructions": mix,
        "instructions_of_256": instructions_of_256(launch, code),
    }


def instructions_of_256(launch: Launch, code: str) -> dict[str, int]:
    """Estimate a blur's warp instructions for 256 outputs of 3 x 224 x 224, for each halo; of other kernels none.

    Taps that reach over the border are counted in every strip, though only the outer ones make them.
    """
    constants, side = dict(launch.constants), 224
    if "COLUMNS" not in constants:
        return {}
    forms = zip(
        (constants["ROWS"], constants.get("WIDE_ROWS")), (constants["HALO"], 2 * constants["HALO"]), walks(code)
    )
    warps = dict(launch.options)["num_warps"] * triton.cdiv(side, constants["COLUMNS"])
    estimates = {}
    for rows, halo, (loop, finish, before) in forms:
        ahead = 2 * halo // rows  # chunks that finish none
        steps = (triton.cdiv(side, rows) + ahead) * loop - ahead * finish
        estimates[f"k up to {2 * halo + 1}"] = round(warps * (steps + before / 3) * 256 / side**2)
    return estimates


def names_of(launch: Launch) -> dict[str, str]:
    """Return kernel and types, and tile, which identify a configuration."""
    types, constants, options = dict(launch.signature), dict(launch.constants), dict(launch.options)
    name = launch.kernel.removeprefix("_").removesuffix("_kernel")
    ends = [types.get(end, "") for end in ("source", "images", "grad", "target", "brain_image")]
    types_of = [re.match(r"\*(\w+)|tensordesc<(\w+)", end) for end in ends if end[:1] in ("*", "t")]
    of_a_list = [str(constants[end]) for end in ("SOURCE", "TARGET") if end in constants]
    pointers = " and ".join(dict.fromkeys([match[1] or match[2] for match in types_of] + of_a_list))
    precision = {"tf32": ", tf32", "tf32x3": ", three tf32 products"}.get(str(constants.get("PRECISION")), "")
    precision = ", three float16 products" if constants.get("SPLIT") else precision
    adjoint = ", adjoint" if constants.get("ADJOINT") else ""
    sizes = ("COLUMNS", "BLOCK", "ROWS", "BLOCK_N", "BLOCK_M", "DEPTH", "KEPT")
    tile = [f"{size} {constants[size]}" for size in sizes if size in constants] or [f"TILE {constants['TILE']}"]
    tile += [f"{value} {option.removeprefix('num_')}" for option, value in options.items()]
    return {"kernel": f"{name}{adjoint}, {pointers}{precision}", "configuration": ", ".join(tile)}


def bytes_of(mix: dict[str, int], instruction: str) -> int:
    """Return the bytes that loads from, or stores to, the stack move, each instruction counted once."""
    counts = [(kind.split("."), count) for kind, count in mix.items()]
    return sum(count * int(width[0]) // 8 for (name, *width), count in counts if name == instruction)


def kernels(architectures: tuple[int, ...]) -> Callable[[], list[dict]]:
    """Start to compile, and return a function that waits for the rows of all launched configurations."""
    launches = [
        launch for sm in architectures for launch in record(sm, (*blur_calls(), *option_calls(), *similarity_calls()))
    ]
    pool = multiprocessing.get_context("fork").Pool(os.cpu_count())
    return pool.map_async(compiled, launches, chunksize=1).get
