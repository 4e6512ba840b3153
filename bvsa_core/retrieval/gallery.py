"""Galleries on disk: embeddings of images and their texts, memory-mapped and read in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bvsa_core.errors import UserError
from bvsa_core.io.safe_readers import READ_ERRORS, file_and_key

KINDS = (".npy", ".safetensors")


class EmbeddingMatrix:
    """A matrix (rows, dimensions) of embeddings in a .npy or .safetensors file, of which only what is asked for is read.

    Args:
        where: FILE, or FILE:KEY for an entry of a .safetensors file that has several.

    Raises:
        UserError: the file or entry is missing, damaged, or not a matrix of floats.
    """

    def __init__(self, where: str | Path):
        path, key = file_and_key(str(where))
        self.path = Path(path)
        if self.path.suffix not in KINDS:
            raise UserError(f"{path}: unknown kind of gallery; give {' or '.join(KINDS)}, which can be read in parts")
        if not self.path.is_file():
            raise UserError(f"{path}: no such file")
        try:
            self.data = _map_npy(self.path) if self.path.suffix == ".npy" else _map_safetensors(self.path, key)
        except UserError:
            raise
        except READ_ERRORS as error:
            raise UserError(
                f"{path}: damaged or not numbers ({' '.join(str(error).split())}); fetch or make it again"
            ) from error
        if self.data.ndim != 2 or 0 in self.data.shape or not self.data.is_floating_point():
            raise UserError(
                f"{path}: is {self.data.dtype} of shape {tuple(self.data.shape)}; embeddings are floats (rows, dimensions)"
            )

    def __len__(self) -> int:
        return len(self.data)

    @property
    def width(self) -> int:
        return self.data.shape[1]

    def read(self, rows: slice | Tensor) -> Tensor:
        """Unit-norm float32 rows, by slice or by number.

        Raises:
            UserError: one of them has NaN or infinite values.
        """
        values = self.data[rows].float()
        if not values.isfinite().all():
            where = int((~values.isfinite()).any(1).int().argmax())
            row = (rows.start or 0) + where if isinstance(rows, slice) else int(rows[where])
            raise UserError(f"{self.path}: row {row} has NaN or infinite values; make the file again")
        return normalize(values, dim=1)


class Gallery:
    """Images to search.

    Args:
        images: features of the images, at one blur level or several.
        texts: features of their texts, for gates.
        names: what to call them; their row numbers where left out.
        image_embeddings: what makes embeddings (M, D) of image features (levels, M, D); side by side where left out.
        text_embeddings: what makes embeddings (M, E) of text features (M, E); the same where left out.
        device: where embeddings are made and returned.

    Raises:
        UserError: the numbers of rows differ.
    """

    def __init__(
        self,
        images: Sequence[EmbeddingMatrix],
        texts: EmbeddingMatrix | None = None,
        names: Sequence[str] | None = None,
        image_embeddings: Callable[[Tensor], Tensor] = lambda features: features.transpose(0, 1).flatten(1),
        text_embeddings: Callable[[Tensor], Tensor] = lambda features: features,
        device: torch.device | str = "cpu",
    ):
        self.images, self.texts, self.device = list(images), texts, device
        self._image_embeddings, self._text_embeddings = image_embeddings, text_embeddings
        for other in (*self.images[1:], *([texts] if texts else [])):
            if len(other) != len(self.images[0]):
                raise UserError(
                    f"{other.path} has {len(other)} rows and {self.images[0].path} {len(self.images[0])}; they must agree"
                )
        self.names = list(names) if names else [str(row) for row in range(len(self))]

    def __len__(self) -> int:
        return len(self.images[0])

    @torch.no_grad()
    def image(self, rows: slice | Tensor) -> Tensor:
        """Embeddings of images, by slice or number."""
        return self._image_embeddings(torch.stack([part.read(rows) for part in self.images]).to(self.device))

    @torch.no_grad()
    def text(self, rows: slice | Tensor) -> Tensor:
        """Embeddings of their texts.

        Raises:
            UserError: there are none.
        """
        if self.texts is None:
            raise UserError("the gallery has no texts; give them with --gallery_text")
        return self._text_embeddings(self.texts.read(rows).to(self.device))


def _map_npy(path: Path) -> Tensor:
    # Copy on write: torch wants memory that may be written to, and the file must not change.
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def _map_safetensors(path: Path, key: str) -> Tensor:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if not key and len(names) == 1:
                key = names[0]
            if key not in names:
                raise UserError(f"{path}: holds {', '.join(names) or 'nothing'}; pick an entry with {path}:KEY")
            return file.get_tensor(key)
    except safetensors.SafetensorError as error:
        raise ValueError(error) from error
