"""EEGNet: temporal and spatial filters, then a temporal one over their maps (Lawhern et al., 2018), with UBP's head.

UBP's variant convolves densely where the original is depthwise and separable, and pools once.
"""

from torch import nn

from bvsa_core.encoders import InputSpec
from bvsa_core.encoders._shared import DropoutOptions as Options
from bvsa_core.encoders._shared import ResidualProjection, steps_after

TEMPORAL, SPATIAL, KERNEL, POOL, LAST_KERNEL = 8, 16, 64, 2, 16


def build(shape: InputSpec, options: Options) -> nn.Module:
    """Build the encoder."""
    steps = steps_after(shape.time, (KERNEL, 1), (POOL, POOL), (LAST_KERNEL, 1))
    return nn.Sequential(
        nn.Unflatten(1, (1, shape.channels)),  # (B, 1, channels, time)
        nn.Conv2d(1, TEMPORAL, (1, KERNEL)),
        nn.BatchNorm2d(TEMPORAL),
        nn.Conv2d(TEMPORAL, SPATIAL, (shape.channels, 1)),
        nn.BatchNorm2d(SPATIAL),
        nn.ELU(),
        nn.AvgPool2d((1, POOL)),
        nn.Dropout(options.dropout),
        nn.Conv2d(SPATIAL, SPATIAL, (1, LAST_KERNEL)),
        nn.BatchNorm2d(SPATIAL),
        nn.ELU(),
        nn.Dropout2d(options.dropout),  # (B, filters, 1, steps)
        nn.Flatten(),
        *ResidualProjection(SPATIAL * steps, shape.embedding, options.dropout),
    )
