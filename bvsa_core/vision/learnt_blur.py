"""A blur that the loss's gradient adjusts through the image encoder, in place of a method's steps.

Gain and sigma of an image are learnt for each subject, or as a function of how similar recording and image were when
the sample was last seen: with z, that similarity in standard deviations from the mean of its batch, they are
sigmoid(a + b z) and sigma_max sigmoid(c + d z), with a, b, c and d learnt. No step can leave [0, 1] and [0, sigma_max].
All images share the kernel size of sigma_max, so that features change smoothly with sigma.
"""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

import fovblur
from bvsa_core.errors import UserError, unknown_name
from bvsa_core.vision.views import SHARP, Level

KINDS = ("subject", "similarity")  # what a blur is learnt for
KERNEL_SIZE = 57  # of methods without blur: the largest of UBP and BVSA
MEAN = "mean"  # name of the values that images to retrieve have
_Z = {"similarity -1 sd": -1.0, "mean similarity": 0.0, "similarity +1 sd": 1.0}  # where the function is reported
_MARGIN = 0.05  # of a range, between its ends and where training starts


class LearntValues(TypedDict):
    """A learnt blur."""

    gain: float
    sigma: float  # pixels


class LearntBlur(nn.Module):
    """Gain and sigma of training samples, learnt.

    Args:
        kind: one of KINDS.
        samples: number of training samples.
        subjects: number of training subjects.
        own_levels: blur levels of the method; the largest kernel size bounds sigma by OpenCV's rule.
        start: where training starts; SHARP, at which no gradient reaches sigma, stands for the middle of the ranges.
    """

    z: Tensor  # (samples,) similarity of recording and image, in standard deviations from the mean of its batch

    def __init__(self, kind: str, samples: int, subjects: int, own_levels: Sequence[Level], start: Level):
        super().__init__()
        if kind not in KINDS:
            raise UserError(unknown_name("learn_blur", kind, KINDS))
        self.kernel_size = window_of(own_levels)
        self.sigma_max = fovblur.sigma_from_kernel_size(self.kernel_size)
        sigma = fovblur.sigma_from_kernel_size(start.kernel_size) if start.sigma is None else start.sigma
        shares = torch.tensor([start.gain, sigma / self.sigma_max]).clamp(_MARGIN, 1 - _MARGIN)
        if start.kernel_size == SHARP.kernel_size:
            shares = torch.full((2,), 0.5)
        groups = subjects if kind == "subject" else 1
        self.kind = kind
        self.offset = nn.Parameter(shares.logit().repeat(groups, 1))  # (groups, 2), of gain and sigma
        if kind == "similarity":
            self.slope = nn.Parameter(torch.zeros(2))
        self.register_buffer("z", torch.zeros(samples if kind == "similarity" else 0))

    def forward(self, samples: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """Return gain and sigma (B,) of training samples (B,) of subjects (B,), with a graph."""
        return self._of_subjects(subjects) if self.kind == "subject" else self._at(self.z[samples])

    def _of_subjects(self, subjects: Tensor) -> tuple[Tensor, Tensor]:
        return self._bounded(self.offset[subjects])

    def _at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._bounded(self.offset + self.slope * z[:, None])

    def _bounded(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        shares = raw.nan_to_num().sigmoid()  # NaN after an infinite loss, which the end of the epoch reports
        return shares[:, 0], self.sigma_max * shares[:, 1]

    @torch.no_grad()
    def observe(self, samples: Tensor, similarity: Tensor) -> None:
        """Note the similarity (B,) of recordings and images of samples (B,), a batch; of kind similarity alone."""
        deviation = similarity.float() - similarity.float().mean()
        spread = deviation.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        self.z[samples] = (deviation / spread).nan_to_num()

    @torch.no_grad()
    def values(self, subjects: Sequence[str]) -> dict[str, LearntValues]:
        """Return the learnt blur by name: of every subject, or at some similarities, and the mean of `level`."""
        device, mean = self.offset.device, self.level()
        if self.kind == "subject":
            names, blurs = list(subjects), self._of_subjects(torch.arange(len(subjects), device=device))
        else:
            names, blurs = list(_Z), self._at(torch.tensor([*_Z.values()], device=device))
        gains, sigmas = ([*each.tolist(), of_mean] for each, of_mean in zip(blurs, (mean.gain, mean.sigma)))
        return {name: {"gain": g, "sigma": s} for name, g, s in zip([*names, MEAN], gains, sigmas)}

    @torch.no_grad()
    def level(self) -> Level:
        """Return the blur of images to retrieve, whose subject and similarity are unknown: the mean over both."""
        everyone = torch.arange(len(self.offset), device=self.offset.device)
        blurs = self._of_subjects(everyone) if self.kind == "subject" else self._at(self.z)
        gain, sigma = (each.mean().item() for each in blurs)
        return Level(self.kernel_size, gain, sigma)


def window_of(own_levels: Sequence[Level]) -> int:
    """Return the kernel size of a learnt blur: the largest of the method's levels."""
    largest = max(level.kernel_size for level in own_levels)
    return largest if largest > SHARP.kernel_size else KERNEL_SIZE
