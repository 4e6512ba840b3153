"""Augmentation of training recordings: whole batches at once, on their device.

braindecode.augmentation draws its random numbers by NumPy, on the CPU, from a stream that a resumed run would have to
restore; here the draws of a batch depend on seed, epoch and batch alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from bvsa_core.data.split import Split
from bvsa_core.errors import UserError

SMOOTHED, SMOOTHING_WIDTH = 0.3, 5  # probability for each channel, and time points averaged, as SAMGA's code has them
DROPPED = 0.1  # probability for each channel
NOISE = 0.1  # standard deviation relative to that of the recording
MAX_SHIFT = 5  # time points


def shift(recordings: Tensor) -> Tensor:
    """Shift each recording (B, channels, time) by up to MAX_SHIFT time points; what leaves enters at the other end."""
    batch, _, time = recordings.shape
    steps = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (batch, 1, 1), device=recordings.device)
    source = (torch.arange(time, device=recordings.device) - steps) % time
    return recordings.gather(2, source.expand_as(recordings))


def smooth(recordings: Tensor) -> Tensor:
    """Replace random channels of recordings (B, channels, time) by their moving average; the ends are repeated."""
    margin = SMOOTHING_WIDTH // 2
    averaged = avg_pool1d(pad(recordings, (margin, margin), mode="replicate"), SMOOTHING_WIDTH, stride=1)
    return torch.where(_some_channels(recordings, SMOOTHED), averaged, recordings)


def noise(recordings: Tensor) -> Tensor:
    """Add Gaussian noise to recordings (B, channels, time), NOISE of the standard deviation of each."""
    return recordings + NOISE * recordings.std((1, 2), keepdim=True) * torch.randn_like(recordings)


def channel_dropout(recordings: Tensor) -> Tensor:
    """Set random channels of recordings (B, channels, time) to zero."""
    return recordings.masked_fill(_some_channels(recordings, DROPPED), 0.0)


def _some_channels(recordings: Tensor, probability: float) -> Tensor:
    return torch.rand_like(recordings[..., :1]) < probability


MIXUP = "mixup"
_TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "shift": shift, "smooth": smooth, "noise": noise, "channel_dropout": channel_dropout,
}  # fmt: skip
NAMES = (MIXUP, *_TRANSFORMS)  # in the order in which they are applied


class Augmentation:
    """Augments recordings of training samples. Their images, texts and subjects stay.

    Mixup moves a recording towards another one of the same image: x + (1 - c) (y - x), with c from Beta(alpha, alpha).

    Args:
        split: the samples to train on.
        names: of augmentations, some of NAMES.
        seed: of the run.
        mixup_alpha: parameter of the law of mixup's coefficient.
        other_subjects: mix with recordings of other subjects only.

    Raises:
        UserError: mixup has nothing to mix.
    """

    def __init__(
        self, split: Split, names: list[str], seed: int, mixup_alpha: float = 1.0, other_subjects: bool = False
    ):
        self.recordings, self.seed, self.mixup_alpha = split.recordings, seed, mixup_alpha
        self.transforms = [transform for name, transform in _TRANSFORMS.items() if name in names]
        self.partners = Partners(split, other_subjects) if MIXUP in names else None

    def __call__(self, samples: Tensor, epoch: int, batch: int) -> Tensor:
        """Return augmented recordings (B, channels, time) of samples (B,), which make up a batch of an epoch."""
        device = self.recordings.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # training draws the same without
            torch.manual_seed(int(np.random.SeedSequence([self.seed, epoch, batch]).generate_state(1, np.uint64)[0]))
            recordings = self.recordings[samples]
            if self.partners is not None:
                partners = self.recordings[self.partners.draw(samples)]
                alpha = torch.full((len(samples), 1, 1), self.mixup_alpha, device=device)
                recordings = partners.lerp(recordings, torch.distributions.Beta(alpha, alpha).sample())
            for transform in self.transforms:
                recordings = transform(recordings)
        return recordings

    def whole(self, batch_size: int) -> Tensor:
        """Return the recordings (samples, channels, time) of all samples, augmented once."""
        augmented = torch.empty_like(self.recordings)
        for number, samples in enumerate(torch.arange(len(augmented), device=augmented.device).split(batch_size)):
            augmented[samples] = self(samples, 0, number)
        return augmented


class Partners:
    """Samples that show the same image as a sample: all others, or those of other subjects."""

    def __init__(self, split: Split, other_subjects: bool):
        samples = torch.arange(len(split), device=split.image_of.device)
        own = split.subject_of if other_subjects else samples
        key = split.image_of * (int(own.max()) + 1) + own  # of an image and the samples that do not mix
        self.order = key.argsort(stable=True)
        images, keys = split.image_of[self.order], key[self.order]
        first, end = (torch.searchsorted(images, split.image_of, right=right) for right in (False, True))
        own_first, own_end = (torch.searchsorted(keys, key, right=right) for right in (False, True))
        self.first, self.size = first, end - first  # of the samples of each sample's image, in `order`
        self.own_end, self.count = own_end, self.size - (own_end - own_first)
        if not self.count.any():
            several = "recordings of several subjects" if other_subjects else "several recordings"
            remedy = "leave it out" if other_subjects else "leave it out, or keep single trials with --average false"
            raise UserError(f"augment has mixup, and no training image has {several} to mix; {remedy}")

    def draw(self, samples: Tensor) -> Tensor:
        """Return a random partner (B,) of each of samples (B,); one without any is its own."""
        count, size, first = self.count[samples], self.size[samples], self.first[samples]
        step = (torch.rand(len(samples), device=samples.device, dtype=torch.float64) * count).long()
        partner = self.order[first + (self.own_end[samples] - first + step) % size]
        return torch.where(count > 0, partner, samples)
