"""Features in a safetensors file; its header holds their name, the key of the bank, and the SHA-256 of their bytes."""

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
    """Write features (rows, D) float32.

    Args:
        path: the file, named after its content.
        parts: the features in parts (any, D), taken one at a time.
        rows: number of rows in all parts together.
        bank: key of the bank.
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
        file.write(_header(path.name, rows, width, bank, digest.hexdigest()))  # has the same length


def map_features(path: Path, rows: int, bank: str) -> Tensor:
    """Verify a file and return its features (rows, D), memory-mapped.

    The checksum of a file is computed once per process, and again when the file changes.

    Raises:
        UserError: the file is missing, damaged, altered, or of other content.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; fill the bank with 'bvsa features'")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata, features = file.metadata() or {}, file.get_tensor(NAME)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: damaged or incomplete ({str(error).splitlines()[0]}); {REMEDY}") from error
    if (metadata.get("bank"), metadata.get("content")) != (bank, path.name):
        actual = f"{metadata.get('content')} of bank {metadata.get('bank')}"
        actual = actual if "content" in metadata else "a file that no bank has written"
        raise UserError(f"{path}: is {actual}, not {path.name} of bank {bank}; {REMEDY}")
    if features.dtype != torch.float32 or features.ndim != 2 or len(features) != rows:
        raise UserError(f"{path}: is {features.dtype} {tuple(features.shape)}, not float32 of {rows} rows; {REMEDY}")
    state = path.stat()
    if _digest(path, state.st_size, state.st_mtime_ns, state.st_ino) != metadata.get("sha256"):
        raise UserError(f"{path}: altered since it was written (its checksum differs); {REMEDY}")
    return features


@functools.cache
def _digest(path: Path, size: int, changed: int, inode: int) -> str:
    with safetensors.safe_open(path, framework="pt") as file:
        return hashlib.sha256(file.get_tensor(NAME).numpy().reshape(-1).data).hexdigest()


def _header(content: str, rows: int, width: int, bank: str, digest: str) -> bytes:
    header = {
        "__metadata__": {"content": content, "bank": bank, "sha256": digest},
        NAME: {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, 4 * rows * width]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the features
    return len(text).to_bytes(8, "little") + text
