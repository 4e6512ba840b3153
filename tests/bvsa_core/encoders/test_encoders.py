"""Parameter counts of methods.md, and what an encoder says to recordings it cannot take."""

from __future__ import annotations

import pytest
import torch

from bvsa_core import encoders, methods
from bvsa_core.encoders import Shape
from bvsa_core.errors import UserError
from bvsa_core.training.config import method_options


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def with_scale(method: str, preset: str, shape: Shape) -> torch.nn.Module:
    build = lambda: encoders.build("eeg_project", shape)  # noqa: E731
    return methods.method_class(method)(method_options(method, preset), build, 10)


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        (lambda: with_scale("ubp", "corrected", Shape(17, 250, 1024)), 5_404_673),
        (lambda: with_scale("vanilla", "corrected", Shape(271, 201, 1024)), 56_830_977),
        (lambda: with_scale("bvsa", "paper", Shape(17, 250, 1024)), 5_404_673),
        (lambda: with_scale("bvsa", "code", Shape(17, 250, 1024)), 10_809_345),
        (lambda: encoders.build("tsconv", Shape(63, 250, 768)), 1_802_496),
    ],
    ids=["EEGProject", "EEGProject MEG", "BVSA one head", "BVSA two heads", "TSConv"],
)
def test_parameter_counts_are_the_published_ones(module, parameters):
    assert count(module()) == parameters


@pytest.mark.parametrize("name", encoders.names())
def test_every_encoder_maps_recordings_to_embeddings_with_gradients(name):
    encoder = encoders.build(name, Shape(5, 120, 16))
    embedding = encoder(torch.randn(4, 5, 120))
    assert embedding.shape == (4, 16)
    embedding.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_unknown_names_and_impossible_shapes_are_told():
    with pytest.raises(UserError, match="unknown encoder 'TS-Conv'; did you mean 'tsconv'. choose one of eeg_project, tsconv"):
        encoders.build("TS-Conv", Shape(17, 250, 8))
    with pytest.raises(UserError, match="encoder tsconv: needs at least 75 time points, not 60"):
        encoders.build("tsconv", Shape(17, 60, 8))
