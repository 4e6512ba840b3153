"""Logging of metrics to TensorBoard and Weights & Biases."""

import importlib.machinery
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest

from bvsa_core.errors import UserError
from bvsa_core.training.logs import logger

LINES = [{"epoch": epoch, "loss": 1 / epoch, "blur": {"k51 gain 0.5": epoch}} for epoch in (1, 2)]


def test_tensorboard_gets_every_number_of_every_epoch(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with logger("tensorboard", tmp_path / "run") as log:
        assert not (tmp_path / "run").exists()  # the run makes it
        for line in LINES:
            log(line)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "blur/k51 gain 0.5"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
    assert [event.value for event in events.Scalars("blur/k51 gain 0.5")] == [1, 2]


@pytest.mark.parametrize(("key", "mode"), [(None, "offline"), ("a key", None)])
def test_wandb_needs_no_network_and_begins_with_the_first_epoch(tmp_path, monkeypatch, key, mode):
    calls = []
    run = SimpleNamespace(log=lambda numbers, step: calls.append((step, numbers)), finish=lambda: calls.append("end"))
    wandb = ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    wandb.api = SimpleNamespace(api_key=key)
    wandb.init = lambda **arguments: calls.append(arguments) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with logger("wandb", tmp_path / "run") as log:
        assert not calls
        for line in LINES:
            log(line)
    assert calls[0] == {"project": "bvsa", "name": "run", "dir": tmp_path / "run", "mode": mode}
    assert calls[1:] == [(1, {"loss": 1.0, "blur/k51 gain 0.5": 1}), (2, {"loss": 0.5, "blur/k51 gain 0.5": 2}), "end"]
    calls.clear()
    with logger("wandb", tmp_path / "run"):
        pass
    assert not calls


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"--log {kind} needs {kind}; pip install 'fovblur\[{kind}\]'"):
        logger(kind, tmp_path).__enter__()
