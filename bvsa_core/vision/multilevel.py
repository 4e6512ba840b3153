"""Multi-level targets: features of several blur levels and several encoder layers, fused by learned weights.

`MultiLevelViews` is a `Views`, so that every method can use it. It fuses the view that a method requests with views at
fixed levels; a view is the encoder's output and some of its layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bvsa_core.vision.views import Level, Views


class Fusion(nn.Module):
    """Unit-norm weighted sum of features; those of layers are mapped to the width of the encoder's output.

    It starts as the mean of the outputs, because the maps of layers start at zero.

    Args:
        widths: widths of the parts of a feature: the output, and each layer.
        levels: fixed blur levels whose views are fused with the requested one.
    """

    def __init__(self, widths: Sequence[int], levels: Sequence[Level]):
        super().__init__()
        self.widths, self.levels = list(widths), list(levels)
        self.weights = nn.Parameter(torch.zeros(1 + len(levels), len(widths)))  # softmax over all of them
        self.maps = nn.ModuleList(nn.Linear(width, widths[0], bias=False) for width in self.widths[1:])
        for weight in self.maps.parameters():
            nn.init.zeros_(weight)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Fuse features (B, sum(widths)) of the requested view and of every level to (B, widths[0])."""
        weights = self.weights.flatten().softmax(0).view_as(self.weights)
        fused = weights.new_zeros(())
        for features, view_weights in zip(views, weights):
            parts = (normalize(part, dim=-1) for part in features.split(self.widths, dim=-1))
            for weight, to_output, part in zip(view_weights, (nn.Identity(), *self.maps), parts):
                fused = fused + weight * to_output(part)
        return normalize(fused, dim=-1)


class MultiLevelViews:
    """Fuses the requested view with views of the same images at the levels of a fusion."""

    def __init__(self, fusion: Fusion, views: Views, fixed: Views):
        self.fusion, self.views, self.fixed = fusion, views, fixed

    def __call__(self, indices: Tensor, gain: Tensor, kernel_size: Tensor, *sigma: Tensor) -> Tensor:
        """Return fused features (B, D); see `Views`."""
        views = [self.views(indices, gain, kernel_size, *sigma)]
        for level in self.fusion.levels:
            size = torch.full_like(indices, level.kernel_size)
            views.append(self.fixed(indices, torch.full(indices.shape, level.gain, device=indices.device), size))
        return self.fusion(views)
