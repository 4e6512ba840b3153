"""Galleries on disk: embeddings of images and their texts, memory-mapped and read in chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bvsa_core.errors import UserError
from bvsa_core.io.safe_readers import READ_ERRORS, file_and_key

KINDS = (".npy", ".safetensors")
SHAPES = "(rows, dimensions), or (rows, 1, dimensions) as NICE publishes them"


def first_invalid_row(values: Tensor) -> int | None:
    """Return the first row of values (N, ...) that has NaN or infinite values; None if there is none."""
    finite = values.isfinite().flatten(1).all(1)
    return None if finite.all() else int((~finite).int().argmax())


def as_matrix(values: Any) -> Any:
    """Drop the middle axis of an array or tensor of shape (rows, 1, dimensions); return anything else as it is."""
    return (
        values[:, 0]
        if isinstance(values, (np.ndarray, Tensor)) and values.ndim == 3 and values.shape[1] == 1
        else values
    )


class EmbeddingMatrix:
    """Matrix (rows, dimensions) of embeddings in a .npy or .safetensors file; only requested rows are read.

    Args:
        where: FILE, or FILE:KEY for an entry of a .safetensors file that has several.
        unit_norm: normalise the rows that are read.

    Raises:
        UserError: the file or entry is missing, damaged, or not a matrix of floats.
    """

    def __init__(self, where: str | Path, unit_norm: bool = True):
        self.unit_norm = unit_norm
        path, key = file_and_key(str(where))
        self.path = Path(path)
        if self.path.suffix not in KINDS:
            raise UserError(f"{path}: unknown kind of gallery; give {' or '.join(KINDS)}, which can be read in parts")
        if not self.path.is_file():
            raise UserError(f"{path}: no such file")
        try:
            if self.path.suffix == ".npy":  # copy on write: torch needs writable memory, and the file must not change
                self.data = torch.from_numpy(np.load(self.path, mmap_mode="c", allow_pickle=False))
            else:
                self.data = _map_safetensors(self.path, key)
        except UserError:
            raise
        except READ_ERRORS as error:
            detail = " ".join(str(error).split())
            raise UserError(f"{path}: damaged or not numbers ({detail}); fetch or make it again") from error
        self.data = as_matrix(self.data)
        if self.data.ndim != 2 or 0 in self.data.shape or not self.data.is_floating_point():
            shape = tuple(self.data.shape)
            raise UserError(f"{path}: is {self.data.dtype} of shape {shape}; embeddings are floats {SHAPES}")

    @classmethod
    def of(cls, features: Tensor, unit_norm: bool = True) -> EmbeddingMatrix:
        """Return the matrix of features (rows, dimensions) in memory."""
        matrix = cls.__new__(cls)
        matrix.path, matrix.data, matrix.unit_norm = Path("features"), features, unit_norm
        return matrix

    def __len__(self) -> int:
        return len(self.data)

    @property
    def width(self) -> int:
        """Dimensions of an embedding."""
        return self.data.shape[1]

    def read(self, rows: slice | Tensor) -> Tensor:
        """Return float32 rows, by slice or by number; NaN or infinite values are a UserError."""
        values = self.data[rows].float()
        if (first := first_invalid_row(values)) is not None:
            row = (rows.start or 0) + first if isinstance(rows, slice) else int(rows[first])
            raise UserError(f"{self.path}: row {row} has NaN or infinite values; make the file again")
        return normalize(values, dim=1) if self.unit_norm else values


class SideBySide:
    """Matrices of the same images read as one, a part of each feature from each of them."""

    def __init__(self, parts: Sequence[EmbeddingMatrix]):
        self.parts, self.path = list(parts), parts[0].path

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def width(self) -> int:
        """Dimensions of all parts together."""
        return sum(part.width for part in self.parts)

    def read(self, rows: slice | Tensor) -> Tensor:
        """Return float32 rows as `EmbeddingMatrix.read` does."""
        return torch.cat([part.read(rows) for part in self.parts], dim=1)


class Gallery:
    """Images to search.

    Args:
        images: features of the images, at one or several blur levels.
        texts: features of the texts of the images, for gates.
        names: names of the images; default: row numbers.
        image_embeddings: maps image features (levels, M, D) to embeddings (M, D); default: concatenates the levels.
        text_embeddings: maps text features (M, E) to embeddings (M, E); default: the identity.
        device: device of the embeddings.

    Raises:
        UserError: the numbers of rows differ.
    """

    def __init__(
        self,
        images: Sequence[EmbeddingMatrix | SideBySide],
        texts: EmbeddingMatrix | None = None,
        names: Sequence[str] | None = None,
        image_embeddings: Callable[[Tensor], Tensor] = lambda features: features.transpose(0, 1).flatten(1),
        text_embeddings: Callable[[Tensor], Tensor] = lambda features: features,
        device: torch.device | str = "cpu",
    ):
        self.images, self.texts, self.device = list(images), texts, device
        self._image_embeddings, self._text_embeddings = image_embeddings, text_embeddings
        first = self.images[0]
        others = [*self.images[1:], *([texts] if texts else [])]
        for other in others:
            if len(other) != len(first):
                raise UserError(f"{other.path} has {len(other)} rows and {first.path} {len(first)}; they must agree")
        self.names = list(names) if names else [str(row) for row in range(len(self))]

    def __len__(self) -> int:
        return len(self.images[0])

    @torch.no_grad()
    def image(self, rows: slice | Tensor) -> Tensor:
        """Return embeddings of images, by slice or by number."""
        return self._image_embeddings(torch.stack([part.read(rows) for part in self.images]).to(self.device))

    @torch.no_grad()
    def text(self, rows: slice | Tensor) -> Tensor:
        """Return embeddings of the texts of images, by slice or by number, if the gallery has texts."""
        if self.texts is None:
            raise UserError("the gallery has no texts; give them with --gallery_text")
        return self._text_embeddings(self.texts.read(rows).to(self.device))


def _map_safetensors(path: Path, key: str) -> Tensor:
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        names = list(file.keys())
        key = key or names[0] if len(names) == 1 else key
        if key not in names:
            raise UserError(f"{path}: holds {', '.join(names) or 'nothing'}; pick an entry with {path}:KEY")
        return file.get_tensor(key)


def rows_of(images: Sequence[str], gallery: Sequence[str]) -> list[int | None]:
    """Return the row of each image in a gallery, None where it is not there or its name is not unique.

    An image may have its path in the data set, and the gallery its path in a folder: folder and file are compared.

    >>> rows_of(["test_images/1_dog/a.jpg", "3"], ["1_dog/a.jpg", "2_cat/a.jpg"])
    [0, None]
    """
    exact = {name: row for row, name in enumerate(gallery)}
    ends = [*map(_end, gallery)]
    counts = Counter(ends)
    unique: dict[tuple[str, ...], int] = {
        end: row for row, end in enumerate(ends) if len(end) == 2 and counts[end] == 1
    }
    return [exact.get(name, unique.get(_end(name))) for name in images]


def _end(name: str) -> tuple[str, ...]:
    return PurePath(name).parts[-2:]
