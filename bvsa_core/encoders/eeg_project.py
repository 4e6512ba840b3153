"""EEGProject: one projection of the flattened recording (UBP, CVPR 2025)."""

from dataclasses import dataclass

from torch import nn

from bvsa_core.encoders import InputSpec
from bvsa_core.encoders._shared import ResidualProjection


@dataclass(frozen=True)
class Options:
    """Options of EEGProject."""

    dropout: float = 0.3


def build(shape: InputSpec, options: Options) -> nn.Module:
    """Build the encoder."""
    features = shape.channels * shape.time
    return nn.Sequential(nn.Flatten(), *ResidualProjection(features, shape.embedding, options.dropout))
