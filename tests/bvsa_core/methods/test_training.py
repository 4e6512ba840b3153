"""Every method learns what can be learnt, with every encoder, and repeats."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bvsa_core import encoders, methods
from bvsa_core.errors import UserError
from bvsa_core.training.config import RunConfig, training_of

SMALLER = {"bravl": {"hidden": 64, "draws": 2}}


def config(method: str, **changes) -> RunConfig:
    options = methods.method_class(method).Options(**SMALLER.get(method, {}))
    return RunConfig(
        **{"method": method, "method_options": options, "epochs": 12, "batch_size": 64, "lr": 4e-3, **changes}
    )


@pytest.mark.parametrize("name", methods.names())
def test_every_method_finds_novel_images_by_what_it_has_learnt(planted, name):
    problem = planted(4, 16)
    method = problem.make(config(name))
    losses = [line["loss"] for line in problem.train(method, config(name))]
    assert losses[-1] < losses[0]
    found = problem.test(method)  # chance: 1 of 40
    assert found.n == 40 and found.top1 >= 0.5 and found.top5 >= 0.8


@pytest.mark.parametrize("encoder", encoders.names())
def test_every_method_takes_every_encoder(planted, encoder):
    problem = planted(3, 151)
    for name in methods.names():
        chosen = config(name, encoder=encoder, epochs=2, batch_size=4)
        method = problem.make(chosen)
        before = {key: value.clone() for key, value in method.named_parameters()}
        lines = problem.train(method, chosen, samples=8)
        assert len(lines) == 2 and all(line["loss"] < float("inf") for line in lines), name
        moved = {key for key, value in method.named_parameters() if not torch.equal(value, before[key])}
        assert any(key.startswith("encoder.") for key in moved), name
        assert 0 < problem.test(method).median_rank <= 40, name


@pytest.mark.parametrize("name", ["mcdb", "bravl"])
def test_methods_that_draw_random_numbers_repeat(planted, name, seed):
    problem = planted(2, 8)
    weights = []
    for start in (seed, seed, seed + 1):
        torch.manual_seed(start)
        method = problem.make(config(name, epochs=1))
        problem.train(method, config(name, epochs=1))
        weights.append(torch.nn.utils.parameters_to_vector(method.parameters()))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", methods.names())
def test_the_training_of_a_method_is_known_to_a_run(name):
    training = training_of(name)
    assert set(training) <= {field.name for field in dataclasses.fields(RunConfig)}
    made = RunConfig(method=name, **training)
    assert all(getattr(made, key) == value for key, value in training.items())


def test_the_optimiser_is_the_one_that_is_asked_for(planted, monkeypatch):
    made = []
    for kind in ("AdamW", "Adam"):
        known = getattr(torch.optim, kind)
        monkeypatch.setattr(
            torch.optim,
            kind,
            lambda *given, known=known, **named: made.append((known, named)) or known(*given, **named),
        )
    problem = planted(2, 8)
    for optimiser, betas in (("adamw", (0.9, 0.999)), ("adam", (0.5, 0.999))):
        chosen = config("vanilla", optimiser=optimiser, betas=betas, weight_decay=0.25, epochs=1)
        problem.train(problem.make(chosen), chosen, samples=8)
        known, named = made[-1]
        assert known.__name__.lower() == optimiser and named == {
            "lr": 4e-3,
            "betas": betas,
            "weight_decay": 0.25,
            "fused": True,
        }
    for wrong, message in (({"betas": (0.9, 1.0)}, "betas are"), ({"validation": -1}, "validation is -1")):
        with pytest.raises(UserError, match=message):
            config("vanilla", **wrong)
