"""Views: online and banked ones agree, and the bank is never stale."""

import dataclasses
import json
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from bvsa_core.errors import UserError
from bvsa_core.vision.bank import FeatureBank
from bvsa_core.vision.images import read_images
from bvsa_core.vision.views import SHARP, BankedViews, Falloff, Level, OnlineViews

LEVELS = [SHARP, Level(45, 0.0), Level(51, 0.5), Level(57, 1.0)]


def test_online_and_banked_views_agree(clip, paths, bank):
    online = OnlineViews(clip, read_images(paths, clip.image_size), encode_batch=7)
    bank.fill(LEVELS)
    banked = BankedViews(bank.load(LEVELS), LEVELS)
    rng = torch.Generator().manual_seed(0)
    indices = torch.randint(40, (100,), generator=rng)
    chosen = torch.randint(len(LEVELS), (100,), generator=rng)
    gain, kernel_size = (torch.tensor([LEVELS[i][field] for i in chosen]) for field in (1, 0))
    one, other = online(indices, gain, kernel_size), banked(indices, gain, kernel_size)
    torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(100))
    sharp, blurred = (banked(indices, torch.zeros(100), torch.full((100,), size)) for size in (1, 45))
    assert (sharp * blurred).sum(1).mean() < 0.999  # so that a mix-up of levels would show


def test_banked_views_interpolate_between_levels(seed):
    levels = [Level(size, gain) for size in (45, 51, 57) for gain in (0.0, 0.5, 1.0)]
    features = normalize(torch.randn(9, 7, 12), dim=-1)
    banked = BankedViews(features, levels)
    held = [banked(torch.arange(7), torch.full((7,), gain), torch.full((7,), float(size))) for size, gain, _ in levels]
    torch.testing.assert_close(torch.stack(held), features)  # where a level lies, it is that level
    gain, size = torch.tensor([0.0, 0.3, 0.9, 2.0]), torch.tensor([47.0, 51.0, 56.2, 80.0])
    of = lambda size, gain: features[levels.index(Level(size, gain)), :4].double()  # noqa: E731
    expected = [
        (2 * of(45, 0.0)[0] + of(51, 0.0)[0]) / 3,
        0.4 * of(51, 0.0)[1] + 0.6 * of(51, 0.5)[1],
        (0.8 * (0.2 * of(51, 0.5)[2] + 0.8 * of(51, 1.0)[2]) + 5.2 * (0.2 * of(57, 0.5)[2] + 0.8 * of(57, 1.0)[2])) / 6,
        of(57, 1.0)[3],  # beyond the last level
    ]
    # Weights of sizes 45 to 57 in float32 are right to 57 * 2^-24 / 6; features of opposite sign amplify the error.
    result = banked(torch.arange(4), gain, size)
    torch.testing.assert_close(result.double(), normalize(torch.stack(expected), dim=1), rtol=0, atol=1e-4)
    torch.testing.assert_close(result.norm(dim=1), torch.ones(4))
    no_grid = BankedViews(features[:2], [Level(45, 0.0), Level(51, 1.0)])
    with pytest.raises(UserError, match="but not the requested"):
        no_grid(torch.arange(1), torch.tensor([0.5]), torch.tensor([48.0]))


def test_interpolated_kernel_sizes_are_close_to_online_views(clip, paths, bank):
    levels = [Level(size, gain) for size in (45, 49) for gain in (0.25, 0.5)]
    few = FeatureBank(bank.folder.parent, clip, paths[:3])
    few.fill(levels)
    online = OnlineViews(clip, read_images(paths[:3], clip.image_size))
    indices, gain, size = torch.arange(3), torch.tensor([0.3, 0.375, 0.5]), torch.tensor([46.1, 47.0, 45.0])
    seen = online(indices, gain, size)
    banked = BankedViews(few.load(levels), levels)
    corner = banked(indices, torch.tensor([0.25, 0.25, 0.5]), torch.tensor([45, 45, 45]))
    distances = [(1 - (features * seen).sum(1)).sum() for features in (banked(indices, gain, size), corner)]
    assert distances[0] < 0.3 * distances[1]
    whole = online(indices, gain, torch.tensor([45, 47, 45]))
    torch.testing.assert_close(seen[1:], whole[1:], rtol=0, atol=2e-5)
    assert ((seen[0] - whole[0]).abs() > 1e-5).any()


