"""Your own brain encoder: a module from recordings (B, channels, time) to embeddings (B, D), for any method."""

# %% The encoder: a class that takes an InputSpec and its options, or a function that returns a module
from dataclasses import dataclass
from pathlib import Path

import torch
import toy_data
from torch import Tensor, nn

import bvsa_core


@dataclass(frozen=True)
class Options:
    """Options of the encoder, which are also flags of the command: --encoder_options.width 32"""

    width: int = 32
    dropout: float = 0.1


@bvsa_core.register_encoder("attention_pool", Options)
class AttentionPool(nn.Module):
    def __init__(self, shape: bvsa_core.InputSpec, options: Options):
        super().__init__()
        self.over_time = nn.Conv1d(shape.channels, options.width, kernel_size=9, padding=4)
        self.attention = nn.Conv1d(options.width, 4, kernel_size=1)  # four heads, each with its weights over time
        self.project = nn.Sequential(nn.Dropout(options.dropout), nn.Linear(4 * options.width, shape.embedding))

    def forward(self, recordings: Tensor) -> Tensor:
        states = self.over_time(recordings).relu()  # (B, width, time)
        weights = self.attention(states).softmax(dim=2)  # (B, 4, time)
        return self.project((states @ weights.transpose(1, 2)).flatten(1))


# %% Compare two encoders, with the same method and the same data
store = toy_data.make_store(Path("bvsa_data/own_encoder"))
shared = {"data": store, "channels": "all", "method": "vanilla", "epochs": 15, "batch_size": 30, "lr": 3e-3}
configs = [
    bvsa_core.RunConfig(**shared, encoder="eeg_project", device="cpu"),
    bvsa_core.RunConfig(**shared, encoder="attention_pool", encoder_options=Options(width=48), device="cpu"),
]
run_data = bvsa_core.RunData(configs[0])
for config in configs:
    trained = bvsa_core.train(config, run_data, lambda metrics: None)  # print or plot the loss of every epoch here
    result = bvsa_core.evaluate(trained, config, run_data)
    parameters = sum(weight.numel() for weight in trained.method.encoder.parameters())
    scores = f"Top-5 {result.scores.top5:.0%}, median rank {result.scores.median_rank:g}"
    print(f"{config.encoder}: {parameters:,} parameters, {scores}")
    assert torch.isfinite(result.embeddings.brain_image).all()

# %% From the command line: put the first cell and the two lines
#
#     from bvsa_core.cli import main
#     raise SystemExit(main())
#
# into a file. It is then the command `bvsa` with one more encoder:
# python FILE train --encoder attention_pool --encoder_options.width 48 ...
