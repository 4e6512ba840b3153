"""Fused targets, and layers of the image encoder."""

import numpy as np
import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from bvsa_core.errors import UserError
from bvsa_core.vision.clip import Clip
from bvsa_core.vision.multilevel import Fusion, MultiLevelViews
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
    views = MultiLevelViews(fusion, requested, fixed)
    indices, sizes = torch.tensor([4, 0, 4]), torch.tensor([51, 57, 57])
    expected = fusion([features[[0, 1, 1], indices], features[2, indices]])
    torch.testing.assert_close(views(indices, torch.full((3,), 0.5), sizes), expected)


def test_layers_of_the_encoder_are_appended_to_its_output(clip, seed):
    images = torch.randn(2, 3, clip.image_size, clip.image_size)
    layered = clip.with_layers([0, -1])
    assert clip.with_layers([]) is clip and layered.layers == (0, 2) and layered.widths() == [128, 128, 128]
    output, first, last = layered.encode_images(images).split(layered.widths(), dim=1)
    torch.testing.assert_close(output, clip.encode_images(images))
    tokens = clip.model.visual.forward_intermediates(images, indices=[0, 2], output_fmt="NLC", output_extra_tokens=True)
    for part, patches, extra in zip((first, last), tokens["image_intermediates"], tokens["image_intermediates_prefix"]):
        torch.testing.assert_close(part, normalize(torch.cat([extra, patches], dim=1).mean(1), dim=-1))
    prints = {each.fingerprint for each in (clip, layered, clip.with_layers([0]), clip.with_layers([-1, 0]))}
    assert len(prints) == 4 and clip.with_layers([2]).fingerprint == clip.with_layers([-1]).fingerprint
    with pytest.raises(UserError, match="vision encoder tiny has no layer 3; it has 3, from 0 or from -3 to -1"):
        clip.with_layers([3])


def test_a_resnet_has_four_layers():
    vision = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "patch_size": None}
    text = {"width": 16, "heads": 2, "layers": 1, "vocab_size": 8}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    clip = Clip(model, 32, (0.5,) * 3, (0.25,) * 3, "RN", "print", tokenize=lambda texts: texts)
    assert clip.with_layers([0, 1, 2, 3]).widths() == [16, 32, 64, 128, 256]
    model.visual = torch.nn.Flatten()
    with pytest.raises(UserError, match="of kind Flatten has no known layers"):
        clip.with_layers([0])
