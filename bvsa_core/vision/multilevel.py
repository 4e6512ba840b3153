"""Targets of several parts: features of several blur levels and several encoder layers, fused by learned weights.

`TargetViews` is a `Views`, so that every method can use it. It makes the target of a method from the view that the
method requests and views at fixed levels; a view has the encoder's output, layers of it, or both.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bvsa_core.vision.views import Level, Views


class Fusion(nn.Module):
    """Unit-norm weighted sum of the normalised parts of features, mapped to the width of the first one.

    It starts as the mean of the first parts, because the maps of the others start at zero.

    Args:
        widths: widths of the parts of a feature.
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
            for weight, to_first, part in zip(view_weights, (nn.Identity(), *self.maps), parts):
                fused = fused + weight * to_first(part)
        return normalize(fused, dim=-1)


class TargetViews:
    """Makes targets of the requested view and of views of the same images at fixed levels.

    Args:
        targets: maps features (B, sum of widths) of the requested view, and of each fixed one, to targets (B, D).
        levels: the fixed levels.
        views: of the images at any level that is requested.
        fixed: of the images at the fixed levels.
    """

    def __init__(self, targets: Callable[[list[Tensor]], Tensor], levels: Sequence[Level], views: Views, fixed: Views):
        self.targets, self.levels, self.views, self.fixed = targets, list(levels), views, fixed

    def __call__(self, indices: Tensor, gain: Tensor, kernel_size: Tensor, *sigma: Tensor) -> Tensor:
        """Return targets (B, D); see `Views`."""
        views = [self.views(indices, gain, kernel_size, *sigma)]
        for level in self.levels:
            size = torch.full_like(indices, level.kernel_size)
            views.append(self.fixed(indices, torch.full(indices.shape, level.gain, device=indices.device), size))
        return self.targets(views)
