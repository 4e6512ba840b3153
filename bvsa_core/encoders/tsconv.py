"""TSConv: temporal, then spatial convolution (NICE, ICLR 2024)."""

from torch import Tensor, nn
from torch.nn.functional import conv1d, linear

from bvsa_core.encoders import InputSpec
from bvsa_core.encoders._shared import DropoutOptions as Options
from bvsa_core.encoders._shared import ResidualProjection, steps_after

FILTERS, KERNEL, POOL, STRIDE = 40, 25, 51, 5


class TSConv(nn.Sequential):
    """The published layers, with the first two, a convolution and mean pooling, computed as one convolution."""

    def forward(self, recordings: Tensor) -> Tensor:
        """Return embeddings of recordings."""
        convolution, later = self[1], list(self)[3:]
        assert isinstance(convolution, nn.Conv2d)
        kernel = pooled(convolution.weight.flatten(1), POOL)
        windows = recordings.unfold(-1, kernel.shape[1], STRIDE)  # (B, channels, steps, taps)
        maps = linear(windows, kernel, convolution.bias)  # (B, channels, steps, filters)
        maps = maps.permute(0, 3, 1, 2)  # filters stay innermost in memory
        for layer in later:
            maps = layer(maps)
        return maps


def pooled(kernel: Tensor, width: int) -> Tensor:
    """Return kernels (filters, taps + width - 1) for the mean over `width` results of kernels (filters, taps)."""
    return conv1d(kernel[:, None], kernel.new_full((1, 1, width), 1 / width), padding=width - 1)[:, 0]


def build(shape: InputSpec, options: Options, pointwise: bool = True) -> nn.Module:
    """Build the encoder, with or without the 1 x 1 convolution."""
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
        *([nn.Conv2d(FILTERS, FILTERS, (1, 1))] if pointwise else []),  # (B, filters, 1, steps)
        nn.Flatten(),
        *ResidualProjection(FILTERS * steps, shape.embedding, options.dropout),
    )
