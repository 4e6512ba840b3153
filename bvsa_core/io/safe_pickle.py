"""Reading pickles as data: an unpickler that knows a handful of names and builds what they mean itself.

No function that a file names is ever called, nothing but plain data comes out, and a file can make the reader neither
allocate much more than its own size nor change anything of this process.
"""

from __future__ import annotations

import math
import mmap
import pickle
import re
import zipfile
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

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
_COPIED_UP_TO = 2**26  # bytes of an array; larger ones are views of the file or of what was read of it, and read-only
_MOST_ITEMS = 2**24  # in containers, each counted as often as it is reached


def load(stream: IO[bytes], path: Path, archive: zipfile.ZipFile | None = None, folder: str = "") -> Any:
    """What a pickle holds: arrays and tensors, text and numbers, in dicts, lists and tuples.

    Args:
        path: what errors call the file.
        archive: where the contents of a torch archive's tensors are, below folder.

    Raises:
        UserError: it names anything that is not data.
        Exception: any of many, where it is damaged.
    """
    return _Plain().of(_Reader(stream if archive is not None else _Mapped(stream), path, archive, folder).load())


class _Mapped:
    """A file whose large parts are memory-mapped instead of read: the recordings of a subject can be larger than the memory."""

    def __init__(self, stream: IO[bytes]):
        self.stream, self.readline = stream, stream.readline
        self.content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))

    def read(self, size: int) -> Any:  # bytes, or a view of them
        if size <= _COPIED_UP_TO:
            return self.stream.read(size)
        start = self.stream.tell()
        part = self.content[start : start + size]
        self.stream.seek(start + len(part))
        return part


# CPython's unpickler in C reserves memory for whatever memo number a file tells; the one in Python keeps its memo in a dict.
class _Reader(pickle._Unpickler):
    """An unpickler for which every name but a few is an error, and those few mean functions of this module."""

    stack: list[Any]
    append: Any
    read: Any

    def __init__(self, stream: IO[bytes] | _Mapped, path: Path, archive: zipfile.ZipFile | None, folder: str):
        super().__init__(stream)
        self.path, self.archive, self.folder = path, archive, folder

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
        told = f"{module}.{name}"[:200]
        told = told if told.isprintable() else repr(told)
        raise UserError(f"{self.path}: names {told}, which is not data; it was not run. Do not trust this file")

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key, _, count = reference
        if (
            kind != "storage"
            or not isinstance(dtype, torch.dtype)
            or not re.fullmatch(r"\w+", str(key))
            or self.archive is None
        ):
            raise ValueError(f"unknown reference {reference!r}")
        return _Storage(self.archive, f"{self.folder}data/{key}", dtype, count)

    def _build(self) -> None:
        """Give an object its state; anything but these three would be changed for the whole process, not for this file."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Array, _DType, _Mapping)):
            raise pickle.UnpicklingError("gives a state to something that has none")
        self.stack[-1].__setstate__(state)

    def _bytearray(self) -> None:
        part = self.read(int.from_bytes(self.read(8), "little"))
        self.append(part if len(part) > _COPIED_UP_TO else bytearray(part))

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("makes objects in a way that no array needs")

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray
    for _code in (pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4):
        dispatch[_code[0]] = _refuse


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
        name = self.name.lstrip("<>=|")
        return np.dtype(self.name if self.order in "|=" else self.order + name)


class _Array:
    """What numpy's _reconstruct(ndarray, shape, typecode) pickles to; the state brings shape, type and bytes."""

    def __init__(self, cls: Any, shape: tuple, typecode: bytes):
        if cls is not _NDARRAY:
            raise ValueError("only plain arrays can be read")
        self.value: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.name == "O":
            self.value = _objects(data, _checked_shape(shape))
        else:
            self.value = _array_from_buffer(data, dtype, shape, "F" if fortran else "C")


def _objects(items: list, shape: tuple[int, ...]) -> Any:
    """An object array: text as a unicode array, the one item of an array without axes, and a list for one axis."""
    if not isinstance(items, list) or len(items) != math.prod(shape):
        raise ValueError("an object array does not have the items that its shape tells of")
    if items and all(isinstance(item, str) for item in items):
        if len(items) * max(map(len, items)) > _MOST_ITEMS * 4:
            raise ValueError("an object array holds text too long for a table")
        return np.array(items, dtype=str).reshape(shape)
    if len(shape) == 0:
        return items[0]
    if len(shape) == 1:
        return items
    raise ValueError("an object array of several axes holds something other than text")


def _array_from_buffer(data: Any, dtype: _DType, shape: tuple, order: Literal["C", "F"]) -> np.ndarray:
    contents = isinstance(data, (bytes, bytearray, memoryview))
    if not contents or not isinstance(dtype, _DType) or dtype.name == "O" or order not in ("C", "F"):
        raise ValueError("an array's contents are not bytes of a plain type")
    if isinstance(data, bytes) and len(data) <= _COPIED_UP_TO:
        data = bytearray(data)
    return np.frombuffer(data, dtype.resolve()).reshape(_checked_shape(shape), order=order)


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
        if not isinstance(count, int) or archive.getinfo(name).file_size != count * dtype.itemsize:
            raise ValueError(f"{name} does not have the size its tensor states")
        data = bytearray(archive.read(name))
        self.values = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    size, stride = _checked_shape(size), _checked_shape(stride)
    if not isinstance(storage, _Storage) or not isinstance(offset, int) or len(size) != len(stride):
        raise ValueError("a tensor is described in an unknown way")
    count, last = math.prod(size), offset + sum((n - 1) * step for n, step in zip(size, stride))
    if offset < 0 or count > len(storage.values) or (count > 0 and last >= len(storage.values)):
        raise ValueError("a tensor reaches beyond its storage")
    return torch.as_strided(storage.values, size, stride, offset).clone()


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and 0 <= n < 2**48 for n in shape) or len(shape) > 32:
        raise ValueError(f"impossible shape {shape!r}")
    return shape


class _Plain:
    """Containers with the arrays that stand-ins have built; anything but plain data is refused.

    A container may be reached in several ways, and through others in exponentially many: each is built once, and those that
    would be too large written out are refused.
    """

    def __init__(self) -> None:
        self._built: dict[int, tuple[Any, int]] = {}  # by identity: the value, and how many items it has written out

    def of(self, value: Any) -> Any:
        return self._sized(value, 0)[0]

    def _sized(self, value: Any, depth: int) -> tuple[Any, int]:
        if depth > 16:
            raise ValueError("nested too deeply")
        if value is None or isinstance(value, (str, bytes, int, float, bool, np.ndarray, np.generic, Tensor)):
            return value, 1
        if id(value) not in self._built:
            self._built[id(value)] = self._build(value, depth + 1)
        return self._built[id(value)]

    def _build(self, value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, _Array):
            if value.value is None:
                raise ValueError("an array without contents")
            return self._sized(value.value, depth)
        if isinstance(value, dict):
            items = [self._sized(item, depth) for pair in value.items() for item in pair]
        elif isinstance(value, (list, tuple)):
            items = [self._sized(item, depth) for item in value]
        else:
            raise ValueError(f"holds a {type(value).__name__}, which is not data")
        size = 1 + sum(size for _, size in items)
        if size > _MOST_ITEMS:
            raise ValueError("holds more items than any recording needs")
        plain = [item for item, _ in items]
        if isinstance(value, dict):
            return dict(zip(plain[::2], plain[1::2])), size
        return (plain if isinstance(value, list) else tuple(plain)), size
