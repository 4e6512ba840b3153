"""What every backend of the similarity takes; csrc/enhanced_similarity/params.h declares the struct for the kernels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """Embeddings of one dtype and device, of any strides, and the gates in the dtype that is accumulated in."""

    brain_image: Tensor  # (N, D)
    image: Tensor  # (M, D)
    brain_text: Tensor  # (N, E)
    text: Tensor  # (M, E)
    row_gate: Tensor | None  # (N,); None: all 1
    column_gate: Tensor | None  # (M,)

    def part(self, rows: slice, columns: slice) -> Inputs:
        """Return some of the recordings and some of the images."""
        gates = (None if gate is None else gate[of] for gate, of in zip(self[4:], (rows, columns)))
        return Inputs(self.brain_image[rows], self.image[columns], self.brain_text[rows], self.text[columns], *gates)
