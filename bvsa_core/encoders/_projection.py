"""The projection head of UBP's encoders, and the options of those with one dropout rate."""

from dataclasses import dataclass

from torch import Tensor, nn


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
