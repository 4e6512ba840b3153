"""Rescoring: steps by which test recordings inform each other's ranking, all "label-free transductive".

Steps are named in a list such as "whitening,csls" and applied in its order. Those of EMBEDDING_STEPS change the
embeddings of the recordings, those of SCORE_STEPS the similarities made of them.
"""

import itertools
from collections.abc import Callable

import scipy  # which imports scipy.optimize when it is used
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bvsa_core.errors import UserError, unknown_name
from bvsa_core.retrieval.gates import BIJECTION, INDUCTIVE, TRANSDUCTIVE

SHRINKAGE = 0.2  # of the covariance that whitens
NEAREST = 10  # neighbours of CSLS and of the mutual ones
ADAPTIVE = (5, 20)  # fewest and most neighbours of adaptive CSLS
TEMPERATURE = 0.07  # of the transport plan
ROTATIONS = 5  # of the Procrustes alignment, each from the plan that the last one gives


def whitening(brain: Tensor, image: Tensor) -> Tensor:
    """Whiten the embeddings (N, D) of a subject's recordings: "subject-adaptive whitening" (Huang and Zhu, CVPR 2026).

    (x - mean) C^(-1/2), then unit norm, with C = (1 - s) covariance + s trace(covariance) / D and s = SHRINKAGE. The
    gallery stays as it is. A single recording has no covariance and stays as it is, too.
    """
    if len(brain) < 2:
        return brain
    centred = brain.double() - brain.double().mean(0)
    left, scale, right = torch.linalg.svd(centred, full_matrices=False)  # C has the eigenvectors `right`
    variance = scale.square() / len(brain)
    shrunk = (1 - SHRINKAGE) * variance + SHRINKAGE * variance.sum() / brain.shape[1]
    tiny = torch.finfo(shrunk.dtype).tiny  # equal recordings have no variance; they end as zeros
    return normalize(left * (scale / shrunk.clamp(min=tiny).sqrt()) @ right, dim=1).to(brain.dtype)


def procrustes(brain: Tensor, image: Tensor) -> Tensor:
    """Rotate the embeddings (N, D) of recordings to those of the images (M, D) that a transport plan pairs them with.

    "Wasserstein Procrustes" (Grave et al., AISTATS 2019): the plan P is that of `sinkhorn`, the rotation the orthogonal
    matrix closest to B^T P X + N / D. The second term is what N isotropic pairs that need no rotation would add: it
    keeps directions that the plan says nothing about, and makes the correspondences soft in small test sets.
    """
    rows, columns = brain.double(), image.double()
    basis = torch.linalg.qr(torch.cat([rows, columns]).T).Q  # all other directions are not rotated
    rows, columns = rows @ basis, columns @ basis
    prior = len(rows) / image.shape[1] * torch.eye(basis.shape[1]).to(rows)
    rotated = rows
    for _ in range(ROTATIONS):
        plan = sinkhorn(rotated @ columns.T).exp()
        left, _, right = torch.linalg.svd(rows.T @ plan @ columns + prior)
        rotated = rows @ left @ right
    return (rotated @ basis.T).to(brain.dtype)


def csls(scores: Tensor, neighbours: int = NEAREST) -> Tensor:
    """Apply cross-domain similarity local scaling to scores (N, M) (Conneau et al., ICLR 2018).

    The result is 2 s_ij - r_i - c_j, with r and c the mean similarities to the nearest neighbours. Images that are near
    to every recording are lowered.
    """
    rows = scores.topk(min(neighbours, scores.shape[1]), dim=1).values.mean(1, keepdim=True)
    return 2 * scores - rows - _mean_of_columns(scores, neighbours)


def adaptive_csls(scores: Tensor) -> Tensor:
    """Apply CSLS to scores (N, M) with more neighbours for recordings in dense regions (Huang and Zhu, CVPR 2026).

    Recording i has clamp(round(10 density_i / median density), 5, 20) neighbours, where the density is the mean
    similarity to the 10 nearest images and the median the lower one of two; 10 where the median is not positive. Images
    have 10 neighbours.
    """
    fewest, most = ADAPTIVE
    density = scores.topk(min(NEAREST, scores.shape[1]), dim=1).values.mean(1)
    median = density.median()
    relative = density / median if median > 0 else torch.ones_like(density)
    neighbours = (NEAREST * relative).round().clamp(fewest, most).long().clamp(max=scores.shape[1])
    nearest = scores.topk(min(most, scores.shape[1]), dim=1).values.cumsum(1)
    rows = nearest.gather(1, neighbours[:, None] - 1) / neighbours[:, None]
    return 2 * scores - rows - _mean_of_columns(scores, NEAREST)


