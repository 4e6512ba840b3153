"""A GPU run by the interpreter: the library's own host code launches its kernels, CPU tensors are device memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fovblur.enhanced_similarity import native as native_similarity
from fovblur.foveated_blur import native
from fovblur.retinal_blur import native as native_retina

from .counts import Counts
from .interpreter import Interpreter
from .memory import Buffer
from .module import Kernel

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
SOURCES = {f"{source.parent.name}-{source.stem}": source for source in sorted(CSRC.glob("*/cuda*.cu"))}
ARCHITECTURES = (86, 90)
OnLaunch = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_uint), ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip


@dataclass(frozen=True)
class Card:
    """What host code may ask of a card."""

    architecture: int
    multiprocessors: int
    shared_of_block: int  # bytes
    shared: int  # of a multiprocessor

    @property
    def ptx(self) -> int:
        """Return the architecture of the PTX that it runs: that of the 8.6, or that of the 9.0."""
        return max(sm for sm in ARCHITECTURES if sm // 10 <= self.architecture // 10)

    def attributes(self) -> dict[int, int]:
        """Return the answers by cudaDeviceAttr."""
        major, minor = divmod(self.architecture, 10)
        return {75: major, 76: minor, 16: self.multiprocessors, 97: self.shared_of_block, 81: self.shared}


RTX_3080, A100, H100 = Card(86, 68, 101_376, 102_400), Card(80, 108, 166_912, 167_936), Card(90, 132, 232_448, 233_472)
CARDS = {card.architecture: card for card in (RTX_3080, A100, H100)}


@dataclass(frozen=True)
class Called:
    """One launch: what the host code passed to the runtime, and what running it counted."""

    kernel: str
    grid: tuple[int, int, int]
    threads: tuple[int, int, int]
    dynamic_shared: int
    counts: Counts | None = None

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


def nvcc() -> str | None:
    """Return the path of nvcc, if any."""
    return shutil.which("nvcc")


@functools.cache
def build(directory: Path) -> Path:
    """Compile fovblur._cuda with a runtime that hands launches over; SOURCE-SM.ptx is left beside it."""
    import pybind11

    target = directory / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = [f"-I{path}" for path in (CSRC, pybind11.get_include(), sysconfig.get_path("include"))]
    host = [str(nvcc()), "-std=c++17", "-O3", "-Xcompiler", "-fPIC", *include]
    virtual = [f"-gencode=arch=compute_{sm},code=compute_{sm}" for sm in ARCHITECTURES]
    commands = [
        [*host, "-c", str(source), "-o", str(directory / f"{source.stem}.o")]
        for source in (CSRC / "bind_cuda.cpp", HERE / "runtime.cpp")
    ]
    for name, source in SOURCES.items():
        (directory / name).mkdir(parents=True)
        kept = ["-lineinfo", "--keep", "--keep-dir", str(directory / name)]
        commands.append([*host, *kept, *virtual, "-c", str(source), "-o", str(directory / f"{name}.o")])
    with ThreadPoolExecutor() as pool:
        list(pool.map(functools.partial(subprocess.run, check=True), commands))
    objects = map(str, sorted(directory.glob("*.o")))
    linked = ["-shared", "-cudart=none", "-Xlinker", "-Bsymbolic", *objects, "-o", str(target)]
    subprocess.run([str(nvcc()), *linked], check=True)
    for name, source in SOURCES.items():
        for sm in ARCHITECTURES:
            shutil.copy(directory / name / f"{source.stem}.compute_{sm}.ptx", directory / f"{name}-{sm}.ptx")
        shutil.rmtree(directory / name)
    return target


@functools.cache
def load(target: Path) -> ModuleType:
    """Import the compiled module."""
    spec = importlib.util.spec_from_file_location(f"{__name__}._cuda", target)  # pybind11 keeps one module a name
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def interpreters(directory: Path, architecture: int) -> tuple[Interpreter, ...]:
    return tuple(Interpreter(directory / f"{name}-{architecture}.ptx") for name in SOURCES)


class Device:
    """A card that runs launches of the ops in the interpreter."""

    def __init__(self, target: Path, card: Card, checks: bool = True, traffic: bool = False):
        """Load a module.

        Args:
            target: What :func:`build` returned.
            card: What the host code asks about.
            checks: As in :meth:`Interpreter.run`.
            traffic: Likewise.
        """
        self.module, self.card = load(target), card
        self.interpreters = interpreters(target.parent, card.ptx)
        self.checks, self.traffic = checks, traffic
        self.choose_blocks: Callable[[Called], Sequence[int] | None] = lambda called: None
        self.launches: list[Called] = []
        self.buffers: dict[int, Buffer] = {}
        self.failure: Exception | None = None
        self.runtime = ctypes.CDLL(self.module.__file__)
        self.on_launch = OnLaunch(self._launched)

    def kernel(self, called: Called) -> tuple[Kernel, dict[int, str]]:
        """Return the code of a launch, and the names of its sources."""
        module = next(one.module for one in self.interpreters if called.kernel in one.module.kernels)
        return module.kernels[called.kernel], module.files

    # ---- what the library calls ----

    def forward(self, images: Tensor, out: Tensor, params) -> None:
        with self._memory((images, *_tensors(params)), (out,)):
            native.launch_forward(self.module, 0, images, out, params)

    def backward(self, grad: Tensor, images: Tensor, grads, params) -> None:
        with self._memory((grad, images, *_tensors(params)), _tensors(grads)):
            native.launch_backward(self.module, 0, grad, images, grads, params)

    def forward_list(self, images: Sequence[Tensor], out: Sequence[Tensor], params, weights=None) -> None:
        with self._memory((*images, *_tensors(params), *(weights or ())), out):
            native.launch_forward_list(self.module, 0, images, out, params, weights)

    def levels(self, images: Tensor, out: Tensor, params) -> None:
        with self._memory((images, *_tensors(params)), (out,)):
            native_retina.launch_forward(self.module, 0, images, out, params)

    def similarity(self, out: Tensor, inputs) -> None:
        with self._memory(_tensors(inputs), (out,)):
            native_similarity.launch_similarity(self.module, 0, out, inputs)

    def topk(self, values: Tensor, indices: Tensor, inputs) -> None:
        with self._memory(_tensors(inputs), (values, indices)):
            native_similarity.launch_topk(self.module, 0, values, indices, inputs)

    def serve(self, monkeypatch) -> None:
        """Let backend="cuda" serve CPU tensors by this device."""
        monkeypatch.setattr(native, "cuda_forward", self.forward)
        monkeypatch.setattr(native, "cuda_backward", self.backward)
        monkeypatch.setattr(native, "cuda_forward_list", self.forward_list)
        monkeypatch.setattr(native_retina, "cuda_forward", self.levels)
        monkeypatch.setattr(native_similarity, "cuda_similarity", self.similarity)
        monkeypatch.setattr(native_similarity, "cuda_topk", self.topk)

    # ---- launches and memory ----

    @contextlib.contextmanager
    def _memory(self, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> Iterator[None]:
        """Make tensors the device's memory; what PyTorch allocates meanwhile is added."""
        self.buffers, self.failure = {}, None
        for tensor in inputs:
            self.add(tensor, output=False)
        for tensor in outputs:
            self.add(tensor, output=True)
        self.runtime.ptx_on_launch(self.on_launch)
        for attribute, value in self.card.attributes().items():
            self.runtime.ptx_set_attribute(attribute, value)
        try:
            with _Allocations(self):
                yield
        except RuntimeError:
            if self.failure is None:
                raise
        if self.failure is not None:
            raise self.failure

    def add(self, tensor: Tensor, output: bool) -> None:
        """Add a tensor's storage. An output has no values; only its elements may be written."""
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0:
            return
        start = storage.data_ptr()
        if start not in self.buffers:
            content = np.ctypeslib.as_array((ctypes.c_uint8 * storage.nbytes()).from_address(start))
            self.buffers[start] = Buffer(content, start)
        if output:
            buffer = self.buffers[start]
            elements = torch.zeros(storage.nbytes() // tensor.element_size(), dtype=torch.bool)
            shape = [size if stride else 1 for size, stride in zip(tensor.shape, tensor.stride())]
            elements.as_strided(shape, tensor.stride(), tensor.storage_offset())[...] = True
            flags = elements.numpy().repeat(tensor.element_size())
            flags = np.pad(flags, (0, storage.nbytes() - len(flags)))
            buffer.writable = flags if buffer.writable is None else buffer.writable | flags
            buffer.readable = ~flags if buffer.readable is None else buffer.readable & ~flags

    def _launched(self, name: bytes, grid, block, shared: int, arguments) -> int:
        try:
            kernel = name.decode()
            interpreter = next(one for one in self.interpreters if kernel in one.module.kernels)
            sizes = interpreter.module.kernels[kernel].parameters.values()
            content = [ctypes.string_at(arguments[i], size) for i, size in enumerate(sizes)]
            called = Called(kernel, (grid[0], grid[1], grid[2]), (block[0], block[1], block[2]), shared)
            blocks = self.choose_blocks(called)
            if blocks is None or len(blocks):
                counts = interpreter.run(
                    kernel, called.grid, called.threads, content, self.buffers.values(), shared, blocks, self.checks,
                    self.traffic,
                )  # fmt: skip
                called = replace(called, counts=counts)
            self.launches.append(called)
        except Exception as failure:  # ctypes would drop it; `_memory` raises it
            self.failure = failure
        return int(self.failure is not None)


class _Allocations(TorchDispatchMode):
    """Adds tensors that are allocated while launches are prepared."""

    def __init__(self, device: Device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.device.add(result, output="empty" in func.__name__)
        return result


def _tensors(values: Iterable[object]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]
