"""MCDB: modal consistency with dynamic balance (arXiv 2509.03433). A reconstruction without the full text.

From the paper: frozen features of images and texts, and the brain embedding, each pass a residual bottleneck into a
shared space. The loss is a fifth of the four cross-entropies brain-image, image-brain, brain-text and text-brain, plus
a cosine term. Balance: with a modality's share s of a batch, rho = s / mean of the others', and the gradient of a
dominating modality (rho > 1) is scaled by 1 - tanh(a * rho). Perturbation: Gaussian noise with the scaled gradient's
standard deviation, times a factor that decays over training, is added to it.

Presets. `corrected`: s is the mean softmax probability of the modality's true pairs, and the cosine term weighs a
fifth, as each cross-entropy does. `paper`: s is the size of the modality's gradient, as the abstract says, and the
cosine term weighs 1, as a public review gives the loss.

Our choices: the shape of the adapters; the cosine term, 1 - cos of brain with image and with text, averaged; balancing
the gradients of the adapters; the gradient whose size counts, that of the adapted embeddings; a, the factor and its
linear decay.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bvsa_core.encoders import InputSpec, encode
from bvsa_core.errors import UserError, unknown_name
from bvsa_core.methods.base import Batch, Contrastive, Preset, symmetric_contrastive

MODALITIES = ("brain", "image", "text")
SHARES = ("probability", "gradient")


@dataclass(frozen=True)
class MCDBOptions:
    """Options of MCDB."""

    bottleneck: int = 4
    """Width of an adapter divided by the width of its middle."""
    cosine: float = 0.2
    """Weight of the cosine term."""
    share: str = "probability"
    """A modality's share: the mean softmax probability of its true pairs, or the size of its gradient."""
    balance: float = 0.5
    """a of the balance; 0 leaves a dominating modality its gradient."""
    noise: float = 0.1
    """Initial standard deviation of the perturbation, relative to the gradient's; 0 is none."""

    def __post_init__(self) -> None:
        if self.share not in SHARES:
            raise UserError(unknown_name("share", self.share, SHARES))


class Adapter(nn.Module):
    """x + bottleneck(x), to unit norm: (..., D) to (..., D). It starts as the identity."""

    def __init__(self, width: int, bottleneck: int):
        super().__init__()
        middle = max(1, width // bottleneck)
        last = nn.Linear(middle, width)
        self.branch = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, middle), nn.GELU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return adapted features."""
        return normalize(x + self.branch(x), dim=-1)


class MCDB(Contrastive):
    """No blur; an adapter a modality, whose gradients are balanced and perturbed."""

    Options = MCDBOptions
    PRESETS = {"corrected": Preset(), "paper": Preset({"share": "gradient", "cosine": 1.0})}
    TABLE_NOTE = "reconstruction"
    DEVIATIONS = (
        "reconstructed without the paper's full text: the share by gradient is from its abstract, the weight 1 of the "
        "cosine term from a public review",
    )
    factors: Tensor  # (modalities,)

    def __init__(self, options: MCDBOptions, build_encoder, samples: int, shape: InputSpec):
        super().__init__(options, build_encoder, samples, shape)
        self.adapters = nn.ModuleDict({name: Adapter(shape.embedding, options.bottleneck) for name in MODALITIES})
        self.register_buffer("factors", torch.ones(len(MODALITIES)), persistent=False)  # of this batch's gradients
        for number, name in enumerate(MODALITIES):
            for parameter in self.adapters[name].parameters():
                parameter.register_hook(lambda gradient, number=number: self._modulate(gradient, number))

    def embed(self, recordings: Tensor, subjects: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return adapted embeddings (B, D) of recordings, twice."""
        brain = self.adapters["brain"](normalize(encode(self.encoder, recordings, subjects), dim=-1))
        return brain, brain

    def embed_images(self, features: Tensor) -> Tensor:
        """Return adapted features of images."""
        return self.adapters["image"](features)

    def embed_texts(self, features: Tensor) -> Tensor:
        """Return adapted features of texts."""
        return self.adapters["text"](features)

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        brain, _ = self.embed(batch.recordings, batch.subjects)
        image, text = self.embed_images(batch.images), self.embed_texts(batch.texts)
        scale = self.logit_scale.exp()
        image_loss, brain_image = symmetric_contrastive(brain, image, scale)
        text_loss, brain_text = symmetric_contrastive(brain, text, scale)
        alignment = 1 - ((brain * image).sum(-1) + (brain * text).sum(-1)).mean() / 2
        loss = 2 * (image_loss + text_loss) / 5 + self.options.cosine * alignment
        if self.training:
            if self.options.share == "gradient":
                gradients = torch.autograd.grad(loss, [brain, image, text], retain_graph=True)
                shares = torch.stack([gradient.norm() for gradient in gradients])
            else:
                shares = true_pair_shares(brain_image, brain_text)
            self.factors.copy_(self.balance(shares))
        return loss

    def balance(self, shares: Tensor) -> Tensor:
        """Return factors (3,) for the gradients of brain, image and text from their shares."""
        rho = shares / ((shares.sum() - shares) / 2)
        return torch.where(rho > 1, 1 - torch.tanh(self.options.balance * rho), 1.0)

    def _modulate(self, gradient: Tensor, modality: int) -> Tensor:
        """Balance and perturb the gradient of an adapter's parameter."""
        gradient = gradient * self.factors[modality]
        strength = self.options.noise * (1 - self.epoch / self.epochs)
        return gradient + strength * gradient.std(correction=0) * torch.randn_like(gradient)


@torch.no_grad()
def true_pair_shares(brain_image: Tensor, brain_text: Tensor) -> Tensor:
    """Return the shares (3,) of brain, image and text by probability, from logits (B, B) with brains in rows."""
    image_share, text_share = true_pair_probability(brain_image.T), true_pair_probability(brain_text.T)
    brain_share = (true_pair_probability(brain_image) + true_pair_probability(brain_text)) / 2
    return torch.stack([brain_share, image_share, text_share])


def true_pair_probability(logits: Tensor) -> Tensor:
    """Return the mean softmax probability of the diagonal of (B, B) logits, over rows."""
    return logits.float().softmax(dim=1).diagonal().mean()


METHOD = MCDB
