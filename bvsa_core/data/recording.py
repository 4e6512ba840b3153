"""Safe readers: arrays and tensors out of .pt, .npy, .npz and .safetensors files, without running anything in them.

A .pt file is a zip archive around a pickle. The published ones hold numpy arrays, which torch's own weights-only reader
refuses, so the pickle is read here by an unpickler that knows a handful of names and builds what they mean itself:
no function that a file names is ever called.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bvsa_core.errors import UserError

_SCALAR_TYPE = re.compile(r"[<>=|]?(?:[fiuc](?:1|2|4|8|16)|b1|\?)|[<>=|]?[US]\d{1,6}")
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_NUMPY_MODULES = ("numpy.core", "numpy._core")  # before and after numpy 2
_READ_ERRORS = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    struct.error,
    NotImplementedError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
    UnicodeDecodeError,
    RuntimeError,
)


def file_and_key(where: str) -> tuple[str, str]:
    """The parts of FILE or FILE:KEY; a file of that very name comes first, and the key is empty where there is none."""
    if Path(where).exists() or ":" not in where:
        return where, ""
    path, _, key = where.rpartition(":")
    return path, key


def read_arrays(path: str | Path) -> Any:
    """What a .pt, .npy, .npz or .safetensors file holds: an array or tensor, or a dict (of dicts and lists) of them.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds anything but plain data.
    """
    path = Path(path)
    readers = {".pt": _read_pt, ".pth": _read_pt, ".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise UserError(f"{path}: unknown kind of file; give one of {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return readers[path.suffix](path)
    except UserError:
        raise
    except _READ_ERRORS as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged or incomplete ({detail}); fetch or make it again") from error


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(error) from error


def _read_pt(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise ValueError("not a zip archive, as torch.save has written since version 1.6")
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("no data.pkl inside, or several")
        with archive.open(pickles[0]) as stream:
            return _finish(_Reader(stream, archive, pickles[0].removesuffix("data.pkl"), path).load())


class _Reader(pickle.Unpickler):
    """An unpickler for which every name but a few is an error, and those few mean functions of this module."""

    def __init__(self, stream: io.BufferedIOBase, archive: zipfile.ZipFile, folder: str, path: Path):
        super().__init__(stream)
        self.archive, self.folder, self.path = archive, folder, path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return _DType
        if (module, name) == ("numpy", "ndarray"):
            return _NDARRAY
        if (module, name) in [(f"{numpy}.multiarray", "_reconstruct") for numpy in _NUMPY_MODULES]:
            return _Array
        if (module, name) in [(f"{numpy}.multiarray", "scalar") for numpy in _NUMPY_MODULES]:
            return _scalar
        if (module, name) in [(f"{numpy}.numeric", "_frombuffer") for numpy in _NUMPY_MODULES]:
            return _array_from_buffer
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return _Mapping
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        if (module, name) == ("__builtin__", "bytes"):
            return _no_bytes
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise UserError(f"{self.path}: names {module}.{name}, which is not data; it was not run. Do not trust this file")

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key, _, count = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not re.fullmatch(r"\w+", str(key)):
            raise ValueError(f"unknown reference {reference!r}")
        return _Storage(self.archive, f"{self.folder}data/{key}", dtype, count)


_NDARRAY = object()  # stands for numpy.ndarray, which only ever appears as an argument


class _Mapping(dict):
    """An ordered dict; the attributes that a state_dict carries are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _DType:
    """What numpy.dtype(name, align, copy) pickles to; its state may only choose the byte order."""

    def __init__(self, name: str, align: bool = False, copy: bool = True):
        if not isinstance(name, str) or not (_SCALAR_TYPE.fullmatch(name) or name == "O8"):
            raise ValueError(f"unsupported element type {name!r}")
        self.name = "O" if name == "O8" else name
        self.order = "="

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"unknown byte order {state[1]!r}")
        self.order = state[1]

    def resolve(self) -> np.dtype:
        dtype = np.dtype(self.name)
        return dtype if self.order in "|=" else dtype.newbyteorder(self.order)


class _Array:
    """What numpy's _reconstruct(ndarray, shape, typecode) pickles to; the state brings shape, type and bytes."""

    def __init__(self, cls: Any, shape: tuple, typecode: bytes):
        if cls is not _NDARRAY:
            raise ValueError("only plain arrays can be read")
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.name == "O":
            self.value = _text_array(data, shape)
        else:
            self.value = _array_from_buffer(data, dtype, shape, "F" if fortran else "C")


def _text_array(items: list, shape: tuple) -> np.ndarray:
    """An object array whose items are all text, as a unicode array."""
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError("an object array holds something other than text")
    return np.array(items, dtype=str).reshape(_checked_shape(shape))


def _array_from_buffer(data: Any, dtype: _DType, shape: tuple, order: str) -> np.ndarray:
    if not isinstance(data, (bytes, bytearray)) or not isinstance(dtype, _DType) or dtype.name == "O" or order not in ("C", "F"):
        raise ValueError("an array's contents are not bytes of a plain type")
    return np.frombuffer(bytearray(data) if isinstance(data, bytes) else data, dtype.resolve()).reshape(_checked_shape(shape), order=order)


def _scalar(dtype: _DType, data: bytes) -> Any:
    return _array_from_buffer(data, dtype, (), "C")[()]


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How pickle protocol 2 spells bytes."""
    if encoding != "latin1" or not isinstance(text, str):
        raise ValueError(f"unknown encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How pickle protocol 2 spells empty bytes."""
    return b""


class _Storage:
    def __init__(self, archive: zipfile.ZipFile, name: str, dtype: torch.dtype, count: int):
        self.dtype = dtype
        data = bytearray(archive.read(name))
        if not isinstance(count, int) or len(data) != count * dtype.itemsize:
            raise ValueError(f"{name} does not have the size its tensor states")
        self.values = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    size, stride = _checked_shape(size), _checked_shape(stride)
    if not isinstance(storage, _Storage) or not isinstance(offset, int) or len(size) != len(stride):
        raise ValueError("a tensor is described in an unknown way")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if offset < 0 or math.prod(size) > len(storage.values) or (math.prod(size) and last >= len(storage.values)):
        raise ValueError("a tensor reaches beyond its storage")
    return torch.as_strided(storage.values, size, stride, offset).clone()


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and 0 <= n < 2**48 for n in shape) or len(shape) > 32:
        raise ValueError(f"impossible shape {shape!r}")
    return shape


def _finish(value: Any, depth: int = 0) -> Any:
    """Containers with the arrays that stand-ins have built; anything but plain data is refused."""
    if depth > 16:
        raise ValueError("nested too deeply")
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array without contents")
        return value.value
    if isinstance(value, dict):
        return {_finish(key, depth + 1): _finish(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_finish(item, depth + 1) for item in value)
    if value is None or isinstance(value, (str, bytes, int, float, bool, np.ndarray, np.generic, Tensor)):
        return value
    raise ValueError(f"holds a {type(value).__name__}, which is not data")
