"""ShallowNet: temporal and spatial convolution, one pooling (Schirrmeister et al., 2017), with UBP's head.

UBP's variant pools the ELU of the maps, where the original pools their squares and takes the logarithm.
"""

from torch import nn

from bvsa_core.encoders import InputSpec
from bvsa_core.encoders._shared import DropoutOptions as Options
from bvsa_core.encoders._shared import ResidualProjection, steps_after

FILTERS, KERNEL, POOL, STRIDE = 40, 25, 51, 5


def build(shape: InputSpec, options: Options) -> nn.Module:
    """Build the encoder."""
    steps = steps_after(shape.time, (KERNEL, 1), (POOL, STRIDE))
    return nn.Sequential(
        nn.Unflatten(1, (1, shape.channels)),  # (B, 1, channels, time)
        nn.Conv2d(1, FILTERS, (1, KERNEL)),
        nn.Conv2d(FILTERS, FILTERS, (shape.channels, 1)),
        nn.BatchNorm2d(FILTERS),
        nn.ELU(),
        nn.AvgPool2d((1, POOL), (1, STRIDE)),  # (B, filters, 1, steps)
        nn.Dropout(options.dropout),
        nn.Flatten(),
        *ResidualProjection(FILTERS * steps, shape.embedding, options.dropout),
    )
