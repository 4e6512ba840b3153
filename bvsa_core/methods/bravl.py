"""BraVL: a variational autoencoder of brain, vision and language (Du et al., TPAMI 2023). It is generative.

Each modality m has an encoder q(z | x_m), a Gaussian, and a decoder p(x_m | z), a Laplacian. The joint posterior is the
mixture, over all seven subsets of modalities, of the product of their encoders. The loss is

    -ELBO - intra * sum_m log Q_m(z | decoded x_m) - inter * (ELBO - mean CUBO of negatives)

with ELBO = sum_m log p(x_m | z) - weight * KL(posterior, N(0, I)); the weight rises by `annealing` an epoch up to 1.
The second term is a lower bound of the mutual information of a modality and z, the third of that between modalities: it
lowers the chi upper bound (CUBO) of samples in which some modalities come from other samples.

At retrieval an RBF support vector classifier is fitted on the latents of the novel images with their texts, one class
an image, and its decision scores for the latents of recordings rank the images. A score therefore depends on the whole
gallery, though on no other recording: tables note "fitted on gallery".

Images enter as their first principal components; images, texts and recordings have unit variance over the training set.
The published encoder of recordings is a perceptron of the same hidden width; here it is any encoder. The networks Q
learn in the same step as the rest, where the released code alternates, and one of the six kinds of negatives is drawn
for each batch, where the code takes the mean of all six.
"""

import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor, nn

from bvsa_core.encoders import InputSpec, encode
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Batch, Method
from bvsa_core.retrieval.scoring import Embeddings

BRAIN, IMAGE, TEXT = MODALITIES = range(3)
SUBSETS = [subset for size in (1, 2, 3) for subset in combinations(MODALITIES, size)]


@dataclass(frozen=True)
class BraVLOptions:
    """Options of BraVL."""

    hidden: int = 256
    """Width of the hidden layers."""
    latent: int = 32
    """Dimensions of the latent space."""
    components: int = 100
    """Principal components of the features of images."""
    scale: float = 0.75
    """Scale of the Laplacians, in standard deviations of the modality."""
    annealing: float = 0.01
    """Increase of the weight of the KL divergence per epoch, from 0 to 1."""
    intra: float = 0.001
    """Weight of the mutual information of each modality with the latents."""
    inter: float = 0.001
    """Weight of the mutual information between modalities."""
    draws: int = 30
    """Number of latents drawn for the bound of a negative."""
    gamma: float = 1e-3
    """gamma of the classifier's kernel exp(-gamma * distance^2)."""
    cost: float = 1.0
    """C of the classifier."""


