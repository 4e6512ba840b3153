"""A whole training step of BVSA, with views made online and with views from a bank.

    python -m benchmarks.pipeline --device cuda --vision RN50 --memory-gb 10 --json FILE

Online, every image is blurred with its own parameters and encoded; a bank has the features of all levels. Random
weights are enough for time and memory. --memory-gb limits the GPU memory of the process. Each of the two is appended to
FILE as a line of JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.harness import clock_of, machine, peak_bytes, versions
from bvsa_core import encoders, methods
from bvsa_core.methods.base import Batch
from bvsa_core.training.config import method_options
from bvsa_core.vision.clip import load_clip
from bvsa_core.vision.views import BankedViews, OnlineViews

CHANNELS, SAMPLES = 17, 250


@dataclass(frozen=True)
class StepTiming:
    """Time and memory of one pipeline on one machine."""

    views: str  # "online" or "banked"
    vision: str
    batch: int
    step_s: float  # median of a whole training step
    blur_s: float | None  # the blur alone on the same images
    peak_bytes: int
    memory_cap_bytes: int | None
    machine: dict
    versions: dict


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--vision", default="RN50", help="a model of open_clip, or tiny")
    parser.add_argument("--batch", default=1024, type=int)
    parser.add_argument("--steps", default=5, type=int)
    parser.add_argument("--memory-gb", default=None, type=float, help="of GPU memory, 10^9 bytes each")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cap = None
    if args.memory_gb is not None and args.device.type == "cuda":
        cap = int(args.memory_gb * 1e9)
        total = torch.cuda.get_device_properties(args.device).total_memory
        torch.cuda.set_per_process_memory_fraction(cap / total, args.device)
    for timing in measure(args.device, args.vision, args.batch, args.steps, cap):
        line = json.dumps(asdict(timing))
        print(line, flush=True)
        if args.json:
            with args.json.open("a") as file:
                print(line, file=file)


def measure(device: torch.device, vision: str, batch: int, steps: int, cap: int | None) -> Iterator[StepTiming]:
    """Time the training steps of a batch whose images all have their own blur, then those with features of a bank."""
    torch.manual_seed(0)
    clip = load_clip(vision, None if vision == "tiny" else "random", device=device)
    images = torch.randint(0, 256, (batch, 3, clip.image_size, clip.image_size), dtype=torch.uint8, device=device)
    texts = clip.encode_texts(["A photo of a banana."]).expand(batch, -1)
    shape = encoders.InputSpec(CHANNELS, SAMPLES, texts.shape[1])
    build_encoder = functools.partial(encoders.build, "eeg_project")
    method = methods.method_class("bvsa")(method_options("bvsa", "corrected"), build_encoder, batch, shape).to(device)
    optimiser = torch.optim.AdamW(method.parameters())
    recordings, samples = torch.randn(batch, CHANNELS, SAMPLES, device=device), torch.arange(batch, device=device)
    gain = torch.rand(batch, device=device)
    kernel_size = torch.randint(22, 29, (batch,), device=device) * 2 + 1

    def step(views: OnlineViews | BankedViews, gain: torch.Tensor, kernel_size: torch.Tensor) -> None:
        loss = method(Batch(samples, recordings, views(samples, gain, kernel_size), texts))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    blurs_only = OnlineViews(clip, images)
    blurs_only.clip = _BlursOnly(clip)
    blur = _median(lambda: blurs_only(samples, gain, kernel_size), steps, device)
    levels = method.training_levels()
    features = torch.nn.functional.normalize(torch.randn(len(levels), *texts.shape, device=device), dim=-1)
    of_level = torch.tensor([(level.gain, level.kernel_size) for level in levels], device=device)[samples % len(levels)]
    made_online = functools.partial(step, OnlineViews(clip, images), gain, kernel_size)
    banked = functools.partial(step, BankedViews(features, levels), of_level[:, 0], of_level[:, 1].long())
    for name, one_step, blur_s in (("online", made_online, blur), ("banked", banked, None)):
        whole, peak = _median(one_step, steps, device), peak_bytes(one_step, device)
        yield StepTiming(name, clip.name, batch, whole, blur_s, peak, cap, machine(device), versions())


class _BlursOnly:
    """An encoder that takes no time."""

    def __init__(self, clip):
        self.device, self.mean, self.std = clip.device, clip.mean, clip.std

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0]


def _median(function: Callable[[], object], rounds: int, device: torch.device) -> float:
    function()
    clock, times = clock_of(device), []
    for _ in range(rounds):
        start = clock()
        function()
        times.append(clock() - start)
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    main()
