"""What a method is: the part between encoders and the training loop."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from bvsa_core.encoders import InputSpec, encode
from bvsa_core.retrieval.scoring import Embeddings
from bvsa_core.vision.multilevel import Fusion
from bvsa_core.vision.views import SHARP, Level


@dataclass
class Batch:  # not frozen: Lightning casts its tensors to the precision of a run
    """Training samples with the features they are aligned to."""

    samples: Tensor  # (B,) int64, numbers of the samples in the training set
    recordings: Tensor  # (B, channels, time)
    images: Tensor  # (B, D) unit-norm features of the images, each under the blur the method asked for
    texts: Tensor  # (B, D) unit-norm features of the prompts that name what the images show
    subjects: Tensor | None = None  # (B,) int64, whose recordings these are; -1 for someone not trained on


class Method(nn.Module, ABC):
    """A brain encoder with its loss, its per-sample state, and what it retrieves with.

    Args:
        options: an instance of the method's `Options`.
        build_encoder: makes a brain encoder for a shape, recordings (B, channels, time) -> (B, embedding).
        samples: number of training samples, for per-sample state.
        shape: of the recordings and of the features of images and texts, whose width is shape.embedding.
    """

    Options: ClassVar[type]
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"corrected": {}}
    TRAINING: ClassVar[
        dict[str, Any]
    ] = {}  # how its authors train it: fields of RunConfig, which flags and YAML override
    TABLE_NOTE: ClassVar[str] = ""  # what a reader of its figures has to know; printed in every table
    transductive_classifier: ClassVar[bool] = (
        False  # scores come from a classifier of the test images: nothing else can be searched
    )
    default_gate: str = "none"  # how retrieval uses the texts unless it is told otherwise

    def __init__(self, options: Any, build_encoder: Callable[[InputSpec], nn.Module], samples: int, shape: InputSpec):
        super().__init__()
        self.options = options
        self.encoder = build_encoder(shape)
        self.fusion: Fusion | None = None  # of multi-level targets, trained along with the method
        self.epoch, self.epochs = 0, 1  # the one being trained, counted from 0, and how many there will be

    def setup(self, everything: Callable[[], Batch]) -> None:
        """Called once before training. `everything` makes one batch of the whole training set."""

    def training_levels(self) -> list[Level]:
        """Every blur level that `blur` may ask for."""
        return [SHARP]

    def gallery_levels(self) -> list[Level]:
        """The blur levels under which the images to retrieve are seen."""
        return [SHARP]

    def gallery_feature_levels(self) -> list[Level]:
        """The blur levels whose features retrieval needs: those of the gallery, then those that are fused with each."""
        return [*self.gallery_levels(), *(self.fusion.levels if self.fusion is not None else [])]

    def blur(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and kernel size (B,) under which these training samples are seen next."""
        return torch.full(samples.shape, SHARP.gain), torch.full(samples.shape, SHARP.kernel_size)

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch; updates per-sample state in training mode."""

    def embed(self, recordings: Tensor, subjects: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unit-norm embeddings (B, D) of recordings: one to compare with images, one to compare with texts."""
        brain = normalize(encode(self.encoder, recordings, subjects), dim=-1)
        return brain, brain

    def embed_images(self, features: Tensor) -> Tensor:
        """What recordings are compared with, for features (levels, M, D) of images."""
        return features

    def embed_texts(self, features: Tensor) -> Tensor:
        """What recordings are compared with, for features (M, D) of texts."""
        return features

    def query_embeddings(self, recordings: Tensor, subjects: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings of test recordings (N, channels, time), to compare with those of images and of texts."""
        levels = len(self.gallery_levels())
        brain_image, brain_text = self.embed(recordings, subjects)
        return brain_image.repeat(1, levels), brain_text.repeat(1, levels)

    def fuse(self, features: Tensor) -> Tensor:
        """Features (gallery levels, M, D) of images, from those at `views_of_gallery`."""
        if self.fusion is None:
            return features
        own = len(self.gallery_levels())
        return torch.stack([self.fusion([view, *features[own:]]) for view in features[:own]])

    def image_embeddings(self, features: Tensor) -> Tensor:
        """Embeddings of images to retrieve, from features at `views_of_gallery`: those of several levels side by side."""
        return self.embed_images(self.fuse(features)).transpose(0, 1).flatten(1)

    def text_embeddings(self, features: Tensor) -> Tensor:
        """Embeddings of texts, from features (M, D): repeated as those of recordings are."""
        return self.embed_texts(features).repeat(1, len(self.gallery_levels()))

    def retrieval_embeddings(
        self, recordings: Tensor, images: Tensor, texts: Tensor, subjects: Tensor | None = None
    ) -> Embeddings:
        """Embeddings of test recordings (N, channels, time), of images and of texts, from their features.

        Args:
            images: (levels, M, D), at `views_of_gallery`.
            texts: (M, D).
            subjects: (N,), whose recordings these are; see Batch.
        """
        brain_image, brain_text = self.query_embeddings(recordings, subjects)
        return Embeddings(brain_image, self.image_embeddings(images), brain_text, self.text_embeddings(texts))


class Contrastive(Method):
    """A method whose logits are cosines times a learnable scale."""

    def __init__(self, options: Any, build_encoder: Callable[[InputSpec], nn.Module], samples: int, shape: InputSpec):
        super().__init__(options, build_encoder, samples, shape)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def symmetric_contrastive(brain: Tensor, other: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the two cross-entropies between (B, D) embeddings whose rows belong together, and the logits (B, B)."""
    logits = scale * brain @ other.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half types have too few digits for the sum
    of_all = logits.logsumexp(dim=1) + logits.logsumexp(dim=0)
    return of_all.mean() / 2 - logits.diagonal().mean(), logits


def positive_scale(raw: Tensor, kind: str) -> Tensor:
    """The learnable factor of the logits: exp(raw), as CLIP has it, or softplus(raw), as UBP's code has it."""
    return softplus(raw) if kind == "softplus" else raw.exp()


class Interval(nn.Module):
    """Which samples of a batch stand out: beyond mean -+ z(1 - alpha / 2) * std of their similarities.

    With gamma, the mean and the unbiased standard deviation are those of similarities smoothed over epochs,
    s <- gamma * similarity + (1 - gamma) * s, starting at 1 (UBP); the similarity compared is always the raw one.
    """

    smoothed: Tensor  # (samples,), or () without gamma

    def __init__(self, samples: int, alpha: float, gamma: float | None):
        super().__init__()
        self.z = NormalDist().inv_cdf(1 - alpha / 2)
        self.gamma = gamma
        self.register_buffer("smoothed", torch.ones(samples if gamma is not None else 0))

    @torch.no_grad()
    def forward(self, samples: Tensor, similarity: Tensor) -> Tensor:
        """-1 below the interval, +1 above it, 0 inside, for similarities (B,) of the samples (B,); int64."""
        similarity, mean, std = self._fit(samples, similarity)
        reach = self.z * std
        return (similarity > mean + reach).long() - (similarity < mean - reach).long()

    @torch.no_grad()
    def position(self, samples: Tensor, similarity: Tensor) -> Tensor:
        """Where in the interval similarities (B,) lie: 0 in its middle, -1 and 1 at its ends; float32."""
        similarity, mean, std = self._fit(samples, similarity)
        return ((similarity - mean) / (self.z * std).clamp(min=torch.finfo(torch.float32).tiny)).nan_to_num()

    def _fit(self, samples: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        similarity = similarity.detach().float()
        fitted = similarity
        if self.gamma is not None:
            fitted = self.gamma * similarity + (1 - self.gamma) * self.smoothed[samples]
            self.smoothed[samples] = fitted
        if len(fitted) < 2:  # has no spread
            return similarity, similarity, torch.zeros_like(similarity)
        return similarity, fitted.mean(), fitted.std()
