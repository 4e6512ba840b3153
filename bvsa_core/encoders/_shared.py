"""Shared by encoders: shapes, layers, options with one dropout rate, lengths after convolutions."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn


@dataclass(frozen=True)
class InputSpec:
    """Shapes of an encoder's input and output."""

    channels: int
    time: int  # samples
    embedding: int  # width; for a method, of what images are to it
    subjects: int = 1  # trained on
    texts: int = 0  # width of the features of texts; 0 if there are none
    parts: tuple[int, ...] = ()  # widths of the parts of the features of images
    layers: tuple[int, ...] = ()  # numbers of these parts; that of the output is the number of layers

    @property
    def text_width(self) -> int:
        """Width of the features of texts, by default that of images."""
        return self.texts or self.embedding


@dataclass(frozen=True)
class DropoutOptions:
    """Options of an encoder with one dropout rate."""

    dropout: float = 0.5


class ResidualProjection(nn.Sequential):
    """Linear, then a residual block of GELU, Linear and dropout, then LayerNorm: (B, features) to (B, embedding)."""

    def __init__(self, features: int, embedding: int, dropout: float):
        super().__init__(nn.Linear(features, embedding), _Residual(embedding, dropout), nn.LayerNorm(embedding))


class _Residual(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.branch = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def hidden_layers(*widths: int) -> list[nn.Module]:
    """Return linear layers from each width to the next, a ReLU after each."""
    return [layer for before, after in pairwise(widths) for layer in (nn.Linear(before, after), nn.ReLU())]


def steps_after(time: int, *stages: tuple[int, int]) -> int:
    """Return how many of `time` points are left after stages of (kernel, stride), without padding; at least one.

    >>> steps_after(250, (25, 1), (51, 5))
    36
    """
    least = 1
    for kernel, stride in reversed(stages):
        least = (least - 1) * stride + kernel
    if time < least:
        raise ValueError(f"needs at least {least} time points, not {time}; choose a longer window")
    for kernel, stride in stages:
        time = (time - kernel) // stride + 1
    return time
