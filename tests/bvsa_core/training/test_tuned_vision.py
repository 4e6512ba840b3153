"""Trainings of the image encoder with a method: beside plain PyTorch, reloaded, continued, and beside frozen runs."""

import math
import signal
from dataclasses import fields, replace

import pytest
import torch
from lightning_fabric import seed_everything
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize
from trainings import make_config

from bvsa_core.data.dataset import Dataset
from bvsa_core.decoder.estimator import Decoder
from bvsa_core.errors import UserError
from bvsa_core.training.checkpoint import Checkpointer, Stopped
from bvsa_core.training.config import RunConfig, RunDataConfig
from bvsa_core.training.embedding import embed
from bvsa_core.training.loop import batches, schedule, start_epoch
from bvsa_core.training.run import build_method, load_method, run, train
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.vision.clip import load_clip
from bvsa_core.vision.images import read_images

TUNED = {"vision_lora": 2, "vision_lr": 5e-3, "batch_size": 12, "chunk": 5}


@pytest.fixture(scope="module")
def run_data(tiny_data) -> RunData:
    return RunData(RunDataConfig(data=tiny_data, chunk=TUNED["chunk"]))


def tuned_config(run_data: RunData, **changes) -> RunConfig:
    return make_config(run_data, **{"method": "ubp", **TUNED, **changes})


def plain_features(model: nn.Module, updates: dict[str, Tensor], images: Tensor) -> Tensor:
    """Return features by the model of open_clip with W + B A in place of every weight W."""
    weights = dict(model.named_parameters())
    packed: dict[str, list[Tensor]] = {}
    for key in [name for name in updates if name.endswith("lora_A")]:
        name, delta = key.removesuffix("/lora_A").replace("/", "."), updates[key[:-1] + "B"] @ updates[key]
        parent, _, own = name.rpartition(".")
        if own in ("q", "k", "v"):
            packed.setdefault(f"{parent}.in_proj_weight", []).append(delta)
        else:
            name = f"{parent}.out_proj" if own == "out" else name
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + delta
    for name, deltas in packed.items():
        weights[name] = weights[name] + torch.cat(deltas)
    tower = {name.removeprefix("visual."): weight for name, weight in weights.items() if name.startswith("visual.")}
    return functional_call(model.visual, tower, images)


def test_training_is_that_of_plain_pytorch(run_data):
    options = {"method": "vanilla", "schedule": "cosine", "weight_decay": 0.05, "lr": 1e-3}
    config = tuned_config(run_data, **options, encoder_options={"dropout": 0.0})
    trained = train(config, run_data)
    split = trained.split
    seed_everything(config.seed, verbose=False)
    method = build_method(config, trained.shape, len(split), run_data)
    initial = {name: value.clone() for name, value in method.state_dict().items()}
    model, updates = load_clip("tiny").model, dict(method.vision.named_parameters())
    assert not any(weight.any() for name, weight in updates.items() if name.endswith("lora_B"))
    mean, std = (torch.tensor(each)[:, None, None] for each in (model.visual.image_mean, model.visual.image_std))
    pixels = read_images([run_data.dataset.image_path(name) for name in split.images], 224)
    brain, scale = method.encoder.train(), method.logit_scale
    groups = [[*brain.parameters(), scale], [*updates.values()]]
    optimisers = [torch.optim.AdamW(group, weight_decay=0.05) for group in groups]
    steps = [batches(len(split), 12, config.seed, epoch, torch.device("cpu")) for epoch in range(2)]
    steps = [samples for epoch in steps for samples in epoch]
    for step, samples in enumerate(steps):
        for optimiser, rate in zip(optimisers, (1e-3, 5e-3)):
            optimiser.zero_grad()
            optimiser.param_groups[0]["lr"] = rate * (1 + torch.cos(torch.tensor(torch.pi * step / len(steps)))) / 2
        features = plain_features(model, updates, (pixels[split.image_of[samples]] / 255 - mean) / std)
        logits = scale.exp() * normalize(brain(split.recordings[samples]), dim=1) @ normalize(features, dim=1).T
        to = torch.arange(len(samples))
        ((cross_entropy(logits, to) + cross_entropy(logits.T, to)) / 2).backward()
        for optimiser in optimisers:
            optimiser.step()
    expected, state = method.state_dict(), trained.method.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():  # Adam makes steps of rounding errors where a gradient is nearly 0
        assert (value - expected[name]).norm() <= 1e-3 * (expected[name] - initial[name]).norm(), name
    moved = max(weight.abs().max() for name, weight in updates.items() if name.endswith("lora_B"))
    assert moved > 0.01


