"""DeepNet: four convolutions, each with max pooling (Schirrmeister et al., 2017), with UBP's head."""

from torch import nn

from bvsa_core.encoders import InputSpec
from bvsa_core.encoders._shared import DropoutOptions as Options
from bvsa_core.encoders._shared import ResidualProjection, steps_after

FILTERS, KERNEL, POOL = (25, 50, 100, 200), 10, 2


def build(shape: InputSpec, options: Options) -> nn.Module:
    """Build the encoder."""
    first, *later = FILTERS
    steps = steps_after(shape.time, *[(KERNEL, 1), (POOL, POOL)] * len(FILTERS))
    blocks = [
        nn.Conv2d(1, first, (1, KERNEL)),
        nn.Conv2d(first, first, (shape.channels, 1)),
        *_after(first, options.dropout),
    ]
    for before, filters in zip(FILTERS, later):
        blocks += [nn.Conv2d(before, filters, (1, KERNEL)), *_after(filters, options.dropout)]
    projection = ResidualProjection(FILTERS[-1] * steps, shape.embedding, options.dropout)
    return nn.Sequential(nn.Unflatten(1, (1, shape.channels)), *blocks, nn.Flatten(), *projection)


def _after(filters: int, dropout: float) -> list[nn.Module]:
    return [nn.BatchNorm2d(filters), nn.ELU(), nn.MaxPool2d((1, POOL)), nn.Dropout(dropout)]
