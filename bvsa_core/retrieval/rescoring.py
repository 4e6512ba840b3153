"""Rescoring of a whole similarity matrix. Queries inform each other's ranking: "label-free transductive"."""

from __future__ import annotations

from torch import Tensor

from bvsa_core.errors import UserError, unknown_name
from bvsa_core.retrieval.gates import INDUCTIVE, TRANSDUCTIVE

INFORMATION = {"none": INDUCTIVE, "csls": TRANSDUCTIVE, "sinkhorn": TRANSDUCTIVE}


def rescore(name: str, scores: Tensor) -> Tensor:
    """Scores (N, M) by name: none leaves them as they are, csls and sinkhorn as below.

    Raises:
        UserError: an unknown name.
    """
    if name not in INFORMATION:
        raise UserError(unknown_name("rescoring", name, INFORMATION))
    return {"none": lambda x: x, "csls": csls, "sinkhorn": sinkhorn}[name](scores)


def csls(scores: Tensor, neighbours: int = 10) -> Tensor:
    """Cross-domain similarity local scaling: 2 s_ij - r_i - c_j, r and c mean similarities to the nearest neighbours.

    Lowers images that are near to every recording (Conneau et al., ICLR 2018).
    """
    rows = scores.topk(min(neighbours, scores.shape[1]), dim=1).values.mean(1, keepdim=True)
    columns = scores.topk(min(neighbours, scores.shape[0]), dim=0).values.mean(0, keepdim=True)
    return 2 * scores - rows - columns


def sinkhorn(scores: Tensor, temperature: float = 0.07, iterations: int = 50) -> Tensor:
    """Logarithm of the transport plan of exp(s / temperature), rows and columns of equal mass (Cuturi, NeurIPS 2013).

    Supposes that every image was seen equally often.
    """
    plan = scores.double() / temperature
    for _ in range(iterations):
        plan = plan - plan.logsumexp(0, keepdim=True)
        plan = plan - plan.logsumexp(1, keepdim=True)
    return plan.to(scores.dtype)
