"""Checks of methods and presets against tests/support/fidelity_oracles.py on random inputs.

| checked                                       | vanilla | nice | atm | ubp | bvsa | mcdb | samga | bravl             |
| loss of every batch                           | yes     | yes  | yes | yes | yes  | yes  | yes   | test_bravl.py     |
| per-sample state, interval rule               | none    | none | none| yes | yes  | none | none  | none              |
| balance of gradients                          |         |      |     |     |      | yes  |       |                   |
| blur levels, gallery levels, gate             | yes     | yes  | yes | yes | yes  | yes  | yes   | yes               |
| scores at retrieval, with the preset's gate   | yes     | yes  | yes | yes | yes  | yes  | yes   | test_bravl.py     |
| nothing learnt from evaluation                | yes     | yes  | yes | yes | yes  | yes  | yes   | yes               |
| number of parameters                          | yes     | yes  | yes | yes | yes  | yes  | yes   | yes               |

All for every preset that a method has. Whole trainings under `code` are compared with the released rules in
test_lock_step.py and test_samga.py, random numbers and switches in test_methods.py, the gates in
../retrieval/test_retrieval.py.
"""

import functools

import fidelity_oracles as oracle
import method_inputs
import numpy as np
import pytest
import torch
from method_inputs import SAMPLES, SMALLER, make_method

from bvsa_core import encoders, methods
from bvsa_core.encoders import InputSpec
from bvsa_core.methods.base import Method
from bvsa_core.retrieval.scoring import Scoring, similarity
from bvsa_core.training.config import RunConfig, method_options, training_of
from bvsa_core.vision.views import SHARP, Level

random_batch = functools.partial(method_inputs.random_batch, torch.float64)
EVERY = [(name, preset) for name in methods.names() for preset in methods.method_class(name).PRESETS]
CONTRASTED = [(name, preset) for name, preset in EVERY if name != "bravl"]
GAINS, SIZES = (0.0, 0.5, 1.0), (45, 51, 57)
BLURRED = {
    ("ubp", "code"): {(45, 0.5), (51, 0.5)},
    ("ubp", "paper"): {(size, 1.0) for size in SIZES},
    "ubp": {(size, 0.5) for size in SIZES},
    "bvsa": {(size, gain) for size in SIZES for gain in GAINS},
}
GALLERY = {
    ("ubp", "code"): [(45, 0.5)],
    ("ubp", "paper"): [(51, 1.0)],
    "ubp": [(51, 0.5)],
    ("bvsa", "code"): [(51, gain) for gain in GAINS],
    "bvsa": [(51, 0.5)],
}
GATE = {("bvsa", "paper"): "paper", ("bvsa", "code"): "code"}


def of(table: dict, name: str, preset: str, otherwise: object) -> object:
    return table.get((name, preset), table.get(name, otherwise))


def make(name: str, preset: str, **changes) -> Method:
    """Make a method in float64, without dropout, and with adapters that are not the identity."""
    smaller = SMALLER[name] if name == "samga" else {}
    method = make_method(name, preset, **smaller, **changes)
    for adapter in getattr(method, "adapters", {}).values():
        torch.nn.init.normal_(adapter.branch[-1].weight)
    for parameter in method.parameters():
        parameter.data = parameter.data.double()
    if name == "samga":
        method.epoch, method.epochs = 5, 40
    return method.double() if name == "bravl" else method  # the state of others stays float32


