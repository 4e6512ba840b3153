"""Random embeddings for the similarity, and its float64 oracle."""

import torch
from torch import Tensor

from fovblur.enhanced_similarity.validation import EMBEDDING_DTYPES

DTYPES = EMBEDDING_DTYPES


LAYOUTS = {  # of embeddings; what lies beside them is NaN
    "contiguous": lambda x: x,
    "transposed": lambda x: x.T.contiguous().T,
    "strided": lambda x: torch.stack([torch.full_like(x, torch.nan), x], 2)[:, :, 1],
    "offset": lambda x: torch.cat([x.new_full((len(x), 1), torch.nan), x], 1)[:, 1:],
    "padded": lambda x: torch.cat([x, x.new_full((len(x), 16 - x.shape[1] % 8), torch.nan)], 1)[:, : x.shape[1]],
}


def random_embeddings(n: int, m: int, d: int, e: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Return brain_image, image, brain_text and text with rows of about unit length."""
    scaled = lambda rows, columns: (torch.randn(rows, columns) / max(columns, 1) ** 0.5).to(dtype)  # noqa: E731
    return scaled(n, d), scaled(m, d), scaled(n, e), scaled(m, e)


def random_gates(n: int, m: int) -> dict[str, Tensor]:
    return {"row_gate": torch.rand(n) * (torch.rand(n) > 0.3), "column_gate": torch.rand(m) * (torch.rand(m) > 0.3)}


def exact(brain_image, image, brain_text, text, row_gate=None, column_gate=None) -> Tensor:
    """Return the formula in float64, independent of the reference; for open gates or finite texts."""
    image_similarity = torch.einsum("nd,md->nm", brain_image.double(), image.double())
    text_similarity = torch.einsum("ne,me->nm", brain_text.double(), text.double())
    rows = torch.ones(len(brain_image)) if row_gate is None else row_gate
    columns = torch.ones(len(image)) if column_gate is None else column_gate
    return image_similarity * (1 + torch.outer(rows.double(), columns.double()) * text_similarity)


def check_topk(values: Tensor, indices: Tensor, scores: Tensor, tolerance: float) -> None:
    """Check the k best of float64 scores, up to differences within rounding."""
    best = scores.sort(dim=1, descending=True).values[:, : values.shape[1]]
    scale = max(1.0, scores.abs().max().item())
    assert (values.double() - best).abs().max() <= tolerance * scale
    assert (values.double() - scores.gather(1, indices)).abs().max() <= tolerance * scale
    assert (values[:, :-1] >= values[:, 1:]).all()
    assert all(len(set(row)) == len(row) for row in indices.tolist())
    equal = values[:, :-1] == values[:, 1:]
    assert (indices[:, :-1] < indices[:, 1:])[equal].all()
