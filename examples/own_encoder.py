"""Your own brain encoder: a module from recordings (B, channels, time) to embeddings (B, D), used by any method."""

# %% The encoder. One that is a class takes a Shape and its options; a function that returns a module does as well
from dataclasses import dataclass
from pathlib import Path

import planted
import torch
from torch import Tensor, nn

import bvsa_core


@dataclass(frozen=True)
class Options:
    """What can be set, as flags of the command too: --encoder_options.width 32"""

    width: int = 32
    dropout: float = 0.1


@bvsa_core.register_encoder("attention_pool", Options)
class AttentionPool(nn.Module):
    def __init__(self, shape: bvsa_core.InputSpec, options: Options):
        super().__init__()
        self.over_time = nn.Conv1d(shape.channels, options.width, kernel_size=9, padding=4)
        self.attention = nn.Conv1d(options.width, 4, kernel_size=1)  # four ways of weighing time points
        self.project = nn.Sequential(nn.Dropout(options.dropout), nn.Linear(4 * options.width, shape.embedding))

    def forward(self, recordings: Tensor) -> Tensor:
        states = self.over_time(recordings).relu()  # (B, width, time)
        weights = self.attention(states).softmax(dim=2)  # (B, 4, time)
        return self.project((states @ weights.transpose(1, 2)).flatten(1))


# %% Two encoders under one method and the same data, by the same figures
store = planted.store(Path("bvsa_data/own_encoder"))
shared = {
    "data": store,
    "channels": "all",
    "method": "vanilla",
    "epochs": 15,
    "batch_size": 30,
    "lr": 3e-3,
    "device": "cpu",
}
configs = [
    bvsa_core.RunConfig(**shared, encoder="eeg_project"),
    bvsa_core.RunConfig(**shared, encoder="attention_pool", encoder_options=Options(width=48)),
]
run_data = bvsa_core.RunData(configs[0])
for config in configs:
    trained = bvsa_core.train(config, run_data, lambda metrics: None)  # which may print or plot the loss of every epoch
    found = bvsa_core.evaluate(trained, config, run_data)
    parameters = sum(weight.numel() for weight in trained.method.encoder.parameters())
    print(
        f"{config.encoder}: {parameters:,} parameters, Top-5 {found.scores.top5:.0%}, median rank {found.scores.median_rank:g}"
    )
    assert torch.isfinite(found.embeddings.brain_image).all()

# %% From the command line: a file of the first cell and the line `raise SystemExit(bvsa_core.cli.main())`, with bvsa_core.cli
# imported, is the command `bvsa` with one encoder more: python FILE train --encoder attention_pool --encoder_options.width 48 ...