class BraVL(Method):
    """Three encoders, three decoders and three networks Q; no blur, no per-sample state."""

    Options = BraVLOptions
    TABLE_NOTE = "fitted on gallery"
    transductive_classifier = True
    TRAINING = {
        "optimiser": "adam",
        "lr": 1e-4,
        "weight_decay": 0.0,
        "batch_size": 1024,
        "epochs": 100,
        "window": (0.07, 0.39),  # samples 27:60 at 100 Hz from -0.2 s
    }
    image_mean: Tensor
    components: Tensor  # (width of a feature, principal components)
    text_mean: Tensor
    scales: Tensor  # (modalities,) standard deviations

    def __init__(self, options: BraVLOptions, build_encoder, samples: int, shape: InputSpec):
        super().__init__(options, build_encoder, samples, replace(shape, embedding=options.hidden))
        width, hidden = shape.embedding, options.hidden
        components = min(options.components, width)
        widths = (shape.channels * shape.time, components, width)
        self.bodies = nn.ModuleList(nn.Sequential(nn.Linear(each, hidden), nn.ReLU()) for each in widths[IMAGE:])
        self.heads = nn.ModuleList(nn.Linear(hidden, 2 * options.latent) for _ in widths)
        self.decoders = nn.ModuleList(_perceptron(options.latent, hidden, each) for each in widths)
        self.estimators = nn.ModuleList(_perceptron(each, hidden, 2 * options.latent) for each in widths)
        self.register_buffer("image_mean", torch.zeros(width))
        self.register_buffer("components", torch.eye(width)[:, :components].contiguous())
        self.register_buffer("text_mean", torch.zeros(width))
        self.register_buffer("scales", torch.ones(len(widths)))

    @torch.no_grad()
    def setup(self, full_batch: Callable[[], Batch]) -> None:
        """Fit means, principal components and scales on the training set."""
        if importlib.util.find_spec("sklearn") is None:
            need = "method bravl classifies with scikit-learn, which is not installed"
            raise UserError(f"{need}; pip install 'fovblur[train]'")
        batch = full_batch()
        self.image_mean.copy_(batch.images.mean(0))
        self.text_mean.copy_(batch.texts.mean(0))
        centred = (batch.images - self.image_mean).double()
        _, axes = torch.linalg.eigh(centred.T @ centred)  # ascending
        self.components.copy_(axes.flip(1)[:, : self.components.shape[1]])
        unscaled = self.observed(batch.recordings, batch.images, batch.texts)
        self.scales.copy_(torch.stack([x.square().mean().sqrt().clamp(min=1e-6) for x in unscaled]))

    def observed(self, recordings: Tensor, images: Tensor, texts: Tensor) -> list[Tensor]:
        """Return the observation (B, width) of each modality, which is encoded and decoded."""
        views = (recordings.flatten(1), (images - self.image_mean) @ self.components, texts - self.text_mean)
        return [x / scale for x, scale in zip(views, self.scales)]

    def experts(self, x: list[Tensor], recordings: Tensor, subjects: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and log variance (3, B, latent) of the modalities' posteriors."""
        others = (body(each) for body, each in zip(self.bodies, x[IMAGE:]))
        hidden = [encode(self.encoder, recordings, subjects), *others]
        mean, log_variance = torch.stack([head(each) for head, each in zip(self.heads, hidden)]).chunk(2, dim=-1)
        return mean, log_variance

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        x = self.observed(batch.recordings, batch.images, batch.texts)
        mean, log_variance = self.experts(x, batch.recordings, batch.subjects)
        components = subset_products(mean, log_variance)
        divergence = torch.stack([divergence_from_prior(*component) for component in components]).mean()
        centre, spread = draw_components(components)
        z = centre + spread * torch.randn_like(spread)
        decoded = [decoder(z) for decoder in self.decoders]
        likelihood = sum(laplace(each, expected, self.options.scale).mean() for each, expected in zip(x, decoded))
        elbo = likelihood - min(1.0, self.options.annealing * self.epoch) * divergence
        estimates = [estimator(expected).chunk(2, dim=-1) for estimator, expected in zip(self.estimators, decoded)]
        intra = sum(gaussian(z, *estimate).mean() for estimate in estimates)
        loss = -elbo - self.options.intra * intra
        if self.options.inter and len(z) > 1:  # negatives take another sample
            loss = loss - self.options.inter * (elbo - self._bound_of_negatives(x, mean, log_variance))
        return loss

    def _bound_of_negatives(self, x: list[Tensor], mean: Tensor, log_variance: Tensor) -> Tensor:
        """Return the CUBO of log p(x) for samples with one or two modalities of another sample."""
        replaced = SUBSETS[int(torch.randint(6, ()))]
        x, mean, log_variance = list(x), mean.clone(), log_variance.clone()
        for modality, shift in zip(replaced, torch.randint(1, len(mean[0]), (len(replaced),)).tolist()):
            for parts in (x, mean, log_variance):
                parts[modality] = parts[modality].roll(shift, dims=0)
        centre, spread = draw_components(subset_products(mean, log_variance))
        z = centre + spread * torch.randn(self.options.draws, *spread.shape, device=spread.device, dtype=spread.dtype)
        weight = gaussian(z, torch.zeros_like(centre), torch.zeros_like(centre)) - gaussian(z, centre, 2 * spread.log())
        weight = weight + sum(laplace(each, decoder(z), self.options.scale) for each, decoder in zip(x, self.decoders))
        return (torch.logsumexp(2 * weight, dim=0) - math.log(self.options.draws)).mean() / 2

    def retrieval_embeddings(
        self, recordings: Tensor, images: Tensor, texts: Tensor, subjects: Tensor | None = None
    ) -> Embeddings:
        """Return embeddings whose products are the classifier's scores (N, M): scores and unit vectors."""
        gallery = self.observed(recordings[:0], self.fuse(images)[0], texts)
        networks = zip(self.heads[IMAGE:], self.bodies, gallery[IMAGE:])
        heads = [head(body(each)).chunk(2, dim=-1) for head, body, each in networks]
        latents, _ = product(*(torch.stack(each) for each in zip(*heads)))
        queries = self.heads[BRAIN](encode(self.encoder, recordings, subjects)).chunk(2, dim=-1)[0]
        scores = self._classify(latents, queries)
        axes = torch.eye(len(latents), device=scores.device)
        return Embeddings(scores, axes, scores.new_zeros(len(scores), 1), axes.new_zeros(len(axes), 1))

    def _classify(self, latents: Tensor, queries: Tensor) -> Tensor:
        """Return scores (N, M) of queries (N, latent) for a classifier of latents (M, latent)."""
        from sklearn.svm import SVC

        if len(latents) < 2:
            raise UserError("method bravl tells images apart, and the gallery has one; give it two or more")
        classifier = SVC(C=self.options.cost, kernel="rbf", gamma=self.options.gamma, decision_function_shape="ovr")
        with warnings.catch_warnings():  # "might be a regression"
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            classifier.fit(latents.detach().double().cpu().numpy(), range(len(latents)))
        scores = torch.from_numpy(classifier.decision_function(queries.detach().double().cpu().numpy()))
        scores = torch.stack([-scores, scores], dim=1) if scores.ndim == 1 else scores  # for two classes there is one
        return scores.float().to(queries.device)


def _perceptron(width: int, hidden: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))


def subset_products(mean: Tensor, log_variance: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return mean and log variance (B, latent) of the product of each subset of modalities (3, B, latent)."""
    return [product(mean[list(subset)], log_variance[list(subset)]) for subset in SUBSETS]


def product(mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log variance (B, latent) of the product of Gaussians (experts, B, latent)."""
    precision = (-log_variance).exp()
    total = precision.sum(0)
    return (precision * mean).sum(0) / total, -total.log()


def draw_components(components: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (B, latent) of one component for each sample, in turn."""
    mean, log_variance = (torch.stack(each) for each in zip(*components))
    samples = torch.arange(mean.shape[1])
    chosen = (samples + int(torch.randint(len(components), ()))) % len(components)
    return mean[chosen, samples], (log_variance[chosen, samples] / 2).exp()


def divergence_from_prior(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the mean KL divergence of Gaussians (B, latent) from N(0, I), in nats."""
    return (log_variance.exp() + mean.square() - 1 - log_variance).sum(-1).mean() / 2


def laplace(x: Tensor, location: Tensor, scale: float) -> Tensor:
    """Return the log density at x (..., width), summed over the width."""
    return -((x - location).abs() / scale + math.log(2 * scale)).sum(-1)


def gaussian(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the log density at x (..., width), summed over the width."""
    return -((x - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)).sum(-1) / 2


METHOD = BraVL
