"""Read pickles as data, by an unpickler that allows a few names and builds what they stand for itself.

It calls no function that a file names, returns only plain data, allocates at most what `ByteBudget` allows, and changes
nothing else in this process. It is ours because torch's `weights_only` refuses pickle protocol 5, which UBP writes.
"""

from __future__ import annotations

import math
import mmap
import os
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
_MAX_COPY = 2**26  # bytes; larger arrays are read-only views of the file, or of what was read from it
_MAX_ITEMS = 2**24  # in containers, each counted as often as it is reached
_MAX_KEY = 2**60  # larger whole numbers may all have one hash, which makes a dict of them slow
_MAX_EXPANSION = 32  # bytes that a byte of a file may become
_LIMIT = "BVSA_MAX_READ_BYTES"


class ByteBudget:
    """Bytes that may come out of a file: 256 MiB or 32 times its size, or as many as BVSA_MAX_READ_BYTES says."""

    def __init__(self, path: Path):
        self.path, self.size = path, path.stat().st_size
        setting = os.environ.get(_LIMIT, "")
        if setting and not (setting.isascii() and setting.isdigit()):
            raise UserError(f"{_LIMIT} is {setting!r}; it must be a number of bytes")
        self.left = int(setting) if setting else max(2**28, _MAX_EXPANSION * self.size)

    def take(self, count: int) -> None:
        """Count bytes that are about to be made, or were made one array at a time.

        Raises:
            UserError: more bytes come out than the budget has.
        """
        self.left -= count
        if self.left < 0:
            much = f"its {self.size} bytes become far more once they are read"
            raise UserError(f"{self.path}: {much}; if you trust the file, set {_LIMIT} to the bytes it may take")


def load(stream: IO[bytes], path: Path, archive: zipfile.ZipFile | None = None, folder: str = "") -> Any:
    """Read a pickle: arrays, tensors, text and numbers, in dicts, lists and tuples.

    Args:
        stream: the pickle.
        path: name of the file in messages.
        archive: the torch archive that holds the contents of tensors.
        folder: where in the archive they are.

    Raises:
        UserError: the pickle names something that is not data, or would take too much memory.
        Exception: any of `safe_readers.READ_ERRORS`, if it is damaged.
    """
    source = stream if archive is not None else _MappedStream(stream)
    budget = ByteBudget(path)
    value, _ = _PlainBuilder(budget).build(_Unpickler(source, path, archive, folder, budget).load())
    return value


class _MappedStream:
    """A file whose large parts are memory-mapped: a subject's recordings can be larger than the memory."""

    def __init__(self, stream: IO[bytes]):
        self.stream, self.readline = stream, stream.readline
        self.content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))

    def read(self, size: int) -> Any:
        """Return `size` bytes, as a view if they are many."""
        if size <= _MAX_COPY:
            return self.stream.read(size)
        start = self.stream.tell()
        part = self.content[start : start + size]
        self.stream.seek(start + len(part))
        return part


