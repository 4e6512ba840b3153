"""Embeddings of a split by a trained method, for retrieval."""

import torch
from torch import Tensor

from bvsa_core.data.split import Split
from bvsa_core.methods.base import Method
from bvsa_core.retrieval.scoring import Embeddings
from bvsa_core.training.run_data import RunData
from bvsa_core.vision.views import Views, features_at


@torch.no_grad()
def compute_embeddings(method: Method, split: Split, views: Views, texts: Tensor, trained: list[str]) -> Embeddings:
    """Return embeddings whose row i belongs to sample i of a split.

    Args:
        method: a trained method; it is left in evaluation mode.
        split: the samples.
        views: gives the features of split's images at method.gallery_feature_levels().
        texts: (images, D) features of their prompts.
        trained: subjects the method was trained on.
    """
    gallery = torch.stack([features_at(level, views, split.image_of) for level in method.gallery_feature_levels()])
    method.eval()
    subjects = split.subject_indices(trained)
    return method.retrieval_embeddings(split.recordings, gallery, texts[split.image_of], subjects)


def embed(method: Method, split: Split, run_data: RunData, trained: list[str]) -> Embeddings:
    """Return embeddings of a split as `compute_embeddings` does, with features from `run_data`."""
    views = run_data.views(split.images, method.gallery_feature_levels(), vision=method.vision)
    return compute_embeddings(method, split, views, run_data.texts(split.images, split.concepts), trained)
