"""Fused targets."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from bvsa_core.vision.multilevel import Fusion, TargetViews
from bvsa_core.vision.views import SHARP, BankedViews, Level

WIDTHS, IMAGES = [6, 4, 3], 9


@pytest.fixture
def features(seed) -> torch.Tensor:
    """Features (levels, images, sum of widths)."""
    return torch.cat([normalize(torch.randn(3, IMAGES, width), dim=-1) for width in WIDTHS], dim=-1)


def test_fusion_is_a_weighted_sum(features):
    fusion = Fusion(WIDTHS, [SHARP, Level(57, 0.5)])
    start = fusion(features.unbind())
    torch.testing.assert_close(start, normalize(features[..., :6].mean(0), dim=-1))  # of the outputs alone
    start[0, 0].backward()
    assert fusion.weights.grad[:, 0].abs().max() > 0
    assert all(weight.grad.abs().max() > 0 for weight in fusion.maps.parameters())
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.copy_(torch.randn_like(parameter))
    weights = np.exp(fusion.weights.detach().double().numpy())
    expected = 0.0
    for view, view_weights in zip(features.double().numpy(), weights / weights.sum()):
        parts = np.split(view, np.cumsum(WIDTHS)[:-1], axis=1)
        maps = [np.eye(6), *(linear.weight.detach().double().numpy() for linear in fusion.maps)]
        expected = expected + sum(weight * part @ matrix.T for weight, part, matrix in zip(view_weights, parts, maps))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(fusion(features.unbind()).detach().numpy(), expected, atol=1e-5)


def test_the_requested_view_is_fused_with_views_at_fixed_levels(features):
    requested = BankedViews(features[:2], [Level(51, 0.5), Level(57, 0.5)])
    fixed = BankedViews(features[2:], [SHARP])
    fusion = Fusion(WIDTHS, [SHARP])
    views = TargetViews(fusion, fusion.levels, requested, fixed)
    indices, sizes = torch.tensor([4, 0, 4]), torch.tensor([51, 57, 57])
    expected = fusion([features[[0, 1, 1], indices], features[2, indices]])
    torch.testing.assert_close(views(indices, torch.full((3,), 0.5), sizes), expected)
