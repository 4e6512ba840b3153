"""Image encoders of your own: a few lines, and every command knows them by name."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from bvsa_core import RunConfig, RunData, UserError, VisionEncoder, load_vision_encoder, register_vision_encoder, train
from bvsa_core.vision.loading import check_weights, embedding_width_of, image_size_of, weights_are_here


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 6, 2, 2))

    def forward(self, images):
        return self.blocks(images).flatten(1)


@pytest.fixture
def mine(registries):
    def build(weights):
        with torch.random.fork_rng():
            torch.manual_seed(0 if weights is None else int(weights))
            return VisionEncoder(Model().train(), image_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))

    return register_vision_encoder("mine")(build)


def test_a_registered_encoder_is_loaded_frozen_and_told_apart_by_its_weights(mine):
    encoder, images = load_vision_encoder("mine"), torch.randn(2, 3, 32, 32)
    model = mine(None).model
    torch.testing.assert_close(encoder.encode_images(images), normalize(model(images), dim=-1))
    assert not encoder.model.training and not any(each.requires_grad for each in encoder.model.parameters())
    assert encoder.name == "mine" and encoder.fingerprint == load_vision_encoder("mine").fingerprint
    other = load_vision_encoder("mine", "7")
    assert other.name == "mine/7" and other.fingerprint != encoder.fingerprint
    assert weights_are_here("mine") and (image_size_of("mine"), embedding_width_of("mine")) == (32, 24)
    check_weights("mine")
    with pytest.raises(UserError, match="image encoder mine encodes no texts; choose one with a text encoder"):
        encoder.encode_texts(["a dog"])


def test_it_trains_without_texts(mine, small_data, tmp_path):
    config = RunConfig(data=small_data, vision="mine", bank=tmp_path, method="vanilla", epochs=1, device="cpu")
    trained = train(config, RunData(config))
    assert trained.shape.embedding == 24


@pytest.mark.parametrize("method", ["atm", "bvsa"])
def test_methods_that_read_texts_refuse_it_before_anything_is_written(mine, method, small_data, tmp_path):
    config = RunConfig.of(method, data=small_data, vision="mine", bank=tmp_path / "bank", device="cpu")
    with pytest.raises(UserError, match="and mine has no text encoder; choose a method that reads none"):
        train(config, RunData(config))
    assert not (tmp_path / "bank").exists()


def test_unknown_names_are_refused_with_the_nearest():
    message = r"'RN5'; did you mean 'RN50'\? choose one of tiny, .*register your own first"
    for function in (load_vision_encoder, check_weights, weights_are_here, image_size_of):
        with pytest.raises(UserError, match=message):
            function("RN5")
