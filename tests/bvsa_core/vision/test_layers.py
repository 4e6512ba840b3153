"""Layers of image encoders: their names, and pooling against the models' own intermediate outputs."""

import open_clip
import pytest
import timm
import torch
from bank_workers import count_features
from torch import nn
from torch.nn.functional import normalize

from bvsa_core.errors import UserError
from bvsa_core.vision.bank import FeatureBank, level_files
from bvsa_core.vision.clip import Clip
from bvsa_core.vision.encoder import VisionEncoder
from bvsa_core.vision.layers import Layers, find_layers, parse_target
from bvsa_core.vision.views import SHARP, BankedViews, Level, OnlineViews

VIT = {"embed_dim": 12, "num_heads": 2}
TRUNKS = {  # name, arguments, size of images, layers, tokens before the patches
    "SigLIP": ("vit_base_patch16_siglip_224", {**VIT, "depth": 3, "img_size": 32}, 32, 3, 0),
    "EVA": ("eva02_base_patch16_clip_224", {"embed_dim": 16, "num_heads": 2, "depth": 3, "img_size": 32}, 32, 3, 1),
    "registers": ("vit_base_patch14_reg4_dinov2", {**VIT, "depth": 2, "img_size": 28}, 28, 2, 5),
    "ConvNeXt": ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16)}, 32, 4, 0),
    "Swin": (
        "swin_base_patch4_window7_224",
        {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 1, 2, 2), "img_size": 56},
        56, 4, 0,
    ),
}  # fmt: skip


def text_config() -> dict:
    return {"width": 16, "heads": 2, "layers": 1, "vocab_size": 8}


def as_clip(model: nn.Module, size: int) -> Clip:
    return Clip(model.eval(), size, (0.5,) * 3, (0.25,) * 3, "of a test", "print", tokenize=lambda texts: texts)


@pytest.mark.parametrize("kind", TRUNKS)
def test_layers_of_timm_are_means_over_patches_or_space(kind, seed):
    name, arguments, size, count, prefix = TRUNKS[kind]
    model = timm.create_model(name, pretrained=False, num_classes=0, **arguments).eval()
    encoder = VisionEncoder(model, size, (0.5,) * 3, (0.25,) * 3, kind, "print")
    assert encoder.layer_count == count
    parts = [*map(str, range(count)), "output"]
    encoder, images = encoder.with_layers(parts), torch.randn(2, 3, size, size)
    found = encoder.encode_images(images).split(encoder.widths(), dim=1)
    maps = model.forward_intermediates(images, norm=False, intermediates_only=True, output_fmt="NCHW")
    for part, expected in zip(found, maps):
        torch.testing.assert_close(part, expected.mean((2, 3)))
    torch.testing.assert_close(found[-1], normalize(model(images), dim=1))
    assert find_layers(model).prefix_tokens == prefix


def test_layers_of_a_transformer_of_open_clip(clip, seed):
    images = torch.randn(2, 3, clip.image_size, clip.image_size)
    assert clip.layer_count == 3 and clip.with_layers(["output"]) == clip
    encoder = clip.with_layers(["-1", "output", "0.cls", "0", "0.tokens"])
    assert encoder.layers == ("2", "output", "0.cls", "0", "0.tokens") and encoder.widths() == [128] * 5
    assert encoder.fingerprint == clip.fingerprint  # one bank holds all layers
    last, output, cls, first, tokens = encoder.encode_images(images).split(128, dim=1)
    blocks = clip.model.visual.forward_intermediates(images, indices=[0, 2], output_fmt="NLC", output_extra_tokens=True)
    (patches, of_last), (extra, _) = blocks["image_intermediates"], blocks["image_intermediates_prefix"]
    torch.testing.assert_close(last, of_last.mean(1))
    torch.testing.assert_close(output, clip.encode_images(images))
    torch.testing.assert_close(cls, extra[:, 0])
    torch.testing.assert_close(first, patches.mean(1))
    torch.testing.assert_close(tokens, torch.cat([extra, patches], dim=1).mean(1))
    with pytest.raises(UserError, match="vision encoder tiny has no layer 3; it has 3, from 0 or from -3 to -1"):
        clip.with_layers(["3"])


def test_blocks_after_the_last_layer_are_not_computed(clip):
    called, hooks = [], []
    for number, block in enumerate(clip.model.visual.transformer.resblocks):
        hooks.append(block.register_forward_hook(lambda *_, number=number: called.append(number)))
    for parts, expected in ((["1", "0"], [0, 1]), (["0", "output"], [0, 1, 2])):
        called.clear()
        clip.with_layers(parts).encode_images(torch.zeros(1, 3, clip.image_size, clip.image_size))
        assert called == expected
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("tokens_first", [True, False])
def test_blocks_that_put_tokens_first_give_the_same(tokens_first, seed):
    output = torch.randn(4, 7, 5)  # (B, tokens, width)
    layers = Layers([], prefix_tokens=2, has_cls=True, tokens_first=tokens_first)
    given = output.transpose(0, 1) if tokens_first else output
    torch.testing.assert_close(layers.pool(given, "1"), output[:, 2:].mean(1))
    torch.testing.assert_close(layers.pool(given, "1.cls"), output[:, 0])
    torch.testing.assert_close(layers.pool(given.half(), "1.tokens"), output.half().float().mean(1))


