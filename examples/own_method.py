"""Your own method in one file: its options, its loss, the blur of each sample, and the state it keeps per sample."""

# %% The method: images start blurred and become sharp during training; samples that are retrieved well count less
from dataclasses import dataclass
from pathlib import Path

import torch
import toy_data
from torch import Tensor
from torch.nn.functional import cross_entropy

import bvsa_core


@dataclass(frozen=True)
class Options:
    """Options of the method, which are also flags of the command: --method_options.patience 0.5"""

    patience: float = 0.5
    """Fraction of training after which images are sharp."""
    focus: float = 1.0
    """How much a well retrieved sample loses weight; 0 weighs all samples alike."""


@bvsa_core.register_method("sharpening")
class Sharpening(bvsa_core.Contrastive):
    Options = Options
    TABLE_NOTE = "from blurred to sharp"  # shown beside its results in every table

    def __init__(self, options: Options, build_encoder, samples: int, shape: bvsa_core.InputSpec):
        super().__init__(options, build_encoder, samples, shape)
        self.register_buffer("weight", torch.ones(samples))  # per-sample state, saved with the weights

    def training_levels(self) -> list[bvsa_core.Level]:
        return [bvsa_core.Level(1, 0.0), bvsa_core.Level(25, 0.5)]  # (kernel size in pixels, gain): sharp and blurred

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
            probability = logits.detach().softmax(dim=1).diagonal()
            self.weight[batch.samples] = (1 - probability) ** self.options.focus
        loss = cross_entropy(logits, labels, reduction="none") + cross_entropy(logits.T, labels, reduction="none")
        return (weight * loss).sum() / (2 * weight.sum().clamp(min=1e-6))


# %% Compare it with a built-in method on the same data
store = toy_data.make_store(Path("bvsa_data/own_method"))
shared = {"data": store, "channels": "all", "epochs": 20, "batch_size": 30, "lr": 1e-3, "device": "cpu"}
run_data = bvsa_core.RunData(bvsa_core.RunDataConfig(data=store, channels="all", device="cpu"))
for name in ("vanilla", "sharpening"):
    folder = bvsa_core.RunFolder(f"bvsa_runs/own_method/{name}")
    result = bvsa_core.run(bvsa_core.RunConfig.of(name, **shared), run_data, folder)
    print(f"{name}: Top-5 {result.scores.top5:.0%}, mAP {result.scores.map:.0%} {result.note}")

# %% The folder of a run stores the method's name, so any program that registers the class can load it
method = bvsa_core.load_method(bvsa_core.RunFolder("bvsa_runs/own_method/sharpening"), run_data)
print(f"weights of samples after training: {method.weight.min():.2f} to {method.weight.max():.2f}")