def test_a_schedule_starts_from_the_rates_that_a_method_sets():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (2.0, 3.0)]
    optimiser, seen, rates = torch.optim.AdamW(groups), [], []

    class Freezes:  # a part, from the second of three epochs on
        epoch = 0

        def start_epoch(self, optimiser) -> None:
            seen.append([group["lr"] for group in optimiser.param_groups])
            if self.epoch == 1:
                optimiser.param_groups[1]["lr"] = 0.0

    for epoch in range(3):
        Freezes.epoch = epoch
        start_epoch(Freezes(), optimiser)
        for batch in range(2):
            schedule(optimiser, (epoch + batch / 2) / 3)
            rates.append([group["lr"] for group in optimiser.param_groups])
    halves = [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert rates == [[2 * half, 3 * half * (step < 2)] for step, half in enumerate(halves)]
    assert seen == [[2.0, 3.0], [2.0, 3.0], [2.0, 0.0]]  # without schedule


def test_a_run_is_reloaded_and_leaves_frozen_features_alone(run_data, tmp_path):
    frozen = make_config(run_data, chunk=None, views="banked", method="vanilla")
    data = replace(run_data.config, chunk=None)
    before = run(frozen, RunData(data), RunFolder(tmp_path / "before"))
    bank = {path: path.read_bytes() for path in (data.data / "Image_feature").rglob("*.*")}
    folder = RunFolder(tmp_path / "tuned")
    result = run(tuned_config(run_data), run_data, folder)
    assert result.protocol.encoder == "tiny with LoRA 2"
    assert {path: path.read_bytes() for path in (data.data / "Image_feature").rglob("*.*")} == bank
    assert run(replace(frozen, views="online"), run_data, RunFolder(tmp_path / "after")).ranks == before.ranks

    here = RunData(replace(folder.config(), device="cpu"))
    method = load_method(folder, here)
    assert folder.config().views == "online" and any(weight.any() for weight in method.vision.parameters())
    embeddings = embed(method, here.split("sub-01", "test"), here, ["sub-01"])
    saved = folder.embeddings()
    for each in fields(saved):
        torch.testing.assert_close(getattr(embeddings, each.name), getattr(saved, each.name), rtol=0, atol=1e-6)
    method.vision = None
    assert not torch.allclose(embed(method, here.split("sub-01", "test"), here, ["sub-01"]).image, saved.image)
    keys = {here.bank(["a"] * 0).key, here.bank_for_paths([], load_method(folder, here).vision).key}
    assert len(keys) == 2


def test_a_stopped_run_continues_to_the_same_bytes(run_data, tmp_path, monkeypatch):
    config = tuned_config(run_data, vision_dropout=0.2, precision="bf16-mixed", checkpoint_vision=True)
    run(config, run_data, RunFolder(tmp_path / "whole"))
    whole, stopped = Checkpointer.on_step_end, tmp_path / "stopped"

    def stop(self, state, *of) -> None:
        self.stopping = signal.SIGINT if (state.epoch, state.batch) == (0, 2) else None
        whole(self, state, *of)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Checkpointer, "on_step_end", stop)
        run(config, run_data, RunFolder(stopped))
    run(config, run_data, RunFolder(stopped))
    for name in ("weights.safetensors", "metrics.jsonl", "result.json"):
        assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_decoder_keeps_the_updates(tiny_data, tmp_path):
    data, settings = Dataset(tiny_data), {**TUNED, "epochs": 1, "device": "cpu", "bank": tmp_path / "bank"}
    decoder = Decoder("vanilla", "tiny", **settings).fit(data)
    loaded = Decoder.load(decoder.save(tmp_path / "saved"), bank=tmp_path / "bank", device="cpu")
    assert loaded.evaluate(data).ranks == decoder.evaluate(data).ranks
    assert loaded.result_.protocol.encoder == "tiny with LoRA 2"
    one, other = decoder.retrieve(data, top=3), loaded.retrieve(data, top=3)
    assert (one.rows == other.rows).all() and one.similarity == pytest.approx(other.similarity, abs=1e-6)
    loaded.method_.vision = None
    assert loaded.retrieve(data, top=3).similarity != pytest.approx(one.similarity, abs=1e-3)


def test_settings_that_train_nothing_are_refused(run_data):
    for settings, message in (
        ({"chunk": 5}, "chunk bounds the memory of gradients of images; give vision_lora or learn_blur"),
        ({"checkpoint_vision": True}, "checkpoint_vision is for an image encoder that is trained"),
        ({"vision_lora": 2, "method": "bravl"}, "vision_lora: method bravl gives images no gradient"),
        ({"vision_lora": -1}, "vision_lora is -1; it must be at least 0"),
        ({"vision_dropout": 1.0}, "vision_dropout is 1.0; it must be at least 0 and below 1"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
    ):
        with pytest.raises(UserError, match=message):
            RunConfig(**settings)
    with pytest.raises(UserError, match="target is an array of features; vision_lora trains an image encoder"):
        Decoder("vanilla", torch.eye(8).numpy(), vision_lora=2).fit(torch.randn(8, 4, 20).numpy(), range(8))


def test_a_loss_that_is_not_finite_names_every_learning_rate(run_data):
    shown = r"lower the learning rate, lr \(now \S+\) or vision_lr \(now 1e\+30\) or blur_lr \(now 0.02\)"
    with pytest.raises(UserError, match=shown):
        train(tuned_config(run_data, vision_lr=1e30, learn_blur="subject"), run_data)
