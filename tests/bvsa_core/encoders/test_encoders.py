"""Parameter counts of methods.md, tokens of ATM, and errors for impossible shapes."""

import importlib.util
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from bvsa_core import encoders
from bvsa_core.encoders import InputSpec
from bvsa_core.errors import UserError

TOKENS = encoders.options_class("atm")(subject_token="subject")


def projection(features: int) -> int:
    """Count the parameters of the head from `features` to 1024: two linear layers and a layer norm."""
    return features * 1024 + 1024 + 1024 * 1024 + 1024 + 2 * 1024


@pytest.mark.parametrize(
    ("name", "shape", "options", "parameters"),
    [
        # 56,830,977 with the scale of a method; those of methods are in ../methods/test_fidelity.py
        ("eeg_project", InputSpec(271, 201, 1024), None, 56_830_976),
        ("tsconv", InputSpec(63, 250, 768), None, 1_802_496),
        ("tsconv_ubp", InputSpec(17, 250, 1024), None, 2_555_672),
        ("perceptron", InputSpec(17, 33, 256), None, (17 * 33 + 1) * 256 + 257 * 256),
        # attention of 4 heads of 250 // 4, tokens of ten subjects; methods.md says "about 3.08M"
        ("atm", InputSpec(63, 250, 1024, 10), TOKENS, 3_075_162),
        # (convolutions with biases) + (batch norms) + projection of 40 * 36, 200 * 7 and 16 * 78 features;
        # DeepNet: 275 + 10,650 + 12,550 + 50,100 + 200,200 and 750
        ("shallownet", InputSpec(17, 250, 1024), None, 1040 + 27_240 + 80 + projection(1440)),
        ("deepnet", InputSpec(17, 250, 1024), None, 274_525 + projection(1400)),
        ("eegnet", InputSpec(17, 250, 1024), None, 520 + 2_192 + 4_112 + 80 + projection(1248)),
    ],
)
def test_parameter_counts_are_the_published_ones(name, shape, options, parameters):
    encoder = encoders.build(name, shape, options)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", encoders.names())
def test_every_encoder_reads_every_channel_and_has_gradients(name, training, seed):
    """The released ATM does not: its prepended token pushes the last electrode out."""
    encoder = encoders.build(name, InputSpec(5, 151, 16)).train(training)
    recordings = torch.randn(4, 5, 151, requires_grad=True)
    embedding = encoder(recordings)
    assert embedding.shape == (4, 16)
    (embedding * torch.randn(4, 16)).sum().backward()
    assert (recordings.grad.abs().amax(dim=(0, 2)) > 0).all()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_atm_has_a_token_per_subject_and_their_mean_for_unknown_ones(seed):
    shape = InputSpec(3, 80, 8, subjects=2)
    recordings = torch.randn(1, 3, 80, dtype=torch.float64).expand(4, -1, -1)
    subjects = torch.tensor([0, 1, -1, 7])
    encoder = encoders.build("atm", shape, TOKENS).eval().double()
    first, second, unknown, other = encoders.encode(encoder, recordings, subjects)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)  # float64, where an untrained token changes 1e-3
    close(unknown, other)
    assert (first - second).abs().max() > 1e-7
    with torch.no_grad():
        encoder.subject_tokens[:] = encoder.subject_tokens.mean(0)
    close(encoders.encode(encoder, recordings, subjects)[0], unknown)
    alike = encoders.encode(encoder, recordings, subjects)
    close(alike, alike[:1].expand(4, -1))
    close(alike, encoders.encode(encoder, recordings))
    joint = encoders.build("atm", shape).eval().double()
    assert len(joint.subject_tokens) == 1
    close(encoders.encode(joint, recordings, subjects), joint(recordings))