def test_open_clip_keeps_models_of_timm_in_a_trunk(seed):
    vision = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text_config()).eval()
    encoder, images = as_clip(model, 160).with_layers(["-2", "output"]), torch.randn(2, 3, 160, 160)
    trunk = model.visual.trunk
    expected = trunk.forward_intermediates(images, norm=False, intermediates_only=True)[-2].mean((2, 3))
    layer, output = encoder.encode_images(images).split(encoder.widths(), dim=1)
    torch.testing.assert_close(layer, expected)
    torch.testing.assert_close(output, normalize(model.encode_image(images), dim=1))


def test_a_resnet_has_four_layers(seed):
    vision = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "patch_size": None}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text_config())
    encoder = as_clip(model, 32).with_layers(["output", "0", "1", "2", "3"])
    assert encoder.widths() == [16, 32, 64, 128, 256]
    images, visual = torch.randn(2, 3, 32, 32), model.visual
    third = encoder.encode_images(images).split(encoder.widths(), dim=1)[3]
    expected = visual.layer3(visual.layer2(visual.layer1(visual.stem(images))))
    torch.testing.assert_close(third, expected.mean((2, 3)))
    with pytest.raises(UserError, match=r"target layer 3.cls: this encoder has no tokens; name the layer by its numb"):
        encoder.with_layers(["3.cls"]).widths()
    model.visual = nn.Flatten()
    with pytest.raises(UserError, match="of kind Flatten has no known layers; take its output as target"):
        encoder.with_layers(["0"])
    siglip = timm.create_model("vit_base_patch16_siglip_224", depth=1, img_size=32, **VIT)
    with pytest.raises(UserError, match=r"target layer 0.cls: this encoder has no CLS token; leave .cls out"):
        find_layers(siglip).pool(torch.zeros(1, 4, 12), "0.cls")


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("output", ["output"]),
        ("layer:-2", ["-2"]),
        ("layer:3.cls", ["3.cls"]),
        ("layers:[output,2]", ["output", "2"]),
        ("layers:[2, -1.cls,output]", ["2", "-1.cls", "output"]),
        ("learned", ["output", "0", "1", "2"]),
    ],
)
def test_targets_are_read(target, parts):
    assert parse_target(target, lambda: 3) == parts


@pytest.mark.parametrize("target", ["layer", "layer:", "layer:x", "layers:[]", "layers:2", "layer:1.patch", "outputs"])
def test_other_targets_are_refused(target):
    with pytest.raises(UserError, match=r"must be output, layer:L, layers:\[A,B,...\] or learned; L is a number"):
        parse_target(target, lambda: 3)
    with pytest.raises(UserError, match="names a layer twice"):
        parse_target("layers:[1,output,1]", lambda: 3)


LEVELS = [SHARP, Level(51, 0.5)]


@pytest.fixture
def computed(monkeypatch, one_thread) -> list[int]:
    """Return a list of how many images each call encoded."""
    monkeypatch.setattr(OnlineViews, "__call__", OnlineViews.__call__)  # which is put back
    return count_features()


def test_one_pass_fills_all_layers_of_a_bank(clip, paths, tmp_path, computed):
    def bank(*parts: str) -> FeatureBank:
        return FeatureBank(tmp_path / "bank", clip.with_layers(parts), paths[:5])

    plain = FeatureBank(tmp_path / "plain", clip, paths[:5])
    plain.fill(LEVELS)
    assert sum(computed) == 10
    bank("output").fill(LEVELS)
    output = bank("output").path(SHARP)
    assert output.name == plain.path(SHARP).name == "k1_gain0.safetensors" and bank("output").key == plain.key
    assert output.read_bytes() == plain.path(SHARP).read_bytes()
    both = bank("2", "0.cls")
    assert both.missing(LEVELS) == LEVELS
    computed.clear()
    both.fill(LEVELS)
    assert sum(computed) == 10  # images, not features
    assert both.path(LEVELS[1], "0.cls").name == "k51_gain0.5.layer0.cls.safetensors"
    computed.clear()
    again = bank("0.cls", "output", "-1")
    assert again.missing(LEVELS) == []
    again.fill(LEVELS)
    assert not computed
    assert level_files(again.folder, LEVELS, again.clip) == again.files(LEVELS)
    cls, first, last = again.load(LEVELS).split(128, dim=2)
    torch.testing.assert_close(torch.cat([last, cls], dim=2), both.load(LEVELS), rtol=0, atol=0)
    torch.testing.assert_close(first, plain.load(LEVELS), rtol=0, atol=0)
    computed.clear()
    bank("1", "2").fill(LEVELS)
    assert sum(computed) == 10 and not any(again.folder.glob("*-of-*"))


def test_interpolated_levels_keep_the_norm_of_every_part(seed):
    levels = [Level(size, 0.5) for size in (45, 51)]
    features = torch.randn(2, 6, 9) * torch.tensor([1.0] * 4 + [30.0] * 5)  # a part of 4, and a larger one of 5
    banked = BankedViews(features, levels, [4, 5])
    found = banked(torch.arange(6), torch.full((6,), 0.5), torch.full((6,), 47.0))
    for part in (slice(4), slice(4, 9)):
        one, other = features[..., part].double()
        mixed, norm = (2 * one + other) / 3, (2 * one.norm(dim=1) + other.norm(dim=1)) / 3
        torch.testing.assert_close(
            found[:, part].double(), normalize(mixed, dim=1) * norm[:, None], rtol=1e-4, atol=1e-4
        )
