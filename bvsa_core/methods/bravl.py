"""BraVL: a variational autoencoder of brain, vision and language (Du et al., TPAMI 2023). It is generative.

Each modality m has an encoder q(z | x_m), a Gaussian, and a decoder p(x_m | z), a Laplacian. The joint posterior is the
mixture, over all seven subsets of modalities, of the product of their encoders. The loss is

    -ELBO - intra * sum_m log Q_m(z | decoded x_m) - inter * (ELBO - mean CUBO of negatives)

with ELBO = sum_m log p(x_m | z) - weight * KL(posterior, N(0, I)); the weight rises by `annealing` an epoch up to 1.
The second term is a lower bound of the mutual information of a modality and z, the third of that between modalities: it
lowers the chi upper bound (CUBO) of samples in which some modalities come from other samples.

At retrieval an RBF support vector classifier is fitted on the latents of the novel images with their texts, one class
an image, and its decision scores for the latents of recordings rank the images. A score therefore depends on the whole
gallery: tables note "fitted on gallery".

Images enter as their first principal components; images, texts and recordings have unit variance over the training set.
The encoder of recordings is any encoder. The networks Q learn the same loss as the rest, and one of the six kinds of
negatives is drawn for each batch.

The preset `code` follows the released code, each step of which is an option: before the training samples of every epoch
it trains on the features of the test images and their texts, without recordings, which every table says; Normal
likelihoods; two hidden layers, also of the encoder of recordings, a perceptron; networks Q that are twice as wide, have
a fixed deviation and a loss of their own; N(0, I) as one more expert of the product of all three; all six kinds of
negatives; fixed scales of the inputs; and a classifier of latents drawn from the mixture, by its probabilities.
"""

import importlib.util
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bvsa_core.encoders import InputSpec, encode
from bvsa_core.encoders._shared import hidden_layers
from bvsa_core.errors import UserError, unknown_name
from bvsa_core.methods.base import Batch, Method, Preset
from bvsa_core.retrieval.scoring import Embeddings

BRAIN, IMAGE, TEXT = MODALITIES = range(3)
LIKELIHOODS = ("laplace", "normal")