def test_features_are_those_of_the_published_pipeline(clip, paths, bank):
    """uint8 image, OpenCV's blur and blend in 8 bits, then the encoder."""
    bank.fill([Level(51, 0.5)])
    features = bank.load([Level(51, 0.5)])[0]
    y, x = np.mgrid[:224, :224]
    distance = np.hypot(y - 112, x - 112)
    weight = 0.5 * np.exp(-3 * np.minimum(1, distance / np.hypot(111, 111)))[..., None]
    for path, feature in zip(paths[:5], features):
        image = np.array(Image.open(path).convert("RGB"))
        blurred = cv2.GaussianBlur(image, (51, 51), 0, borderType=cv2.BORDER_REFLECT_101)
        seen = np.round(weight * image + (1 - weight) * blurred) / 255
        normalised = torch.from_numpy((seen - clip.mean) / clip.std).permute(2, 0, 1).float()
        expected = normalize(clip.model.encode_image(normalised[None]), dim=-1)[0]
        assert feature @ expected > 0.999


def test_a_level_that_the_bank_lacks_is_refused(bank):
    bank.fill([SHARP])
    banked = BankedViews(bank.load([SHARP]), [SHARP])
    one = torch.zeros(1, dtype=torch.int64)
    assert banked(one, torch.tensor([0.3]), torch.tensor([1])).shape == (1, 128)  # one pixel is sharp at any gain
    message = "the feature bank holds k=1 gain=0, but not the requested blur level; use --views online"
    with pytest.raises(UserError, match=message):
        banked(one, torch.tensor([0.5]), torch.tensor([51]))


def test_everything_that_affects_features_changes_the_key(tmp_path, clip, paths, bank):
    changed = tmp_path / "changed.jpg"
    Image.new("RGB", (224, 224)).save(changed)
    others = [
        (dataclasses.replace(clip, fingerprint="0" * 64), paths),
        (clip, [changed, *paths[1:]]),
        (clip, paths[::-1]),
        (clip, paths, Falloff(decay=2.0)),
        (clip, paths, Falloff(curve="linear")),
    ]
    folders = {FeatureBank(tmp_path / "bank", *arguments).folder for arguments in others}
    assert FeatureBank(tmp_path / "bank", clip, paths).folder == bank.folder and len(folders | {bank.folder}) == 6
    assert json.loads((bank.folder / "about.json").read_text())["encoder"] == "tiny"


def test_only_missing_levels_are_computed_and_nothing_unfinished_is_kept(clip, paths, bank, monkeypatch):
    bank.fill([SHARP])
    before = {path.name: path.stat().st_mtime_ns for path in bank.folder.iterdir()}
    reports = []
    bank.fill([SHARP, Level(51, 0.5)], lambda _, done, total: reports.append((done, total)))
    assert reports[-1] == (40, 40)
    assert {name: (bank.folder / name).stat().st_mtime_ns for name in before} == before
    monkeypatch.setattr(OnlineViews, "__call__", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bank.fill([Level(57, 0.5)])
    assert bank.missing([SHARP, Level(51, 0.5), Level(57, 0.5)]) == [Level(57, 0.5)]
    assert not [path for path in bank.folder.iterdir() if "partial" in path.name]


def test_missing_and_damaged_images_are_reported(paths, tmp_path, clip):
    with pytest.raises(UserError, match="gone.jpg is missing or unreadable"):
        FeatureBank(tmp_path / "other", clip, [tmp_path / "gone.jpg"])
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(paths[0].read_bytes()[:600])
    with pytest.raises(UserError, match=r"cut.jpg cannot be read .*; fetch or make it again"):
        FeatureBank(tmp_path / "other", clip, [cut]).fill([SHARP])


def test_texts_are_encoded_once(bank, clip, monkeypatch):
    texts = ["A photo of a banana.", "A photo of a dog face."]
    features = bank.texts(texts)
    monkeypatch.setattr(type(clip), "encode_texts", None)
    assert torch.equal(bank.texts(texts), features)


def test_other_sizes_are_resized(tmp_path):
    Image.fromarray(np.full((50, 80, 3), 77, np.uint8)).save(tmp_path / "small.png")
    images = read_images([tmp_path / "small.png"], 224)
    assert images.shape == (1, 3, 224, 224) and (images == 77).all()


def test_gradients_reach_the_blur_through_the_frozen_encoder(clip, paths):
    online = OnlineViews(clip, read_images(paths[:3], clip.image_size))
    direction = online(torch.arange(3), torch.zeros(3), torch.full((3,), 51))
    assert not direction.requires_grad

    def loss(gain):
        return (online(torch.arange(3), gain, torch.full((3,), 51)) * direction).sum()

    gain = torch.full((3,), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(gain), gain)
    step = 0.02
    expected = (loss(torch.full((3,), 0.5 + step)) - loss(torch.full((3,), 0.5 - step))) / (2 * step)
    torch.testing.assert_close(gradient.sum(), expected, rtol=0.02, atol=0)
