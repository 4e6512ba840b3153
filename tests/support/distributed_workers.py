"""Training of small problems, by one process or several: what tests of training together compare."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import seed_everything
from torch import nn
from torch.nn.functional import normalize

from bvsa_core import encoders, methods
from bvsa_core.data.split import Split
from bvsa_core.distributed import processes
from bvsa_core.training.config import RunConfig
from bvsa_core.training.loop import fit, make_fabric
from bvsa_core.vision.multilevel import Fusion, MultiLevelViews
from bvsa_core.vision.views import Level

SAMPLES, BATCH = 35, 17  # the last batch has one sample, and the others cannot be shared out evenly


def losses(path: str, cases: list[tuple[str, str]], seed: int) -> None:
    """Write losses, per-sample state and running statistics of each (method, encoder)."""
    warnings.simplefilter("ignore")
    found = {}
    with processes.team() as team:
        for name, encoder in cases:
            found[f"{name} {encoder}"] = train(name, encoder, team, seed)
    if team.rank == 0:
        Path(path).write_text(json.dumps(found))


def train(name: str, encoder: str, team: processes.ProcessGroup, seed: int) -> dict:
    torch.manual_seed(seed)
    features = normalize(torch.randn(SAMPLES, 16), dim=1)
    texts = normalize(features + 0.3 * torch.randn(SAMPLES, 16), dim=1)
    names, whose = [str(i) for i in range(SAMPLES)], torch.arange(SAMPLES) % 2
    recordings = (features @ torch.randn(16, 3 * 151)).unflatten(1, (3, 151)) + 0.3 * torch.randn(SAMPLES, 3, 151)
    split = Split(recordings, torch.arange(SAMPLES), names, names, ["a", "b", "c"], 1, whose, ["sub-01", "sub-02"])
    config = RunConfig(method=name, encoder=encoder, epochs=3, batch_size=BATCH)  # at the published learning rate
    fabric = make_fabric(torch.device("cpu"), team, config.precision)
    seed_everything(seed, verbose=False)
    build = partial(encoders.build, encoder, options=config.encoder_options)
    method = methods.method_class(name)(config.method_options, build, SAMPLES, encoders.InputSpec(3, 151, 16, 2))
    method.encoder.spare = nn.Parameter(torch.ones(1))  # which nothing uses
    views = lambda indices, gain, kernel_size: features[indices] * (1 + gain[:, None])  # noqa: E731
    if name == "vanilla":
        method.fusion = Fusion([16], [Level(51, 0.5)])
        views = MultiLevelViews(method.fusion, views, lambda indices, *_: texts[indices])
    heard = []
    with processes.together(team):
        fit(method, split, views, texts, config, fabric, heard.append, held_out=(split, views))
    assert method.encoder.spare.item() == 1
    buffers = {key: value.tolist() for key, value in method.named_buffers() if "num_batches" not in key}
    fused = method.fusion.weights.tolist() if method.fusion else []
    return {
        "losses": [line["loss"] for line in heard],
        "held out": [line["validation_loss"] for line in heard],
        "fused": fused,
        **buffers,
    }


def gradients(path: str, seed: int) -> None:
    """Write gradients of a loss of gathered rows, with batch normalisation and dropout on the way."""
    with processes.team() as team, processes.together(team):
        torch.manual_seed(seed)
        x = torch.randn(7, 4, 5, dtype=torch.float64, requires_grad=True)
        layers = nn.Sequential(
            nn.Conv1d(4, 6, 2), nn.BatchNorm1d(6), nn.Dropout(0.4), nn.ELU(), nn.Dropout1d(0.3), nn.Flatten()
        ).double()
        rows = processes.share_out(layers, x, training=True)
        loss = (rows @ rows.T).square().sum() + rows.exp().mean()
        found = [
            gradient / team.size for gradient in torch.autograd.grad(loss, [x, *layers.parameters()])
        ]  # as DDP divides
        found = [torch.stack(team.gather(gradient)).sum(0) for gradient in found]
        after = torch.randn(())  # every process has drawn as many numbers
    if team.rank == 0:
        named = [*layers[1].buffers()][:2]
        Path(path).write_text(
            json.dumps([loss.item(), after.item(), *[each.flatten().tolist() for each in (rows, *named, *found)]])
        )


def refuses(path: str) -> str:
    """Random numbers that are not one for each sample."""
    with processes.team() as team, processes.together(team):
        processes.share_out(lambda part: part[:, 0] * torch.rand(()), torch.ones(4, 2), training=True)


def hears_once(path: str) -> int:
    """Processes that all fail, one of them first."""
    with processes.team() as team:
        if team.rank == 1:
            raise ValueError("process 1 is at its end")
        team.wait()
