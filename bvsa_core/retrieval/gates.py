"""Gates of similarity modulation (fovblur.enhanced_similarity): row gates r and column gates c of 0 or 1.

`paper` and `code` read the diagonal of M_bt, that is, which text belongs to which test recording; every number they make
is labelled "uses labels".
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from bvsa_core.errors import UserError, unknown_name

INDUCTIVE = "inductive"
USES_LABELS = "uses labels"
INFORMATION = {"none": INDUCTIVE, "always": INDUCTIVE, "paper": USES_LABELS, "code": USES_LABELS}


def gates(name: str, brain_to_text: Tensor, alpha: float = 0.10) -> tuple[Tensor, Tensor]:
    """Row gates (N,) and column gates (M,) for the similarities M_bt (N, M) of recordings to texts.

    - none: 0, the image similarity alone.
    - always: 1.
    - paper: m m^T with m_i = 1 where M_bt[i, i] >= mean - z(1 - alpha / 2) * std (BVSA, CVPR 2026).
    - code: rows only, with the threshold mean - 1.96 * std / sqrt(n) (its released code).

    Raises:
        UserError: an unknown name, or a gate that reads the diagonal of an M_bt that is not square.
    """
    if name not in INFORMATION:
        raise UserError(unknown_name("gate", name, INFORMATION))
    rows, columns = brain_to_text.shape
    if name in ("none", "always"):
        value = float(name == "always")
        return brain_to_text.new_full((rows,), value), brain_to_text.new_full((columns,), value)
    if rows != columns:
        raise UserError(f"gate {name!r} pairs each recording with one text; there are {rows} recordings and {columns} texts")
    true_pairs = brain_to_text.diagonal()
    spread = true_pairs.std() if rows > 1 else true_pairs.new_zeros(())
    if name == "paper":
        open_rows = (true_pairs >= true_pairs.mean() - NormalDist().inv_cdf(1 - alpha / 2) * spread).float()
        return open_rows, open_rows
    open_rows = (true_pairs >= true_pairs.mean() - 1.96 * spread / math.sqrt(rows)).float()
    return open_rows, torch.ones_like(open_rows)
