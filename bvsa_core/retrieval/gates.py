"""Gates of fovblur.enhanced_similarity: row gates for recordings and column gates for images.

`paper` and `code` read the diagonal of M_bt, that is, which text belongs to which test recording; their numbers are all
labelled "uses labels". `label_free` opens if the recording is clearly similar to some text of the gallery, by a
threshold learnt on training recordings; it reads one query at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

import fovblur
from bvsa_core.errors import UserError, unknown_name

INDUCTIVE = "inductive"
BY_HAND = "threshold by hand"
TRANSDUCTIVE = "label-free transductive"
BIJECTION = "label-free transductive, assumes a bijection"  # each recording has an image of its own
USES_LABELS = "uses labels"
INFORMATION = {
    "none": INDUCTIVE, "always": INDUCTIVE, "label_free": INDUCTIVE, "paper": USES_LABELS, "code": USES_LABELS,
}  # fmt: skip
KINDS = ("margin", "max")
GATE_ALPHA = 0.10  # significance level of the gate paper


@dataclass(frozen=True)
class Reliability:
    """Criterion by which the gate `label_free` opens for a recording."""

    kind: str  # max: the largest similarity to a text of the gallery; margin: that minus the second largest
    threshold: float  # the smallest value that opens the gate
    by_hand: bool = False  # not learnt on training recordings, so it may have been chosen on the test set

    def __str__(self) -> str:
        return f"{self.kind}:{self.threshold:g}"

    @classmethod
    def parse(cls, text: str) -> Reliability:
        """Parse KIND:THRESHOLD, given by hand, or raise a UserError."""
        kind, _, threshold = text.partition(":")
        try:
            if kind in KINDS and math.isfinite(float(threshold)):
                return cls(kind, float(threshold), by_hand=True)
        except ValueError:
            pass
        raise UserError(f"reliability {text!r}; write margin:THRESHOLD or max:THRESHOLD, such as margin:0.05")


def gates(
    name: str, brain_text: Tensor, text: Tensor, reliability: Reliability | None = None, alpha: float = GATE_ALPHA
) -> tuple[Tensor | None, Tensor | None]:
    """Return row gates (N,) and column gates (M,) for recordings (N, E) and texts (M, E); None: all are 1.

    - none: 0, image similarity only.
    - always: 1.
    - label_free: rows only, 1 if the recording's reliability reaches the threshold learnt on training recordings.
    - paper: m m^T with m_i = 1 if M_bt[i, i] >= mean - z(1 - alpha / 2) * std (BVSA, CVPR 2026).
    - code: rows only, 1 above the threshold mean - z(0.975) * std / sqrt(n) (its released code).

    Raises:
        UserError: the name is unknown, label_free has no reliability, or the gate needs a square M_bt.
    """
    if name not in INFORMATION:
        raise UserError(unknown_name("gate", name, INFORMATION))
    rows, columns = len(brain_text), len(text)
    if name == "none":
        return brain_text.new_zeros(rows), None
    if name == "always":
        return None, None
    if name == "label_free":
        if reliability is None:
            raise UserError("gate label_free needs the reliability learnt on training recordings, such as margin:0.05")
        return (reliabilities(brain_text, text)[reliability.kind] >= reliability.threshold).to(brain_text.dtype), None
    if rows != columns:
        counts = f"{rows} recordings and {columns} texts"
        raise UserError(f"gate {name!r} pairs each recording with one text; there are {counts}")
    true_pairs = (brain_text * text).sum(1)
    spread = true_pairs.std() if rows > 1 else true_pairs.new_zeros(())
    if name == "code":
        above = true_pairs > true_pairs.mean() - NormalDist().inv_cdf(0.975) * spread / math.sqrt(rows)
        return above.to(brain_text.dtype), None
    reach = NormalDist().inv_cdf(1 - alpha / 2) * spread
    opened = (true_pairs >= true_pairs.mean() - reach).to(brain_text.dtype)
    return opened, opened


def reliabilities(brain_text: Tensor, text: Tensor) -> dict[str, Tensor]:
    """Return the reliability (N,) of recordings (N, E) for texts (M, E), for each of KINDS."""
    return reliability_from_top2(top2_text_similarities(brain_text, text))


def top2_text_similarities(brain_text: Tensor, text: Tensor) -> Tensor:
    """Return the largest similarities (N, 1 or 2) of recordings to texts, descending; equal texts count once."""
    distinct = text.unique(dim=0)
    closed = brain_text.new_zeros(len(brain_text))
    return fovblur.enhanced_topk(brain_text, distinct, brain_text, distinct, min(2, len(distinct)), row_gate=closed)[0]


def two_largest(values: Tensor) -> Tensor:
    """Return the two largest distinct values (N, 2) of each row (N, m); equal similarities are of the same text."""
    largest = values.amax(1, keepdim=True)
    others = values.masked_fill(values == largest, -1)  # the smallest cosine
    return torch.cat([largest, others.amax(1, keepdim=True)], dim=1)


def reliability_from_top2(best: Tensor) -> dict[str, Tensor]:
    """Return the reliability (N,) for each of KINDS from the largest similarities (N, m)."""
    largest, second = two_largest(best).T
    return {"margin": largest - second, "max": largest}


def learn_reliability(examples: Iterable[tuple[Tensor, Tensor, dict[str, Tensor]]]) -> Reliability:
    """Return the kind and threshold whose gate ranks training recordings best, by mean reciprocal rank.

    Args:
        examples: for each gallery of training recordings the ranks (n,) of the right images with the gate closed, the
            ranks with the gate open, and the `reliabilities` of the recordings.
    """
    closed, opened, measured = zip(*examples)
    gain = 1 / torch.cat(opened).double() - 1 / torch.cat(closed).double()
    candidates = []
    for kind in KINDS:
        reliability, order = torch.cat([values[kind] for values in measured]).sort(descending=True, stable=True)
        tied = torch.cat([reliability[1:] == reliability[:-1], reliability.new_zeros(1, dtype=torch.bool)])
        total = gain[order].cumsum(0).masked_fill(tied, -math.inf)  # equal reliabilities open together
        most, at = total.max(0)
        threshold = reliability[at] if most > 0 else reliability[0].nextafter(reliability.new_tensor(math.inf))
        candidates.append((most.item(), Reliability(kind, threshold.item())))
    return max(candidates, key=lambda each: each[0])[1]  # the first of equals
