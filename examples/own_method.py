"""Your own method in one file: its options, its loss, which blur a sample is seen with next, and what it retrieves with."""

# %% The method: images start blurred and sharpen over training, and a sample that is already found is weighted down
from dataclasses import dataclass
from pathlib import Path

import planted
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import bvsa_core


@dataclass(frozen=True)
class Options:
    """What can be set, as flags of the command too: --method_options.patience 0.5"""

    patience: float = 0.5
    """The part of training after which images are seen sharp."""
    focus: float = 1.0
    """How much a sample loses weight when its image is found; 0 weighs all alike."""


@bvsa_core.register_method("sharpening")
class Sharpening(bvsa_core.Contrastive):
    Options = Options
    TABLE_NOTE = "from blurred to sharp"  # stands beside its figures in every table

    def __init__(self, options: Options, build_encoder, samples: int, shape: bvsa_core.InputSpec):
        super().__init__(options, build_encoder, samples, shape)
        self.register_buffer("weight", torch.ones(samples))  # per-sample state, kept with the weights

    def training_levels(self) -> list[bvsa_core.Level]:
        return [
            bvsa_core.Level(1, 0.0),
            bvsa_core.Level(25, 0.5),
        ]  # (kernel size in pixels, gain): all that blur asks for

    def blur(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        sharp = self.epoch >= self.options.patience * self.epochs
        level = self.training_levels()[0 if sharp else 1]
        return torch.full(samples.shape, level.gain), torch.full(samples.shape, level.kernel_size)

    def forward(self, batch: bvsa_core.Batch) -> Tensor:
        brain, _ = self.embed(batch.recordings, batch.subjects)
        logits = self.logit_scale.exp() * brain @ batch.images.T
        labels = torch.arange(len(logits), device=logits.device)
        weight = self.weight[batch.samples]
        if self.training:
            found = logits.detach().softmax(dim=1).diagonal()
            self.weight[batch.samples] = (1 - found) ** self.options.focus
        loss = cross_entropy(logits, labels, reduction="none") + cross_entropy(logits.T, labels, reduction="none")
        return (weight * loss).sum() / (2 * weight.sum().clamp(min=1e-6))


# %% Beside a method that is shipped, on the same data
store = planted.store(Path("bvsa_data/own_method"))
shared = {"data": store, "channels": "all", "epochs": 20, "batch_size": 30, "lr": 1e-3, "device": "cpu"}
run_data = bvsa_core.RunData(bvsa_core.RunDataConfig(data=store, channels="all", device="cpu"))
for name in ("vanilla", "sharpening"):
    config = bvsa_core.RunConfig.of(name, **shared)
    folder = bvsa_core.RunFolder(f"bvsa_runs/own_method/{name}")
    result = bvsa_core.run(config, run_data, folder)
    print(f"{name}: Top-5 {result.scores.top5:.0%}, mAP {result.scores.map:.0%} {result.note}")

# %% What a run leaves names the method, so its folder is read wherever the class is registered
again = bvsa_core.load_method(bvsa_core.RunFolder("bvsa_runs/own_method/sharpening"), run_data)
print(f"weights of samples after training: {again.weight.min():.2f} to {again.weight.max():.2f}")
