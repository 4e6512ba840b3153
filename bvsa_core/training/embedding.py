"""Embeddings of a split: what retrieval compares, of a method and the features of its images."""

from __future__ import annotations

import torch
from torch import Tensor

from bvsa_core.data.split import Split
from bvsa_core.methods.base import Method
from bvsa_core.retrieval.scoring import Embeddings
from bvsa_core.training.run_data import RunData
from bvsa_core.vision.views import Views


@torch.no_grad()
def compute_embeddings(method: Method, split: Split, views: Views, texts: Tensor, trained: list[str]) -> Embeddings:
    """What retrieval compares, after training on some subjects: row i of everything belongs to sample i of a split.

    Args:
        views: gives the features of split's images at method.views_of_gallery().
        texts: (images, D) features of their prompts.
    """
    gallery = []
    for level in method.gallery_feature_levels():
        gain = torch.full(split.image_of.shape, level.gain, device=split.image_of.device)
        gallery.append(views(split.image_of, gain, torch.full_like(split.image_of, level.kernel_size)))
    method.eval()
    whose = split.subject_indices(trained)
    return method.retrieval_embeddings(split.recordings, torch.stack(gallery), texts[split.image_of], whose)


def embed(method: Method, split: Split, run_data: RunData, trained: list[str]) -> Embeddings:
    """What retrieval compares, after training on some subjects: row i of everything belongs to sample i of a split."""
    views = run_data.views(split.images, method.gallery_feature_levels())
    return compute_embeddings(method, split, views, run_data.texts(split.images, split.concepts), trained)