def _mean_of_columns(scores: Tensor, neighbours: int) -> Tensor:
    """Return the mean similarity (1, M) of images to their nearest recordings."""
    return scores.topk(min(neighbours, scores.shape[0]), dim=0).values.mean(0, keepdim=True)


def sinkhorn(scores: Tensor, temperature: float = TEMPERATURE, iterations: int = 50) -> Tensor:
    """Return the logarithm of the transport plan of exp(s / temperature) (Cuturi, NeurIPS 2013).

    Rows have equal mass and so have columns: every image is assumed to be shown equally often.
    """
    plan = scores.double() / temperature
    for _ in range(iterations):
        plan = plan - plan.logsumexp(0, keepdim=True)
        plan = plan - plan.logsumexp(1, keepdim=True)
    return plan.to(scores.dtype)


def mutual(scores: Tensor, neighbours: int = NEAREST) -> Tensor:
    """Raise mutual nearest neighbours above all other pairs of scores (N, M); the order among each kind stays.

    A pair is mutual if the image is among the nearest of the recording and the recording among those of the image;
    what ties with the last of them counts.
    """
    of_row = scores >= scores.topk(min(neighbours, scores.shape[1]), dim=1).values[:, -1:]
    of_column = scores >= scores.topk(min(neighbours, scores.shape[0]), dim=0).values[-1:]
    return scores + (of_row & of_column) * (scores.max() - scores.min() + 1)


def hungarian(scores: Tensor) -> Tensor:
    """Raise the images that the best one-to-one assignment gives to recordings (Kuhn, 1955) in scores (N, M).

    No two recordings get the same image. An assigned image comes first; the order of the others stays.
    """
    order = derangement(scores.shape[1])  # else a tie would go to image i of recording i, the right one
    assigned = scipy.optimize.linear_sum_assignment(scores[:, order].double().cpu().numpy(), maximize=True)
    rows, columns = map(torch.from_numpy, assigned)
    result = scores.clone()
    result[rows, order[columns]] += scores.max() - scores.min() + 1
    return result


def derangement(count: int, seed: int = 0) -> Tensor:
    """Return a permutation (count,) without fixed points: a random cycle through all."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


EMBEDDING_STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"whitening": whitening, "procrustes": procrustes}
SCORE_STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "csls": csls, "adaptive_csls": adaptive_csls, "sinkhorn": sinkhorn, "mutual": mutual, "hungarian": hungarian,
}  # fmt: skip
INFORMATION = {
    "none": INDUCTIVE,
    **dict.fromkeys([*EMBEDDING_STEPS, *SCORE_STEPS], TRANSDUCTIVE),
    "hungarian": BIJECTION,
}
_ORDER = list(INFORMATION)
_LEAVES = {
    "sinkhorn": "sinkhorn leaves a plan of equal masses, with no hubs to lower",
    "mutual": "mutual sets two kinds of pairs apart, whose scores have no common scale",
    "hungarian": "hungarian has decided on an image for each recording",
}


def steps(names: str) -> list[str]:
    """Return the steps of a list such as "whitening,csls"; "none" has none.

    Raises:
        UserError: a name is unknown, or the order makes no sense.
    """
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in INFORMATION:
            raise UserError(unknown_name("rescoring", name, INFORMATION))
    if len(chosen) > 1 and "none" in chosen:
        raise UserError(f"rescoring {names}: none stands alone; leave it out")
    for earlier, later in itertools.pairwise(chosen):
        if earlier == later:
            raise UserError(f"rescoring {names}: {later} is named twice")
        if _ORDER.index(earlier) > _ORDER.index(later) or {earlier, later} == {"csls", "adaptive_csls"}:
            raise UserError(f"rescoring {names}: {_why_not(earlier, later)}")
    return [name for name in chosen if name != "none"]


def _why_not(earlier: str, later: str) -> str:
    """Return why a step cannot follow another."""
    if {earlier, later} == {"csls", "adaptive_csls"}:
        return "csls and adaptive_csls are two versions of one step; name one"
    if later in EMBEDDING_STEPS and earlier in SCORE_STEPS:
        return f"{later} changes embeddings, and {earlier} the scores made of them; name {later} first"
    if later in EMBEDDING_STEPS:
        return f"{later} moves what {earlier} has aligned with the images; name {later} first"
    return f"{_LEAVES[earlier]}; name {later} before it"