def heads(method: Method, recordings: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs of the brain encoders for images and for texts."""
    for_text = getattr(method, "text_encoder", None) or method.encoder
    return method.encoder(recordings).detach().numpy(), for_text(recordings).detach().numpy()


def adapted(method: Method, which: str, x: np.ndarray) -> np.ndarray:
    normalise, down, _, rise = method.adapters[which].branch
    layers = ((part.weight.detach().numpy(), part.bias.detach().numpy()) for part in (normalise, down, rise))
    return oracle.adapter(x, *layers)


def mapped(method: Method, x: np.ndarray, *names: str) -> np.ndarray:
    """Return rows after linear maps of a method."""
    for name in names:
        part = method.get_submodule(name)
        x = x @ part.weight.detach().numpy().T + part.bias.detach().numpy()
    return x


def mapped_images(method: Method, x: np.ndarray) -> np.ndarray:
    """Return what SAMGA makes of images with a single layer."""
    return mapped(method, x, f"first_maps.{x.shape[1]}", "layer_maps.0", "shared_map")


@pytest.mark.parametrize(
    ("name", "preset", "changes"),
    [(*each, {}) for each in CONTRASTED]
    + [(*each, {"continuous": True, "c": 0.3}) for each in CONTRASTED if each[0] == "bvsa"],
)
def test_losses_and_state_of_four_batches(name, preset, changes, seed):
    method = make(name, preset, **changes)
    medium = of(GALLERY, name, preset, [SHARP])[0][0]
    state = oracle.State(SAMPLES, medium)
    state.gains[:] = of(GALLERY, name, preset, [SHARP])[0][1] if name != "bvsa" else 0.5
    chosen = set()
    for _ in range(4):
        batch = random_batch()
        brain, brain_text, images, texts = *heads(method, batch.recordings), batch.images.numpy(), batch.texts.numpy()
        if name == "mcdb":
            inputs = {"brain": oracle.unit(brain), "image": images, "text": texts}
            expected, factors = oracle.mcdb(*(adapted(method, *each) for each in inputs.items()), 0.5, preset)
        elif name == "samga":
            both = mapped(method, brain, "brain_map", "shared_map"), mapped_images(method, images)
            expected = oracle.samga(*both, 0.9 - 0.4 * 5 / 19, preset)
        else:
            rule = getattr(oracle, name)
            expected = rule(state, batch.samples.numpy(), brain, brain_text, images, texts, preset, **changes)
        assert method(batch).item() == pytest.approx(expected, rel=1e-6)  # the scale starts as a float32
        if name == "mcdb":
            np.testing.assert_allclose(method.factors.numpy(), factors, rtol=1e-5)  # float32
        gain, kernel_size = method.blur(torch.arange(SAMPLES))
        # similarities of up to 15 in float32, to 1e-6, in units of a deviation above 0.2
        np.testing.assert_allclose(gain.numpy(), state.gains, atol=2e-5)
        np.testing.assert_allclose(kernel_size.numpy(), state.sizes, atol=2e-4)
        chosen |= set(zip(state.gains.tolist(), state.sizes.tolist()))
    exercised = name not in ("ubp", "bvsa") or len(chosen) > 1
    assert exercised, "no sample was outside the interval"
    assert kernel_size.is_floating_point() == bool(changes)


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_blur_levels_and_gate(name, preset):
    method = make(name, preset)
    sharp = [SHARP]
    assert set(method.training_levels()) == {Level(*each) for each in of(BLURRED, name, preset, sharp)}
    assert len(set(method.training_levels())) == len(method.training_levels())
    assert method.gallery_levels() == [Level(*each) for each in of(GALLERY, name, preset, sharp)]
    assert method.default_gate == of(GATE, name, preset, "none")


@pytest.mark.parametrize(("name", "preset"), CONTRASTED)
def test_scores_at_retrieval(name, preset, seed):
    method = make(name, preset).eval()
    recordings, texts = random_batch().recordings, random_batch().texts
    views = torch.stack([random_batch().images for _ in method.gallery_levels()])
    brain, brain_text = map(oracle.unit, heads(method, recordings))
    with torch.no_grad():
        ours = similarity(method.retrieval_embeddings(recordings, views, texts), Scoring(method.default_gate))
    views, texts = views.numpy(), texts.numpy()
    if name == "mcdb":
        brain = brain_text = adapted(method, "brain", brain)
        views, texts = np.stack([adapted(method, "image", view) for view in views]), adapted(method, "text", texts)
    if name == "samga":
        brain = brain_text = oracle.unit(mapped(method, heads(method, recordings)[0], "brain_map", "shared_map"))
        views, texts = np.stack([oracle.unit(mapped_images(method, view)) for view in views]), np.zeros_like(brain)
    expected = oracle.scores(brain, brain_text, views, texts, of(GATE, name, preset, "none"))
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)  # 16 and 48 terms in float32, none above 12


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_evaluation_leaves_the_state_alone(name, preset, seed):
    method = make(name, preset)
    method(random_batch())
    before = {key: value.clone() for key, value in method.named_buffers()}
    method.eval()
    method(random_batch())
    assert all(torch.equal(value, before[key]) for key, value in method.named_buffers())


def parameters(name: str, preset: str, width: int = 1024) -> int:
    head, scale = oracle.eeg_project(17, 250, width), 1
    return {
        "bvsa": (1 if preset == "paper" else 2) * head + scale,
        "mcdb": head + scale + 3 * (2 * width + (width + 1) * (width // 4) + (width // 4 + 1) * width),
        "bravl": oracle.bravl(17, 250, width, preset),
        "samga": oracle.eeg_project(17, 250, 1024) + scale + oracle.samga_maps([width], 1),
    }.get(name, head + scale)


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_numbers_of_parameters(name, preset):
    with torch.device("meta"):
        build = functools.partial(encoders.build, "eeg_project")
        method = methods.method_class(name)(method_options(name, preset), build, 10, InputSpec(17, 250, 1024))
    assert sum(parameter.numel() for parameter in method.parameters()) == parameters(name, preset)
    fixed = [key for key, parameter in method.named_parameters() if not parameter.requires_grad]
    assert fixed == (["logit_scale"] if name in ("nice", "samga") else [])


def test_published_numbers():
    """From methods.md, sections 5, 3 and 6."""
    assert parameters("ubp", "paper") == parameters("bvsa", "paper") == 5_404_673
    assert parameters("bvsa", "code") == parameters("bvsa", "corrected") == 10_809_345
    assert oracle.eeg_project(271, 201, 1024) + 1 == 56_830_977
    run = RunConfig()
    assert (run.optimiser, run.lr, run.weight_decay, run.batch_size, run.epochs) == ("adamw", 1e-4, 1e-4, 1024, 50)
    assert RunConfig(setting="inter").lr == 1e-5 and run.prompt == "A photo of a {object}."
    nice = {"encoder": "tsconv", "optimiser": "adam", "lr": 2e-4, "betas": (0.5, 0.999), "batch_size": 1000}
    nice |= {"epochs": 200, "validation": 740, "initial_std": 0.02}
    assert nice.items() <= training_of("nice").items()
    assert training_of("nice", "code") == {**training_of("nice"), "channels": "all", "selection": "validation"}
    atm = {"encoder": "atm", "optimiser": "adamw", "lr": 3e-4, "batch_size": 64, "epochs": 40, "average": False}
    assert atm.items() <= training_of("atm").items()
    atm |= {"weight_decay": 0.01, "channels": "all", "prompt": "This picture is {concept}"}
    assert training_of("atm", "code") == atm
    bravl = {"window": (0.07, 0.39), "weight_decay": 0.0, "lr": 1e-4, "batch_size": 1024}
    assert bravl.items() <= training_of("bravl").items() and method_options("bravl", "corrected").components == 100
    bravl |= {"optimiser": "adam", "encoder": "perceptron", "epochs": 500}
    assert training_of("bravl", "code") == bravl
    intra = {"target": "learned", "batch_size": 512, "epochs": 60, "augment": ["smooth"], "augment_once": True}
    inter = {"encoder": "tsconv", "channels": "all", "batch_size": 1024, "epochs": 50, "lr": 1e-4}
    for preset in ("corrected", "code"):
        assert training_of("samga", preset) == intra and training_of("samga", preset, "inter") == {**intra, **inter}
    shallow = {"projector": "linear", "select_layer": True, "batch_size": 1024, "epochs": 50, "lr": 1e-4}
    shallow |= {"optimiser": "adamw", "weight_decay": 1e-4, "encoder": "eeg_project", "channels": "standard"}
    for setting in ("intra", "inter"):
        assert shallow.items() <= vars(RunConfig.of("vanilla", preset="shallow", setting=setting)).items()
    rates = {(name, setting): RunConfig.of(name, preset="code", setting=setting).lr
             for name in ("vanilla", "ubp", "bvsa") for setting in ("intra", "inter")}  # fmt: skip
    assert rates == {each: 1e-5 if each in (("vanilla", "inter"), ("ubp", "inter")) else 1e-4 for each in rates}
    assert RunConfig.of("bvsa", preset="code").prompt == "A photo of a {concept}."
