"""Features in a safetensors file whose header says what they are, for which bank, and the SHA-256 of their bytes."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from bvsa_core.errors import UserError
from bvsa_core.io.atomic import open_atomically

NAME = "features"
REMEDY = "delete it, and the same command computes it again"


def write_features(path: Path, parts: Iterable[Tensor], rows: int, bank: str) -> None:
    """Write features (rows, D) float32, given in parts (any, D), no two of which need to be in memory at once.

    Args:
        path: whose name says what they are of.
        bank: key of the bank they belong to.
    """
    digest, width, written = hashlib.sha256(), 0, 0
    with open_atomically(path) as file:
        for part in parts:
            if not written:
                width = part.shape[1]
                file.write(_header(path.name, rows, width, bank, digest.hexdigest()))
            content = part.contiguous().numpy().reshape(-1).data
            digest.update(content)
            file.write(content)
            written += len(part)
        if written != rows:
            raise ValueError(f"{written} rows are given for {rows}")
        file.seek(0)
        file.write(_header(path.name, rows, width, bank, digest.hexdigest()))  # of the same length


def map_features(path: Path, rows: int, bank: str) -> Tensor:
    """Memory-mapped features (rows, D) of a file, once it is sure that they are those that were written.

    The checksum of a file is computed once in a process, and again when the file changes.

    Raises:
        UserError: the file is missing, damaged, altered, or of something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; fill the bank with 'bvsa features'")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about, features = file.metadata() or {}, file.get_tensor(NAME)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: damaged or incomplete ({str(error).splitlines()[0]}); {REMEDY}") from error
    if (about.get("bank"), about.get("content")) != (bank, path.name):
        found = (
            f"{about['content']} of bank {about.get('bank')}"
            if "content" in about
            else "a file that no bank has written"
        )
        raise UserError(f"{path}: is {found}, not {path.name} of bank {bank}; {REMEDY}")
    if features.dtype != torch.float32 or features.ndim != 2 or len(features) != rows:
        raise UserError(f"{path}: is {features.dtype} {tuple(features.shape)}, not float32 of {rows} rows; {REMEDY}")
    state = path.stat()
    if _digest(path, state.st_size, state.st_mtime_ns, state.st_ino) != about.get("sha256"):
        raise UserError(f"{path}: altered since it was written (its checksum differs); {REMEDY}")
    return features


@functools.cache
def _digest(path: Path, size: int, changed: int, inode: int) -> str:
    with safetensors.safe_open(path, framework="pt") as file:
        return hashlib.sha256(file.get_tensor(NAME).numpy().reshape(-1).data).hexdigest()


def _header(content: str, rows: int, width: int, bank: str, digest: str) -> bytes:
    described = {
        "__metadata__": {"content": content, "bank": bank, "sha256": digest},
        NAME: {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, 4 * rows * width]},
    }
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)  # so that what follows is aligned
    return len(text).to_bytes(8, "little") + text
