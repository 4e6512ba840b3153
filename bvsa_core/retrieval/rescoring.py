"""Rescoring of a similarity matrix. Queries influence each other's ranking: "label-free transductive"."""

from torch import Tensor

from bvsa_core.retrieval.gates import INDUCTIVE, TRANSDUCTIVE

INFORMATION = {"none": INDUCTIVE, "csls": TRANSDUCTIVE, "sinkhorn": TRANSDUCTIVE}


def rescore(name: str, scores: Tensor) -> Tensor:
    """Rescore a similarity matrix (N, M) by a name of INFORMATION; "none" leaves it unchanged."""
    return {"none": lambda x: x, "csls": csls, "sinkhorn": sinkhorn}[name](scores)


def csls(scores: Tensor, neighbours: int = 10) -> Tensor:
    """Apply cross-domain similarity local scaling to scores (N, M) (Conneau et al., ICLR 2018).

    The result is 2 s_ij - r_i - c_j, with r and c the mean similarities to the nearest neighbours. Images that are near
    to every recording are lowered.
    """
    rows = scores.topk(min(neighbours, scores.shape[1]), dim=1).values.mean(1, keepdim=True)
    columns = scores.topk(min(neighbours, scores.shape[0]), dim=0).values.mean(0, keepdim=True)
    return 2 * scores - rows - columns


def sinkhorn(scores: Tensor, temperature: float = 0.07, iterations: int = 50) -> Tensor:
    """Return the logarithm of the transport plan of exp(s / temperature) (Cuturi, NeurIPS 2013).

    Rows have equal mass and so have columns: every image is assumed to be shown equally often.
    """
    plan = scores.double() / temperature
    for _ in range(iterations):
        plan = plan - plan.logsumexp(0, keepdim=True)
        plan = plan - plan.logsumexp(1, keepdim=True)
    return plan.to(scores.dtype)
