"""Read arrays and tensors from .pt, .npy, .npz and .safetensors files, without running anything in them.

A .pt file is a zip archive around a pickle, and .npy files of THINGS-EEG2 hold pickled dicts; `safe_pickle` reads both.
"""

import math
import pickle
import struct
import tokenize
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.torch

from bvsa_core.errors import UserError
from bvsa_core.io import safe_pickle
from bvsa_core.io.zip_files import open_zip

READ_ERRORS = (  # what numpy, zipfile, pickle, torch and safetensors raise for damaged files
    OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError, RuntimeError,
    SyntaxError, SystemError, zipfile.BadZipFile, pickle.UnpicklingError, struct.error, tokenize.TokenError,
    safetensors.SafetensorError,
)  # fmt: skip


def file_and_key(text: str) -> tuple[str, str]:
    """Split FILE:KEY into its parts; the key is "" if there is none, or if a file has the whole text as its name."""
    if Path(text).exists() or ":" not in text:
        return text, ""
    path, _, key = text.rpartition(":")
    return path, key


def read_arrays(path: str | Path) -> Any:
    """Read a .pt, .npy, .npz or .safetensors file: an array or tensor, or a dict (of dicts and lists) of them.

    Pickled arrays of more than 64 MB are read-only; those in .npy files are memory-mapped.

    Raises:
        UserError: the file is missing, damaged, of another kind, holds anything but plain data, or far more of it than
            its size lets expect (`safe_pickle.ByteBudget`).
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], Any]] = {".pt": _read_pt, ".pth": _read_pt, ".npy": _read_npy}
    readers |= {".npz": _read_npz, ".safetensors": safetensors.torch.load_file}
    if path.suffix not in readers:
        raise UserError(f"{path}: unknown kind of file; give one of {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; name another, or fetch or make it again")
    try:
        return readers[path.suffix](path)
    except UserError:
        raise
    except READ_ERRORS as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged or incomplete ({detail}); fetch or make it again") from error


def _read_npy(path: Path) -> Any:
    with path.open("rb") as stream:
        if stream.peek(1)[:1] == pickle.PROTO:  # a pickle by this name, as in THINGS-EEG2
            return safe_pickle.load(stream, path)
        dtype, shape = _npy_header(stream)
        if dtype.hasobject:
            if dtype != np.dtype(object):
                raise ValueError("a table with objects in it")
            return safe_pickle.load(stream, path)
        stated, actual = math.prod(shape) * dtype.itemsize, path.stat().st_size - stream.tell()
        if stated != actual:
            raise ValueError(f"{actual} bytes of data where its header says {stated}")
        stream.seek(0)
        return np.load(stream, allow_pickle=False)


def _npy_header(stream: IO[bytes]) -> tuple[np.dtype, tuple[int, ...]]:
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in headers:
        raise ValueError(f"version {version} of the format; it must be 1.0 or 2.0")
    shape, _, dtype = headers[version](stream)
    if any(n < 0 for n in shape):
        raise ValueError(f"impossible shape {shape}")
    return dtype, shape


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with open_zip(path) as archive:
        if min((part.header_offset for part in archive.infolist()), default=-1) != 0:
            raise ValueError("its table of contents does not list the start of the file")
        budget = safe_pickle.ByteBudget(path)
        for part in archive.infolist():
            budget.take(part.file_size)
            with archive.open(part) as stream:
                dtype, shape = _npy_header(stream)
                if not dtype.hasobject and math.prod(shape) * dtype.itemsize != part.file_size - stream.tell():
                    raise ValueError(f"{part.filename} does not have the size that its header needs")
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_pt(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise ValueError("not a zip archive, as torch.save has written since version 1.6")
    with open_zip(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("compressed, which torch.save never does")
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("no data.pkl inside, or several")
        with archive.open(pickles[0]) as stream:
            content = safe_pickle.load(stream, path, archive, pickles[0].removesuffix("data.pkl"))
            if stream.read(1):  # at the end, zipfile compares the checksum
                raise ValueError("its pickle ends early")
            return content
