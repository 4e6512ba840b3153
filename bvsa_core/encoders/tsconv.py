"""TSConv: temporal, then spatial convolution (NICE, ICLR 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import conv1d, linear

from bvsa_core.encoders import InputSpec
from bvsa_core.encoders._convolutions import steps_after
from bvsa_core.encoders._projection import ResidualProjection

FILTERS, KERNEL, POOL, STRIDE = 40, 25, 51, 5


@dataclass(frozen=True)
class Options:
    """Options of TSConv."""

    dropout: float = 0.5


class TSConv(nn.Sequential):
    """The published layers. The first two, a convolution and the mean over its results, are linear: they are taken as one."""

    def forward(self, recordings: Tensor) -> Tensor:
        convolution, later = self[1], list(self)[3:]
        assert isinstance(convolution, nn.Conv2d)
        kernel = pooled(convolution.weight.flatten(1), POOL)
        windows = recordings.unfold(-1, kernel.shape[1], STRIDE)  # (B, channels, steps, taps)
        maps = linear(windows, kernel, convolution.bias).permute(
            0, 3, 1, 2
        )  # (B, filters, channels, steps), filters innermost
        for layer in later:
            maps = layer(maps)
        return maps


def pooled(kernel: Tensor, width: int) -> Tensor:
    """Kernels (filters, taps + width - 1) that give the mean over `width` results of kernels (filters, taps)."""
    return conv1d(kernel[:, None], kernel.new_full((1, 1, width), 1 / width), padding=width - 1)[:, 0]


def build(shape: InputSpec, options: Options) -> nn.Module:
    steps = steps_after(shape.time, (KERNEL, 1), (POOL, STRIDE))
    return TSConv(
        nn.Unflatten(1, (1, shape.channels)),  # (B, 1, channels, time)
        nn.Conv2d(1, FILTERS, (1, KERNEL)),
        nn.AvgPool2d((1, POOL), (1, STRIDE)),
        nn.BatchNorm2d(FILTERS),
        nn.ELU(),
        nn.Conv2d(FILTERS, FILTERS, (shape.channels, 1)),
        nn.BatchNorm2d(FILTERS),
        nn.ELU(),
        nn.Dropout(options.dropout),
        nn.Conv2d(FILTERS, FILTERS, (1, 1)),  # (B, filters, 1, steps)
        nn.Flatten(),
        *ResidualProjection(FILTERS * steps, shape.embedding, options.dropout),
    )
