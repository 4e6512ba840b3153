"""The interface of methods, between encoders and the training loop."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus
from torch.optim import Optimizer

from bvsa_core.encoders import InputSpec, encode
from bvsa_core.errors import UserError, unknown_name
from bvsa_core.retrieval.gates import GATE_ALPHA
from bvsa_core.retrieval.scoring import Embeddings
from bvsa_core.vision.learnt_blur import LearntBlur
from bvsa_core.vision.multilevel import Fusion
from bvsa_core.vision.tuned import TunedVision
from bvsa_core.vision.views import SHARP, Level

PROJECTORS = ("none", "linear", "mlp")


@dataclass
class Batch:  # not frozen: Lightning casts its tensors to the precision of a run
    """Training samples with the features they are aligned to."""

    samples: Tensor  # (B,) int64, indices into the training set
    recordings: Tensor  # (B, channels, time); (0, channels, time) for images and texts without recordings
    images: Tensor  # (B, D) unit-norm features of the images, each under the blur the method asked for; see takes_parts
    texts: Tensor  # (B, D) unit-norm features of the prompts that name what the images show
    subjects: Tensor | None = None  # (B,) int64, subjects of the recordings; -1 for one not trained on


@dataclass(frozen=True)
class Preset:
    """A version of a method: what it sets other than the defaults."""

    options: Mapping[str, Any] = field(default_factory=dict)  # fields of the method's Options
    training: Mapping[str, Any] = field(default_factory=dict)  # fields of RunConfig, over the method's TRAINING
    deviations: tuple[str, ...] | None = None  # from the paper that this preset alone follows; default: DEVIATIONS


class Projector(nn.Module):
    """A learnt map of features (..., width) to a space (..., dim), in which they are unit-norm.

    Args:
        kind: linear, mlp (with a hidden layer of `dim`), or none, which keeps the space of the features.
    """

    def __init__(self, kind: str, width: int, dim: int):
        super().__init__()
        self.map: nn.Module = nn.Identity()
        if kind != "none":
            self.map = nn.Linear(width, dim)
        if kind == "mlp":
            self.map = nn.Sequential(self.map, nn.GELU(), nn.Linear(dim, dim))

    def forward(self, features: Tensor) -> Tensor:
        """Return unit-norm features."""
        return normalize(self.map(features), dim=-1)


class ProjectedEncoder(nn.Module):
    """A brain encoder followed by a map of its embeddings.

    Args:
        encoder: returns embeddings (B, width).
        own: a map that belongs to this encoder; without one
        shared: takes its place, which belongs to another module.
    """

    uses_subject_ids = True  # and passes them on to an encoder that does

    def __init__(self, encoder: nn.Module, own: nn.Module | None, shared: nn.Module | None = None):
        super().__init__()
        self.encoder, self.map = encoder, own
        self._shared = [shared]  # not a submodule: its weights are saved once

    def forward(self, recordings: Tensor, subjects: Tensor | None = None) -> Tensor:
        """Return embeddings (B, dim) of recordings (B, channels, time)."""
        embedding = encode(self.encoder, recordings, subjects)
        return (self.map or self._shared[0])(embedding)  # type: ignore[misc]


class Method(nn.Module, ABC):
    """A brain encoder with its loss, its per-sample state and its embeddings for retrieval.

    Args:
        options: an instance of the method's `Options`.
        build_encoder: builds a brain encoder for a shape, recordings (B, channels, time) -> (B, embedding).
        samples: number of training samples, for per-sample state.
        shape: of the recordings; shape.embedding is the width of images, shape.text_width that of texts.

    Raises:
        UserError: images and texts, which the method compares with one embedding of a recording, differ in width.
    """

    Options: ClassVar[type]
    PRESETS: ClassVar[Mapping[str, Preset]] = {"corrected": Preset()}  # also "paper" and "code", the released code
    TRAINING: ClassVar[dict[str, Any]] = {}  # the authors' training: fields of RunConfig, which flags and YAML override
    INTER_TRAINING: ClassVar[dict[str, Any]] = {}  # what they chose otherwise in the setting inter
    DEVIATIONS: ClassVar[tuple[str, ...]] = ()  # of every preset from the released code; footnotes of tables
    TABLE_NOTE: ClassVar[str] = ""  # a caveat about its scores, printed in every table
    uses_texts: ClassVar[bool] = True  # the loss reads the texts of a batch; others can be trained without any
    takes_parts: ClassVar[bool] = False  # images are all parts of their features side by side, layers not normalised
    takes_projectors: ClassVar[bool] = True  # can be trained in a space that maps lead to
    transductive_classifier: ClassVar[bool] = False  # fitted on the test images; it can search no others
    learns_blur: ClassVar[bool] = True  # the gradient of its loss reaches the features of images
    default_gate: str = "none"  # of the texts at retrieval
    compares_texts: bool = True  # texts are in a space that recordings are mapped to
    gate_alpha: float = GATE_ALPHA

    def __init__(self, options: Any, build_encoder: Callable[[InputSpec], nn.Module], samples: int, shape: InputSpec):
        super().__init__()
        self.options = options
        if self.uses_texts and self.one_embedding(options) and shape.text_width != shape.embedding:
            widths = f"images have {shape.embedding} dimensions and texts {shape.text_width}"
            remedy = "give --projector linear, or another --target"
            raise UserError(f"{type(self).__name__} compares one embedding with both, and {widths}; {remedy}")
        self.encoder = build_encoder(shape)
        self.fusion: Fusion | None = None  # of targets of several levels or layers, trained with the method
        self.image_map: Projector | None = None  # of the features of images; None leaves them as they are
        self.text_map: Projector | None = None
        self.texts_share_map = False  # that of images
        self.learnt_blur: LearntBlur | None = None  # takes the place of the method's own levels, and is trained with it
        self.vision: TunedVision | None = None  # an image encoder that is trained with the method
        self.epoch, self.epochs = 0, 1  # the current one, from 0, and how many there are

    @staticmethod
    def one_embedding(options: Any) -> bool:
        """Return whether a recording has the same embedding for images and for texts."""
        return True

    @staticmethod
    def trains_texts(options: Any) -> bool:
        """Return whether the loss aligns recordings with texts, of a method that reads texts."""
        return True

    def setup(self, full_batch: Callable[[], Batch]) -> None:
        """Prepare for training; called once. `full_batch` returns one batch of the whole training set."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters to train, in groups of the optimiser."""
        return [{"params": list(self.parameters())}]

    def start_epoch(self, optimiser: Optimizer) -> None:
        """Prepare for `self.epoch`, before its first batch; what changes in the optimiser is saved with its state."""

    def training_levels(self) -> list[Level]:
        """Return every blur level that `blur` may return."""
        return [SHARP]

    def gallery_levels(self) -> list[Level]:
        """Return the blur levels of the images to retrieve."""
        return [SHARP]

    def retrieval_levels(self) -> list[Level]:
        """Return the blur levels of the images to retrieve: the learnt one, else `gallery_levels`."""
        return self.gallery_levels() if self.learnt_blur is None else [self.learnt_blur.level()]

    def gallery_feature_levels(self) -> list[Level]:
        """Return the blur levels whose features retrieval needs: the gallery's, then those fused with each of them."""
        return [*self.retrieval_levels(), *(self.fusion.levels if self.fusion is not None else [])]

    def blur(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return gain and kernel size (B,) of the next blur of training samples (B,)."""
        return torch.full(samples.shape, SHARP.gain), torch.full(samples.shape, SHARP.kernel_size)

    def next_blur(self, samples: Tensor, subjects: Tensor) -> tuple[Tensor, ...]:
        """Return what `Views` take: gain and kernel size (B,), and sigma (B,) if the blur is learnt, with a graph."""
        if self.learnt_blur is None:
            return self.blur(samples)
        gain, sigma = self.learnt_blur(samples, subjects)
        return gain, torch.full_like(samples, self.learnt_blur.kernel_size), sigma

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch; in training mode, update per-sample state."""

    def embed(self, recordings: Tensor, subjects: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return unit-norm embeddings (B, D) of recordings, to compare with images and with texts."""
        brain = normalize(encode(self.encoder, recordings, subjects), dim=-1)
        return brain, brain

    def embed_images(self, features: Tensor) -> Tensor:
        """Return embeddings of images from their features (levels, M, D)."""
        return features

    def embed_texts(self, features: Tensor) -> Tensor:
        """Return embeddings of texts from their features (M, D)."""
        return features

    def query_embeddings(self, recordings: Tensor, subjects: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return embeddings of test recordings (N, channels, time), to compare with those of images and of texts."""
        levels = len(self.retrieval_levels())
        brain_image, brain_text = self.embed(recordings, subjects)
        brain_text = brain_text if self.compares_texts else brain_text.new_zeros(len(brain_text), 1)
        return brain_image.repeat(1, levels) / math.sqrt(levels), brain_text

    def image_targets(self, views: Sequence[Tensor]) -> Tensor:
        """Return what recordings are aligned with (B, D).

        Args:
            views: features (B, sum of widths) of images at a level, then at each level of `fusion`.
        """
        features = views[0] if self.fusion is None else self.fusion(views)
        return features if self.image_map is None else self.image_map(features)

    def text_targets(self, features: Tensor) -> Tensor:
        """Return what recordings are aligned with (B, D), from features of texts (B, E)."""
        text_map = self.image_map if self.texts_share_map else self.text_map
        return features if text_map is None else text_map(features)

    def gallery_targets(self, features: Tensor) -> Tensor:
        """Return targets (gallery levels, M, D) of images, from features at `gallery_feature_levels`."""
        own = len(self.retrieval_levels())
        return torch.stack([self.image_targets([view, *features[own:]]) for view in features[:own]])

    def image_embeddings(self, features: Tensor) -> Tensor:
        """Return embeddings of images from features at `gallery_feature_levels`: the levels side by side, unit-norm."""
        levels = self.embed_images(self.gallery_targets(features))
        return levels.transpose(0, 1).flatten(1) / math.sqrt(len(levels))

    def text_embeddings(self, features: Tensor) -> Tensor:
        """Return embeddings of texts from features (M, E); zeros (M, 1) if recordings are not compared with texts."""
        if not self.compares_texts:
            return features.new_zeros(len(features), 1)
        return self.embed_texts(self.text_targets(features))

    def retrieval_embeddings(
        self, recordings: Tensor, images: Tensor, texts: Tensor, subjects: Tensor | None = None
    ) -> Embeddings:
        """Return the embeddings that retrieval compares.

        Args:
            recordings: (N, channels, time), of the test set.
            images: features (levels, M, D) at `gallery_feature_levels`.
            texts: features (M, D).
            subjects: (N,), see Batch.
        """
        brain_image, brain_text = self.query_embeddings(recordings, subjects)
        return Embeddings(brain_image, self.image_embeddings(images), brain_text, self.text_embeddings(texts))


@dataclass(frozen=True)
class LogitOptions:
    """Options of the logits that a contrastive loss compares."""

    unit_norm: bool = True
    """Normalise brain embeddings in the loss; retrieval always does."""
    scale: str = "exp"
    """Scale of the logits: exp(s), softplus(s) or, for identity, s, with s learnt from ln(1 / 0.07) on."""

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise UserError(unknown_name("scale", self.scale, SCALES))


SCALES: dict[str, Callable[[Tensor], Tensor]] = {"exp": torch.exp, "softplus": softplus, "identity": torch.clone}


class Contrastive(Method):
    """A method with logits that are products of embeddings times a learnable scale."""

    def __init__(self, options: Any, build_encoder: Callable[[InputSpec], nn.Module], samples: int, shape: InputSpec):
        super().__init__(options, build_encoder, samples, shape)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def scale_of_logits(self) -> Tensor:
        """Return the scale (), as LogitOptions say."""
        return SCALES[self.options.scale](self.logit_scale)

    def embed_for_loss(self, encoder: nn.Module, recordings: Tensor, subjects: Tensor | None) -> Tensor:
        """Return embeddings (B, D) of recordings by one of the brain encoders, as LogitOptions say."""
        brain = encode(encoder, recordings, subjects)
        return normalize(brain, dim=-1) if self.options.unit_norm else brain


def symmetric_contrastive(brain: Tensor, other: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of both cross-entropies of paired embeddings (B, D), and the logits (B, B)."""
    logits = scale * brain @ other.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half types lose the sum's digits
    of_all = logits.logsumexp(dim=1) + logits.logsumexp(dim=0)
    return of_all.mean() / 2 - logits.diagonal().mean(), logits


class OutlierGate(nn.Module):
    """Marks the samples of a batch outside the confidence interval mean -+ z(1 - alpha / 2) * std of similarities.

    With gamma, the mean and the unbiased standard deviation are those of similarities smoothed over epochs,
    s <- gamma * similarity + (1 - gamma) * s, starting at 1 (UBP); the similarity compared is always the raw one.
    """

    smoothed: Tensor  # (samples,), or () without gamma

    def __init__(self, samples: int, alpha: float, gamma: float | None):
        super().__init__()
        if not 0 < alpha < 1:
            raise UserError(f"alpha is {alpha}; it must be between 0 and 1")
        self.z = NormalDist().inv_cdf(1 - alpha / 2)
        self.gamma = gamma
        self.register_buffer("smoothed", torch.ones(samples if gamma is not None else 0))

    @torch.no_grad()
    def forward(self, samples: Tensor, similarity: Tensor) -> Tensor:
        """Return the outlier sign (B,) int64 of similarities (B,): -1 below the interval, +1 above it, 0 inside."""
        similarity, mean, reach = self._fit(samples, similarity)
        return (similarity > mean + reach).long() - (similarity < mean - reach).long()

    @torch.no_grad()
    def position(self, samples: Tensor, similarity: Tensor) -> Tensor:
        """Return positions (B,) of similarities (B,): 0 in the middle of the interval, -1 and 1 at its ends."""
        similarity, mean, reach = self._fit(samples, similarity)
        return ((similarity - mean) / reach.clamp(min=torch.finfo(torch.float32).tiny)).nan_to_num()

    def _fit(self, samples: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the similarities, and the middle and half the width of their interval."""
        similarity = fitted = similarity.detach().float()
        if self.gamma is not None:
            fitted = self.gamma * similarity + (1 - self.gamma) * self.smoothed[samples]
            self.smoothed[samples] = fitted
        if len(fitted) < 2:  # no spread
            return similarity, similarity, torch.zeros_like(similarity)
        return similarity, fitted.mean(), self.z * fitted.std()
