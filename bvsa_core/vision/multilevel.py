"""Multi-level targets: features of several blur levels and several encoder layers, fused by learnt weights.

A view source like any other, so that every method can use it: the view the method asks for, views at fixed levels beside
it, and of each of them the encoder's output and some of its layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bvsa_core.vision.views import Level, Views


class Fusion(nn.Module):
    """A weighted sum of features, each layer's mapped to the width of the encoder's output; to unit norm.

    It starts as the mean of the outputs: maps of layers start at zero.

    Args:
        widths: of the output and of the layers that stand side by side in a feature.
        levels: of the blurs whose views are fused with the one that is asked for.
    """

    def __init__(self, widths: Sequence[int], levels: Sequence[Level]):
        super().__init__()
        self.widths, self.levels = list(widths), list(levels)
        self.weights = nn.Parameter(torch.zeros(1 + len(levels), len(widths)))  # softmax over all of them
        maps = [nn.Linear(width, widths[0], bias=False) for width in self.widths[1:]]
        for linear in maps:
            nn.init.zeros_(linear.weight)
        self.maps = nn.ModuleList(maps)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Fused features (B, widths[0]) of features (B, sum(widths)) of the view asked for and those at the levels."""
        weights = self.weights.flatten().softmax(0).view_as(self.weights)
        fused = weights.new_zeros(())
        for features, of_view in zip(views, weights):
            output, *layers = (normalize(part, dim=-1) for part in features.split(self.widths, dim=-1))
            for weight, part in zip(of_view, [output, *(linear(layer) for linear, layer in zip(self.maps, layers))]):
                fused = fused + weight * part
        return normalize(fused, dim=-1)


class MultiLevelViews:
    """Fuses the view that is asked for with views of the same images at the levels of a fusion."""

    def __init__(self, fusion: Fusion, views: Views, fixed: Views):
        self.fusion, self.views, self.fixed = fusion, views, fixed

    def __call__(self, indices: Tensor, gain: Tensor, kernel_size: Tensor) -> Tensor:
        seen = [self.views(indices, gain, kernel_size)]
        for level in self.fusion.levels:
            size = torch.full_like(indices, level.kernel_size)
            seen.append(self.fixed(indices, torch.full(indices.shape, level.gain, device=indices.device), size))
        return self.fusion(seen)
