"""Perceptron: linear layers and ReLU on the flattened recording, as the code of BraVL has it."""

from dataclasses import dataclass

from torch import nn

from bvsa_core.encoders import InputSpec
from bvsa_core.encoders._shared import hidden_layers
from bvsa_core.errors import UserError


@dataclass(frozen=True)
class Options:
    """Options of the perceptron."""

    layers: int = 2
    """Number of layers, each as wide as the embedding."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise UserError(f"layers is {self.layers}; it must be at least 1")


def build(shape: InputSpec, options: Options) -> nn.Module:
    """Build the encoder."""
    widths = [shape.channels * shape.time, *[shape.embedding] * options.layers]
    return nn.Sequential(nn.Flatten(), *hidden_layers(*widths))