@pytest.mark.parametrize("name", ["tsconv", "tsconv_ubp"])
def test_tsconv_equals_its_published_layers(name, seed):
    """Convolution and pooling are computed as one, in another order of sums: float64 agrees to rounding."""
    encoder = encoders.build(name, InputSpec(3, 91, 8)).double().eval()
    recordings = torch.randn(4, 3, 91, dtype=torch.float64, requires_grad=True)
    results = []
    for forward in (encoder, partial(torch.nn.Sequential.forward, encoder)):
        output = forward(recordings)
        results.append((output, *torch.autograd.grad(output.square().sum(), [recordings, *encoder.parameters()])))
    for ours, published in zip(*results):
        torch.testing.assert_close(ours, published, rtol=1e-10, atol=1e-10)


def test_weights_are_drawn_from_a_given_normal(seed):
    encoder = encoders.build("tsconv", InputSpec(17, 250, 64))
    encoders.initialise(encoder, 0.02)
    linear, norm = encoder[11], encoder[3]
    # 92,160 and 40 draws: six standard errors of a mean and of a standard deviation
    for weight, mean in ((linear.weight, 0.0), (norm.weight, 1.0)):
        error = 6 * 0.02 / weight.numel() ** 0.5
        assert abs(weight.mean().item() - mean) < error and abs(weight.std().item() - 0.02) < error


def test_unknown_names_and_impossible_shapes_are_reported():
    known = "atm, deepnet, eeg_project, eegnet, perceptron, shallownet, tsconv, tsconv_ubp, braindecode:CLASS"
    with pytest.raises(UserError, match=f"unknown encoder 'TS-Conv'; did you mean 'tsconv'. choose one of {known}"):
        encoders.build("TS-Conv", InputSpec(17, 250, 8))
    needed = {"atm": 75, "tsconv": 75, "tsconv_ubp": 75, "shallownet": 75, "deepnet": 151, "eegnet": 95}
    for name, least in needed.items():
        encoders.build(name, InputSpec(1, least, 8))
        message = f"encoder {name}: needs at least {least} time points, not {least - 1}; choose a longer window"
        with pytest.raises(UserError, match=message):
            encoders.build(name, InputSpec(17, least - 1, 8))
    with pytest.raises(UserError, match="encoder eeg_project: channels is 0; it must be at least 1"):
        encoders.build("eeg_project", InputSpec(0, 250, 8))
    with pytest.raises(UserError, match="layers is 0; it must be at least 1"):
        encoders.options_class("perceptron")(layers=0)


class FakeNet(torch.nn.Module):
    """A class with the arguments of those of braindecode.models."""

    def __init__(self, n_outputs, n_chans, n_times, sfreq, drop_prob=0.5):
        super().__init__()
        if n_times < 100:
            raise AssertionError("n_times is too small")
        self.sfreq, self.drop_prob = sfreq, drop_prob
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(n_chans * n_times, n_outputs))

    def forward(self, x):
        return self.layers(x)


def test_classes_of_braindecode_are_encoders_by_name(monkeypatch):
    fake = SimpleNamespace(FakeNet=FakeNet, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "braindecode", SimpleNamespace(models=fake, __spec__=SimpleNamespace()))
    monkeypatch.setitem(sys.modules, "braindecode.models", fake)
    options = encoders.options_class("braindecode:FakeNet")(sampling_rate=200.0, arguments={"drop_prob": 0.1})
    encoder = encoders.build("braindecode:FakeNet", InputSpec(5, 120, 16), options)
    assert encoder(torch.randn(4, 5, 120)).shape == (4, 16) and (encoder.sfreq, encoder.drop_prob) == (200.0, 0.1)
    for name, message in {
        "FakeNet": r"encoder braindecode:FakeNet: n_times is too small \(built for 5 channels, 50 time points",
        "NoNet": "unknown class of braindecode.models 'NoNet'.* choose one of FakeNet",
    }.items():
        with pytest.raises(UserError, match=message):
            encoders.build(f"braindecode:{name}", InputSpec(5, 50, 16))


def test_without_braindecode_the_extra_is_named(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "braindecode" else find_spec(name))
    message = r"encoder braindecode:EEGNetv4 needs braindecode; pip install 'fovblur\[braindecode\]'"
    with pytest.raises(UserError, match=message):
        encoders.build("braindecode:EEGNetv4", InputSpec(17, 250, 8))
