"""Every method learns, with every encoder, and repeats."""

import dataclasses

import pytest
import torch
from method_inputs import SMALLER

from bvsa_core import encoders, methods
from bvsa_core.errors import UserError
from bvsa_core.training.config import RunConfig, training_of


def config(method: str, **changes) -> RunConfig:
    options = methods.method_class(method).Options(**SMALLER.get(method, {}))
    settings = {"method": method, "method_options": options, "epochs": 12, "batch_size": 64, "lr": 4e-3}
    return RunConfig(**{**settings, **changes})


@pytest.mark.parametrize("name", methods.names())
def test_every_method_retrieves_novel_images(linear_problem, name):
    problem = linear_problem(4, 16)
    method = problem.make(config(name))
    losses = [line["loss"] for line in problem.train(method, config(name))]
    assert losses[-1] < losses[0]
    scores = problem.test(method)  # chance: 1 of 40
    assert scores.n == 40 and scores.top1 >= 0.5 and scores.top5 >= 0.8


@pytest.mark.parametrize("encoder", encoders.names())
def test_every_method_takes_every_encoder(linear_problem, encoder):
    problem = linear_problem(3, 151)
    for name in methods.names():
        chosen = config(name, encoder=encoder, epochs=2, batch_size=4)
        method = problem.make(chosen)
        before = {key: value.clone() for key, value in method.named_parameters()}
        lines = problem.train(method, chosen, samples=8)
        assert len(lines) == 2 and all(line["loss"] < float("inf") for line in lines), name
        moved = {key for key, value in method.named_parameters() if not torch.equal(value, before[key])}
        assert any(key.startswith("encoder.") for key in moved), name
        assert 0 < problem.test(method).median_rank <= 40, name


@pytest.mark.parametrize("name", ["mcdb", "bravl", "samga"])
def test_methods_that_draw_random_numbers_repeat(linear_problem, name, seed):
    problem = linear_problem(2, 8)
    weights = []
    for start in (seed, seed, seed + 1):
        torch.manual_seed(start)
        method = problem.make(config(name, epochs=1))
        problem.train(method, config(name, epochs=1))
        weights.append(torch.nn.utils.parameters_to_vector(method.parameters()))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", methods.names())
def test_published_trainings_are_settings_of_a_run(name):
    training = training_of(name)
    assert set(training) <= {field.name for field in dataclasses.fields(RunConfig)}
    made = RunConfig(method=name, **training)
    assert all(getattr(made, key) == value for key, value in training.items())


def test_the_configured_optimiser_is_used(linear_problem, monkeypatch):
    made = []
    for kind in ("AdamW", "Adam"):
        original = getattr(torch.optim, kind)
        spy = lambda *given, kind=original, **options: made.append((kind, options)) or kind(*given, **options)  # noqa: E731
        monkeypatch.setattr(torch.optim, kind, spy)
    problem = linear_problem(2, 8)
    for optimiser, betas in (("adamw", (0.9, 0.999)), ("adam", (0.5, 0.999))):
        chosen = config("vanilla", optimiser=optimiser, betas=betas, weight_decay=0.25, epochs=1)
        problem.train(problem.make(chosen), chosen, samples=8)
        kind, options = made[-1]
        assert kind.__name__.lower() == optimiser
        assert options == {"lr": 4e-3, "betas": betas, "weight_decay": 0.25, "fused": True}
    for wrong, message in (({"betas": (0.9, 1.0)}, "betas are"), ({"validation": -1}, "validation is -1")):
        with pytest.raises(UserError, match=message):
            config("vanilla", **wrong)