@dataclass(frozen=True)
class BraVLOptions:
    """Options of BraVL."""

    hidden: int = 256
    """Width of the hidden layers."""
    layers: int = 1
    """Number of hidden layers of the encoders of images and texts, and of all decoders."""
    latent: int = 32
    """Dimensions of the latent space."""
    components: int = 100
    """Principal components of the features of images."""
    likelihood: str = "laplace"
    """laplace or normal: the decoded distribution."""
    scale: float = 0.75
    """Scale, or standard deviation, of the decoded distribution."""
    input_scales: tuple[float, float, float] | None = None
    """Factors of recordings, principal components and texts; default: those to unit variance, of centred texts."""
    prior_expert: bool = False
    """Multiply N(0, I) into the product of all three encoders."""
    annealing: float = 0.01
    """Increase of the weight of the KL divergence per epoch, from 0 to 1."""
    intra: float = 0.001
    """Weight of the mutual information of each modality with the latents."""
    inter: float = 0.001
    """Weight of the mutual information between modalities."""
    draws: int = 30
    """Number of latents drawn for the bound of a negative."""
    all_negatives: bool = False
    """Take all kinds of negatives for each batch, rather than one."""
    estimator_hidden: int | None = None
    """Width of the hidden layer of the networks Q; default: hidden."""
    estimator_std: float | None = None
    """Standard deviation of the networks Q; default: learnt."""
    alternate: bool = False
    """Let the networks Q learn from the mutual information alone, and the rest not through them."""
    test_features: bool = False
    """Also train on the features of the test images and their texts: transductive, as every table then says."""
    latents: int = 0
    """Latents drawn for each novel image to fit the classifier, and one for each recording; 0 takes the means."""
    gamma: float = 1e-3
    """gamma of the classifier's kernel exp(-gamma * distance^2)."""
    cost: float = 1.0
    """C of the classifier."""

    def __post_init__(self) -> None:
        if self.likelihood not in LIKELIHOODS:
            raise UserError(unknown_name("likelihood", self.likelihood, LIKELIHOODS))
        for name, least in (("layers", 1), ("latents", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.input_scales is not None and not min(self.input_scales) > 0:
            raise UserError(f"input_scales are {self.input_scales}; they must be positive")


class BraVL(Method):
    """Three encoders, three decoders and three networks Q; no blur, no per-sample state."""

    Options = BraVLOptions
    TABLE_NOTE = "fitted on gallery"
    transductive_classifier = True
    learns_blur = False  # it is trained on components of features that setup computes once
    PRESETS = {
        "corrected": Preset(),
        "code": Preset(
            {
                "layers": 2,
                "likelihood": "normal",
                "input_scales": (2.0, 50.0, 2.0),
                "prior_expert": True,
                "all_negatives": True,
                "estimator_hidden": 512,
                "estimator_std": 0.75,
                "alternate": True,
                "test_features": True,
                "latents": 80,
            },
            {"encoder": "perceptron", "epochs": 500},
        ),
    }
    DEVIATIONS = (
        "images and texts are embedded by the run's image encoder; the released code takes CORnet-S for images",
        "test recordings are averaged over repetitions; the released code classifies every recording of its test file",
        "the networks Q and the rest take a step together; in the released code Q goes first",
        "negatives are rotations of a batch, and the mixture's components take turns; the released code shuffles, and "
        "gives each component a block of the batch",
        "one ranking gives Top-1 and Top-5, under code the classifier's answer before its probabilities; the released "
        "code takes Top-5 from the probabilities alone",
        "float32, and every sample of an epoch; the released code takes float64, and drops the last, smaller batch",
    )
    TRAINING = {
        "optimiser": "adam",
        "lr": 1e-4,
        "weight_decay": 0.0,
        "batch_size": 1024,
        "epochs": 100,
        "window": (0.07, 0.39),  # samples 27:60 at 100 Hz from -0.2 s
    }
    takes_projectors = False
    image_mean: Tensor
    components: Tensor  # (width of a feature, principal components)
    text_mean: Tensor
    scales: Tensor  # (modalities,) standard deviations

    def __init__(self, options: BraVLOptions, build_encoder, samples: int, shape: InputSpec):
        super().__init__(options, build_encoder, samples, replace(shape, embedding=options.hidden))
        width, hidden = shape.embedding, [options.hidden] * options.layers
        components = min(options.components, width)
        widths = (shape.channels * shape.time, components, shape.text_width)
        estimate = options.estimator_hidden or options.hidden, options.latent * (1 + (options.estimator_std is None))
        self.bodies = nn.ModuleList(nn.Sequential(*hidden_layers(each, *hidden)) for each in widths[IMAGE:])
        self.heads = nn.ModuleList(nn.Linear(options.hidden, 2 * options.latent) for _ in widths)
        self.decoders = nn.ModuleList(_perceptron(options.latent, *hidden, each) for each in widths)
        self.estimators = nn.ModuleList(_perceptron(each, *estimate) for each in widths)
        self._fitted: tuple[Tensor, Any] | None = None
        self.register_buffer("image_mean", torch.zeros(width))
        self.register_buffer("components", torch.eye(width)[:, :components].contiguous())
        self.register_buffer("text_mean", torch.zeros(shape.text_width))
        self.register_buffer("scales", torch.ones(len(widths)))

    @staticmethod
    def one_embedding(options: BraVLOptions) -> bool:
        """Return that no embedding is compared: every modality has its own encoder."""
        return False

    @torch.no_grad()
    def setup(self, full_batch: Callable[[], Batch]) -> None:
        """Fit means, principal components and scales on the training set."""
        if importlib.util.find_spec("sklearn") is None:
            need = "method bravl classifies with scikit-learn, which is not installed"
            raise UserError(f"{need}; pip install 'fovblur[train]'")
        if self.options.latents:
            from sklearn.svm import SVC

            if "probability" not in inspect.signature(SVC).parameters:
                raise UserError("method bravl classifies by SVC(probability=True); pip install 'scikit-learn<1.11'")
        batch = full_batch()
        self.image_mean.copy_(batch.images.mean(0))
        if self.options.input_scales is None:
            self.text_mean.copy_(batch.texts.mean(0))
        centred = (batch.images - self.image_mean).double()
        _, axes = torch.linalg.eigh(centred.T @ centred)  # ascending
        self.components.copy_(axes.flip(1)[:, : self.components.shape[1]])
        if self.options.input_scales is not None:
            self.scales.copy_(1 / torch.tensor(self.options.input_scales))
            return
        unscaled = self.observed(batch.recordings, batch.images, batch.texts)
        self.scales.copy_(torch.stack([x.square().mean().sqrt().clamp(min=1e-6) for x in unscaled]))

    def observed(self, recordings: Tensor, images: Tensor, texts: Tensor) -> list[Tensor]:
        """Return the observation (B, width) of each modality, which is encoded and decoded."""
        views = (recordings.flatten(1), (images - self.image_mean) @ self.components, texts - self.text_mean)
        return [x / scale for x, scale in zip(views, self.scales)]

    def experts(self, x: list[Tensor], recordings: Tensor, subjects: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and log variance (modalities, B, latent) of the posteriors of x: all of them, or the last two."""
        hidden = [body(each) for body, each in zip(self.bodies, x[-2:])]
        hidden = [encode(self.encoder, recordings, subjects), *hidden] if len(x) == 3 else hidden
        heads = self.heads[-len(x) :]
        mean, log_variance = torch.stack([head(each) for head, each in zip(heads, hidden)]).chunk(2, dim=-1)
        return mean, log_variance

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch; without recordings, of its images and texts."""
        x = self.observed(batch.recordings, batch.images, batch.texts)
        x = x if len(batch.recordings) else x[IMAGE:]
        mean, log_variance = self.experts(x, batch.recordings, batch.subjects)
        components = self.components_of_mixture(mean, log_variance)
        divergence = torch.stack([divergence_from_prior(*component) for component in components]).mean()
        centre, spread = draw_components(components)
        z = centre + spread * torch.randn_like(spread)
        decoded = [decoder(z) for decoder in self.decoders[-len(x) :]]
        likelihood = sum(self.log_likelihood(each, expected).mean() for each, expected in zip(x, decoded))
        elbo = likelihood - min(1.0, self.options.annealing * self.epoch) * divergence
        loss = -elbo - self.options.intra * self._information(z, decoded, frozen=self.options.alternate)
        if self.options.alternate:
            own = self._information(z.detach(), [each.detach() for each in decoded])
            loss = loss - (own - own.detach())  # for its gradient alone
        if self.options.inter and len(z) > 1:  # negatives take another sample
            loss = loss - self.options.inter * (elbo - self._bound_of_negatives(x, mean, log_variance))
        return loss

    def components_of_mixture(self, mean: Tensor, log_variance: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return mean and log variance (B, latent) of the product of each subset of modalities (m, B, latent)."""
        products = [product(mean[list(subset)], log_variance[list(subset)]) for subset in subsets(len(mean))]
        if self.options.prior_expert and len(mean) == len(MODALITIES):
            prior = torch.zeros_like(mean[:1])
            products[-1] = product(torch.cat([mean, prior]), torch.cat([log_variance, prior]))
        return products

    def log_likelihood(self, x: Tensor, decoded: Tensor) -> Tensor:
        """Return log p(x | z), summed over the width of x."""
        if self.options.likelihood == "normal":
            return gaussian(x, decoded, torch.full_like(decoded, 2 * math.log(self.options.scale)))
        return laplace(x, decoded, self.options.scale)

    def _information(self, z: Tensor, decoded: list[Tensor], frozen: bool = False) -> Tensor:
        """Return sum_m log Q_m(z | decoded x_m), the mean over samples; frozen networks Q get no gradient."""
        estimates = []
        for estimator, expected in zip(self.estimators[-len(decoded) :], decoded):
            parameters = {name: value.detach() if frozen else value for name, value in estimator.named_parameters()}
            estimate = functional_call(estimator, parameters, (expected,))
            if self.options.estimator_std is None:
                estimates.append(estimate.chunk(2, dim=-1))
            else:
                estimates.append((estimate, torch.full_like(estimate, 2 * math.log(self.options.estimator_std))))
        return torch.stack([gaussian(z, *estimate).mean() for estimate in estimates]).sum()

    def _bound_of_negatives(self, x: list[Tensor], mean: Tensor, log_variance: Tensor) -> Tensor:
        """Return the CUBO of log p(x) for samples with some, but not all, modalities of another sample."""
        kinds = subsets(len(x))[:-1]
        kinds = kinds if self.options.all_negatives else [kinds[int(torch.randint(len(kinds), ()))]]
        return torch.stack([self._bound(x, mean, log_variance, replaced) for replaced in kinds]).mean()

    def _bound(self, x: list[Tensor], mean: Tensor, log_variance: Tensor, replaced: tuple[int, ...]) -> Tensor:
        """Return the CUBO of log p(x) for samples whose modalities `replaced` are of another sample."""
        x, mean, log_variance = list(x), mean.clone(), log_variance.clone()
        for modality, shift in zip(replaced, torch.randint(1, len(mean[0]), (len(replaced),)).tolist()):
            for parts in (x, mean, log_variance):
                parts[modality] = parts[modality].roll(shift, dims=0)
        centre, spread = draw_components(self.components_of_mixture(mean, log_variance))
        z = centre + spread * torch.randn(self.options.draws, *spread.shape, device=spread.device, dtype=spread.dtype)
        weight = gaussian(z, torch.zeros_like(centre), torch.zeros_like(centre)) - gaussian(z, centre, 2 * spread.log())
        decoders = self.decoders[-len(x) :]
        weight = weight + sum(self.log_likelihood(each, decoder(z)) for each, decoder in zip(x, decoders))
        return (torch.logsumexp(2 * weight, dim=0) - math.log(self.options.draws)).mean() / 2

    def retrieval_embeddings(
        self, recordings: Tensor, images: Tensor, texts: Tensor, subjects: Tensor | None = None
    ) -> Embeddings:
        """Return embeddings whose products are the classifier's scores (N, M): scores and unit vectors."""
        gallery = self.observed(recordings[:0], self.gallery_targets(images)[0], texts)
        mean, log_variance = self.experts(gallery[IMAGE:], recordings, subjects)
        brain = self.heads[BRAIN](encode(self.encoder, recordings, subjects)).chunk(2, dim=-1)
        if len(texts) < 2:
            raise UserError("method bravl tells images apart, and the gallery has one; give it two or more")
        if self.options.latents:
            scores = self._classify_draws(self.components_of_mixture(mean, log_variance), *brain)
        else:
            latents, _ = product(mean, log_variance)
            scores = self._classify(latents, brain[0])
        axes = torch.eye(len(texts), device=scores.device)
        return Embeddings(scores, axes, scores.new_zeros(len(scores), 1), axes.new_zeros(len(axes), 1))

    def _classify(self, latents: Tensor, queries: Tensor) -> Tensor:
        """Return decision scores (N, M) of queries (N, latent) for a classifier of latents (M, latent)."""
        classifier = self._fit(latents, range(len(latents)), decision_function_shape="ovr")
        scores = torch.from_numpy(classifier.decision_function(_numpy(queries)))
        scores = torch.stack([-scores, scores], dim=1) if scores.ndim == 1 else scores  # for two classes there is one
        return scores.float().to(queries.device)

    def _classify_draws(self, components: list[tuple[Tensor, Tensor]], mean: Tensor, log_variance: Tensor) -> Tensor:
        """Return probabilities (N, M) of queries drawn from Gaussians (N, latent), plus 1 for the classifier's answer.

        The classifier is fitted on draws from the components (M, latent) of the mixture, which take turns.
        """
        generator = torch.Generator().manual_seed(0)

        def draw(centre: Tensor, log_variance: Tensor) -> Tensor:
            noise = torch.randn(centre.shape, generator=generator, dtype=centre.dtype).to(centre.device)
            return centre + (log_variance / 2).exp() * noise

        latents = torch.cat([draw(*components[turn % len(components)]) for turn in range(self.options.latents)])
        labels = list(range(len(components[0][0]))) * self.options.latents
        classifier = self._fit(latents, labels, probability=True, random_state=0)
        queries = _numpy(draw(mean, log_variance))
        scores = torch.from_numpy(classifier.predict_proba(queries))
        scores[torch.arange(len(scores)), torch.from_numpy(classifier.predict(queries))] += 1
        return scores.float().to(mean.device)

    def _fit(self, latents: Tensor, labels: Sequence[int], **kinds: Any) -> Any:
        """Return a support vector classifier fitted on latents (n, latent) and their labels; the last one is kept."""
        from sklearn.svm import SVC

        if self._fitted is None or not torch.equal(self._fitted[0], latents):
            classifier = SVC(C=self.options.cost, kernel="rbf", gamma=self.options.gamma, **kinds)
            with warnings.catch_warnings():
                # "might be a regression"; for the other, see setup
                warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
                warnings.filterwarnings("ignore", "The `probability` parameter", FutureWarning)
                classifier.fit(_numpy(latents), labels)
            self._fitted = latents, classifier
        return self._fitted[1]


def _numpy(latents: Tensor) -> np.ndarray:
    return latents.detach().double().cpu().numpy()


def _perceptron(*widths: int) -> nn.Module:
    """Return a perceptron whose last layer is linear."""
    return nn.Sequential(*hidden_layers(*widths[:-1]), nn.Linear(widths[-2], widths[-1]))


def subsets(modalities: int) -> list[tuple[int, ...]]:
    """Return the subsets of a number of modalities, by size; the last one is all."""
    return [subset for size in range(1, modalities + 1) for subset in combinations(range(modalities), size)]


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