# CPython's unpickler in C reserves memory for any memo number in a file; the one in Python keeps its memo in a dict.
class _Unpickler(pickle._Unpickler):
    """An unpickler that allows the names in `_ALLOWED`, which stand for functions of this module."""

    stack: list[Any]
    memo: dict[int, Any]
    append: Any
    read: Any
    readline: Any
    pop_mark: Any
    load_reduce: Any

    def __init__(
        self,
        stream: IO[bytes] | _MappedStream,
        path: Path,
        archive: zipfile.ZipFile | None,
        folder: str,
        budget: ByteBudget,
    ):
        super().__init__(stream)
        self.path, self.archive, self.folder, self.budget = path, archive, folder, budget
        self.storages: dict[tuple[str, torch.dtype], _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        full_name = f"{module}.{name}"[:200]
        shown = full_name if full_name.isprintable() else repr(full_name)
        raise UserError(f"{self.path}: names {shown}, which is not data; it was not run. Do not trust this file")

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key, _, count = reference
        known = kind == "storage" and isinstance(dtype, torch.dtype)
        if not known or self.archive is None or not isinstance(key, str) or not re.fullmatch(r"\w+", key):
            raise ValueError("unknown reference to the contents of a tensor")
        if (key, dtype) not in self.storages:
            name = f"{self.folder}data/{key}"
            self.budget.take(self.archive.getinfo(name).file_size)
            self.storages[key, dtype] = _Storage(self.archive, name, dtype, count)
        return self.storages[key, dtype]

    def _reduce(self) -> None:
        self.load_reduce()  # calls a function of this module
        self.budget.take(_size(self.stack[-1]))

    def _build(self) -> None:
        """Set the state of a stand-in; on any other object, this would change the whole process."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Array, _DType, _Mapping)):
            raise pickle.UnpicklingError("sets the state of an object that has none")
        self.stack[-1].__setstate__(state)
        self.budget.take(_size(getattr(self.stack[-1], "value", None)))

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append(_filled({}, items))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _filled(self.stack[-1], [key, value])

    def _set_items(self) -> None:
        items = self.pop_mark()
        _filled(self.stack[-1], items)

    def _append(self) -> None:
        value = self.stack.pop()
        self._extend([value])

    def _appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise pickle.UnpicklingError("adds items to something that is not a list")
        self.stack[-1].extend(items)

    def _put(self) -> None:
        number = int(self.readline()[:-1])
        if not 0 <= number < 2**32:
            raise pickle.UnpicklingError("an impossible memo number")
        self.memo[number] = self.stack[-1]

    def _bytearray(self) -> None:
        part = self.read(int.from_bytes(self.read(8), "little"))
        self.append(part if len(part) > _MAX_COPY else bytearray(part))

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("makes objects in a way that no array needs")

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    dispatch |= {pickle.BUILD[0]: _build, pickle.REDUCE[0]: _reduce, pickle.BYTEARRAY8[0]: _bytearray}
    dispatch |= {pickle.DICT[0]: _dict, pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items}
    dispatch |= {pickle.APPEND[0]: _append, pickle.APPENDS[0]: _appends, pickle.PUT[0]: _put}
    for _code in (
        pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4,
        pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET,
    ):  # fmt: skip
        dispatch[_code[0]] = _refuse


def _filled(target: Any, items: list[Any]) -> dict:
    """Add keys and values to a dict. Keys are text or real numbers: others may take forever to hash or compare."""
    if not isinstance(target, dict):
        raise pickle.UnpicklingError("sets items of something that is not a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        is_number = isinstance(key, (int, float, np.integer, np.floating)) and -_MAX_KEY < float(key) < _MAX_KEY
        if not is_number and not isinstance(key, (str, bytes)) and key is not None:
            raise pickle.UnpicklingError("a dict has a key that is neither text nor a number of a usual size")
        target[key] = value
    return target


def _size(value: Any) -> int:
    """Return the bytes that an object which was just made takes."""
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return value.nbytes
    return len(value) if isinstance(value, bytes) else 0


class _Mapping(dict):
    """An ordered dict; the attributes that a state_dict carries are dropped."""

    def __init__(self, pairs: Any = ()):
        super().__init__()
        _filled(self, [part for key, value in pairs for part in (key, value)])

    def __setstate__(self, state: Any) -> None:
        pass


class _DType:
    """Stand-in for numpy.dtype(name, align, copy); its state may only set the byte order."""

    def __init__(self, name: str, align: bool = False, copy: bool = True):
        if not isinstance(name, str) or not (_SCALAR_TYPE.fullmatch(name) or name == "O8"):
            raise ValueError(f"unsupported element type {name!r}" if isinstance(name, str) else "no element type")
        self.name = "O" if name == "O8" else name
        self.order = "="

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("unknown byte order")
        self.order = state[1]

    def resolve(self) -> np.dtype:
        name = self.name.lstrip("<>=|")
        return np.dtype(self.name if self.order in "|=" else self.order + name)


class _Array:
    """Stand-in for numpy's _reconstruct(ndarray, shape, typecode); its state holds shape, type and bytes."""

    def __init__(self, cls: Any, shape: tuple, typecode: bytes):
        if cls is not _NDARRAY:
            raise ValueError("only plain arrays can be read")
        self.value: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.name == "O":
            self.value = _object_array(data, _checked_shape(shape))
        else:
            self.value = _array_from_buffer(data, dtype, shape, "F" if fortran else "C")


def _object_array(items: list, shape: tuple[int, ...]) -> Any:
    """Convert an object array: text to a unicode array, no axes to the one item, one axis to a list."""
    if not isinstance(items, list) or len(items) != math.prod(shape):
        raise ValueError("the number of items in an object array does not match its shape")
    if items and all(isinstance(item, str) for item in items):
        if len(items) * max(map(len, items)) > _MAX_ITEMS * 4:
            raise ValueError("an object array holds text too long for a table")
        return np.array(items, dtype=str).reshape(shape)
    if len(shape) > 1:
        raise ValueError("an object array of several axes holds something other than text")
    return items if shape else items[0]


def _array_from_buffer(
    data: Any, dtype: _DType, shape: tuple, order: Literal["C", "F", "K"], axes: Any = None
) -> np.ndarray:
    """Return an array of a buffer. In order K, `shape` is that of the buffer, and `axes` say how it is transposed."""
    if order == "K":
        if len(_checked_shape(axes)) != len(_checked_shape(shape)):
            raise ValueError("an array does not have the axes of its buffer")
        return _array_from_buffer(data, dtype, shape, "C").transpose(axes)
    is_buffer = isinstance(data, (bytes, bytearray, memoryview))
    if not is_buffer or not isinstance(dtype, _DType) or dtype.name == "O" or order not in ("C", "F"):
        raise ValueError("an array's contents are not bytes of a plain type")
    if isinstance(data, bytes) and len(data) <= _MAX_COPY:
        data = bytearray(data)
    return np.frombuffer(data, dtype.resolve()).reshape(_checked_shape(shape), order=order)


def _scalar(dtype: _DType, data: bytes) -> Any:
    return _array_from_buffer(data, dtype, (), "C")[()]


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Return bytes as pickle protocol 2 spells them."""
    if encoding != "latin1" or not isinstance(text, str):
        raise ValueError("unknown encoding of bytes")
    return text.encode("latin1")


class _Storage:
    """The contents of a tensor in a torch archive."""

    def __init__(self, archive: zipfile.ZipFile, name: str, dtype: torch.dtype, count: int):
        if not isinstance(count, int) or archive.getinfo(name).file_size != count * dtype.itemsize:
            raise ValueError(f"{name} does not have the size that its tensor needs")
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
        raise ValueError("impossible shape")
    return shape


_NDARRAY = object()  # stands for numpy.ndarray, which only ever appears as an argument
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _NDARRAY,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("collections", "OrderedDict"): _Mapping,
    ("_codecs", "encode"): _encode_latin1,
    ("__builtin__", "bytes"): lambda: b"",  # which pickle protocol 2 spells as a call
}
_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
_ALLOWED |= {("torch", f"{name}Storage"): dtype for name, dtype in _STORAGES.items()}
for _numpy in ("numpy.core", "numpy._core"):  # before and after numpy 2
    _ALLOWED[f"{_numpy}.multiarray", "_reconstruct"] = _Array
    _ALLOWED[f"{_numpy}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_numpy}.numeric", "_frombuffer"] = _array_from_buffer


class _PlainBuilder:
    """Replaces stand-ins in containers by their arrays, and refuses anything but plain data.

    A container may be reached in several ways, and through others in exponentially many: each is built once, and one
    that would be too large if written out is refused.
    """

    def __init__(self, budget: ByteBudget) -> None:
        self._built: dict[int, tuple[Any, int]] = {}  # by identity
        self._budget = budget

    def build(self, value: Any, depth: int = 0) -> tuple[Any, int]:
        """Return the plain value, and its number of items if written out."""
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
            return self.build(value.value, depth)
        if isinstance(value, dict):
            items = [self.build(item, depth) for pair in value.items() for item in pair]
        elif isinstance(value, (list, tuple)):
            items = [self.build(item, depth) for item in value]
        else:
            raise ValueError(f"holds a {type(value).__name__}, which is not data")
        self._budget.take(256 + 32 * len(items))  # about what a container takes, once more as a plain one
        size = 1 + sum(size for _, size in items)
        if size > _MAX_ITEMS:
            raise ValueError("holds more items than any recording needs")
        plain = [item for item, _ in items]
        if isinstance(value, dict):
            return dict(zip(plain[::2], plain[1::2])), size
        return (plain if isinstance(value, list) else tuple(plain)), size
