"""Random numbers, switches and errors of methods. Their formulas are checked in test_fidelity.py."""

import dataclasses
import sys

import pytest
import torch
from method_inputs import CHANNELS, SAMPLES, TIME, WIDTH, make_method, random_batch

from bvsa_core import methods
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Batch, OutlierGate
from bvsa_core.training.config import RunConfig, method_options
from bvsa_core.vision.multilevel import Fusion
from bvsa_core.vision.views import SHARP, Level


@pytest.mark.parametrize(
    ("decouple", "dynamic", "levels"),
    [
        (False, False, {SHARP}),
        (True, False, {Level(51, 0.0), Level(51, 0.5), Level(51, 1.0)}),
        (False, True, {Level(45, 0.5), Level(51, 0.5), Level(57, 0.5)}),
        (True, True, {Level(k, gain) for k in (45, 51, 57) for gain in (0.0, 0.5, 1.0)}),
    ],
)
def test_the_parts_of_bvsa_are_switches(decouple, dynamic, levels, seed):
    method = make_method("bvsa", decouple=decouple, dynamic=dynamic)
    for _ in range(6):
        method(random_batch())
        gain, kernel_size = method.blur(torch.arange(SAMPLES))
        requested = {Level(int(k), float(g)) for k, g in zip(kernel_size, gain)}
        assert {level.kernel_size for level in requested} <= {level.kernel_size for level in levels}
        assert requested <= levels or levels == {SHARP}
    assert set(method.training_levels()) == levels and set(method.gallery_levels()) <= levels
    finer = make_method("bvsa", decouple=decouple, dynamic=dynamic, continuous=True)
    finer(random_batch())
    gain, kernel_size = finer.blur(torch.arange(SAMPLES))
    assert levels <= set(finer.training_levels())
    assert all(level.kernel_size % 2 == 1 for level in finer.training_levels())
    assert (len(gain.unique()) > 3) == decouple and (len(kernel_size.unique()) > 3) == dynamic


def test_a_batch_of_one_or_of_equals_stays_in_the_middle():
    gate = OutlierGate(3, 0.1, None)
    assert gate.position(torch.arange(1), torch.tensor([7.0])).tolist() == [0.0]
    assert gate.position(torch.arange(3), torch.full((3,), 2.0)).tolist() == [0.0] * 3


@pytest.mark.parametrize("share", ["probability", "gradient"])
def test_mcdb_scales_the_gradients_of_a_dominating_modality(share, seed):
    method, batch = make_method("mcdb", balance=0.7, noise=0.0, share=share), random_batch()
    method(batch).backward()
    scaled = {name: method.adapters[name].branch[-1].weight.grad for name in ("brain", "image", "text")}
    method.zero_grad()
    free = make_method("mcdb", balance=0.0, noise=0.0)
    free.load_state_dict(method.state_dict())
    free(batch).backward()
    for (name, gradient), factor in zip(scaled.items(), method.factors):
        torch.testing.assert_close(gradient, factor * free.adapters[name].branch[-1].weight.grad)
    assert free.factors.tolist() == [1, 1, 1]
    assert (method.factors < 1).any(), "no modality dominates: the rule is not exercised"


def test_mcdb_perturbs_less_and_less(seed):
    method = make_method("mcdb", noise=0.5)
    gradient, method.epochs = torch.randn(400, 100), 4
    for epoch, strength in enumerate((0.5, 0.375, 0.25, 0.125)):
        method.epoch = epoch
        noise = method._modulate(gradient, 0) - gradient
        # 40,000 draws: standard errors of 0.35 % (deviation) and 0.5 % of the deviation (mean); six of them
        assert noise.std().item() == pytest.approx(strength * gradient.std().item(), rel=0.022)
        assert abs(noise.mean()) < 0.03 * strength
    method.options = dataclasses.replace(method.options, noise=0.0)
    assert torch.equal(method._modulate(gradient, 0), gradient)


def test_a_batch_of_one_changes_no_level(seed):
    method, batch = make_method("bvsa"), random_batch()
    method(Batch(batch.samples[:1], batch.recordings[:1], batch.images[:1], batch.texts[:1]))
    gain, kernel_size = method.blur(torch.arange(SAMPLES))
    assert (gain == 0.5).all() and (kernel_size == 51).all()


def test_targets_are_fused_at_retrieval_too(seed):
    method = make_method("bvsa", "code")
    method.fusion = Fusion([WIDTH, 3], [SHARP])
    torch.nn.init.normal_(method.fusion.maps[0].weight)
    assert method.gallery_feature_levels() == [*method.gallery_levels(), SHARP]
    recordings, images, texts = torch.randn(5, CHANNELS, TIME), torch.randn(4, 5, WIDTH + 3), torch.randn(5, WIDTH)
    embeddings = method.eval().retrieval_embeddings(recordings, images, texts)
    brain, _ = method.embed(recordings)
    expected = sum(brain @ method.fusion([view, images[3]]).T for view in images[:3]) / 3
    torch.testing.assert_close(embeddings.brain_image @ embeddings.image.T, expected)


def test_unknown_names_are_reported():
    message = "unknown method 'UBPP'; did you mean 'ubp'. choose one of atm, bravl, bvsa, mcdb, nice, samga, ubp"
    with pytest.raises(UserError, match=message):
        methods.method_class("UBPP")
    with pytest.raises(UserError, match="method ubp has no preset 'mine'; choose one of corrected, paper, code"):
        method_options("ubp", "mine")
    with pytest.raises(UserError, match="unknown scale 'raw'; choose one of exp, softplus, identity"):
        method_options("vanilla", "corrected", scale="raw")
    with pytest.raises(UserError, match="unknown share 'size'; choose one of probability, gradient"):
        method_options("mcdb", "corrected", share="size")


@pytest.mark.parametrize(
    ("option", "value", "bounds"),
    [
        ("subject_dropout", 1.5, "between 0 and 1"),
        ("mmd_weights", (0.9, -0.1), "between 0 and 1"),
        ("width", 0, "at least 1"),
        ("coarse_epochs", -1, "at least 0"),
        ("fine_lr", 0.0, "positive"),
    ],
)
def test_options_of_samga_are_checked(option, value, bounds):
    with pytest.raises(UserError, match=rf"{option} is .*; it must be {bounds}"):
        method_options("samga", "corrected", **{option: value})


@pytest.mark.parametrize(
    ("name", "preset", "known"),
    [
        ("vanilla", "paper", "corrected, code, shallow"),
        ("nice", "paper", "corrected, code"),
        ("samga", "paper", "corrected, code"),
        ("atm", "paper", "corrected, code"),
        ("mcdb", "code", "corrected, paper"),
    ],
)
def test_a_preset_that_a_method_does_not_have_is_refused(name, preset, known):
    for use in (lambda: method_options(name, preset), lambda: RunConfig.of(name, preset=preset)):
        with pytest.raises(UserError, match=f"method {name} has no preset '{preset}'; choose one of {known}$"):
            use()


def test_a_file_that_names_no_method_is_reported(tmp_path, monkeypatch):
    (tmp_path / "half_written.py").write_text("class HalfWritten: ...\n")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    with pytest.raises(UserError, match=r"half_written.py: names no method; end it with METHOD = its class"):
        methods.method_class("half_written")
    sys.modules.pop("bvsa_core.methods.half_written")
