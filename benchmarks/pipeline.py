"""A whole training step of BVSA, with views made online and with views from a bank, or with a trained image encoder.

    python -m benchmarks.pipeline --device cuda --vision RN50 --memory-gb 10 --json FILE
    python -m benchmarks.pipeline --device cuda --vision ViT-B-32 --lora 32 --chunk 128 --memory-gb 10 --json FILE

Online, every image is blurred with its own parameters and encoded; a bank has the features of all levels. With --lora,
the image encoder is trained by updates of that rank, so that its backward pass runs in the step too; with --chunk, blur
and forward pass run twice. Random weights are enough for time and memory. --memory-gb limits the GPU memory of the
process. Each pipeline is appended to FILE as a line of JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.harness import clock_of, machine, peak_bytes, versions
from bvsa_core import encoders, methods
from bvsa_core.methods.base import Batch
from bvsa_core.training.config import method_options
from bvsa_core.vision.clip import load_clip
from bvsa_core.vision.tuned import TunedVision
from bvsa_core.vision.views import BankedViews, OnlineViews

CHANNELS, SAMPLES = 17, 250


@dataclass(frozen=True)
class StepTiming:
    """Time and memory of one pipeline on one machine."""

    views: str  # "online", "banked", or "lora": online, with a trained image encoder
    vision: str
    batch: int
    step_s: float  # median of a whole training step
    blur_s: float | None  # the blur alone on the same images
    blur_share: float | None  # of a step: as often as the step blurs
    peak_bytes: int | None  # of a trained image encoder measured on GPUs alone
    lora: int | None  # rank
    chunk: int | None
    memory_cap_bytes: int | None
    machine: dict
    versions: dict


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--vision", help="a model of open_clip, or tiny; default: RN50, or ViT-B-32 with --lora")
    parser.add_argument("--lora", type=int, help="train the image encoder by updates of this rank")
    parser.add_argument(
        "--chunk", type=int, help="images encoded at a time with a graph; it bounds the memory of activations"
    )
    parser.add_argument("--checkpoint", action="store_true", help="keep the inputs of the encoder's blocks alone")
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
    if args.lora:
        tuned = args.lora, args.chunk, args.checkpoint
        timings = measure_tuned(args.device, args.vision or "ViT-B-32", args.batch, args.steps, cap, *tuned)
    else:
        timings = measure(args.device, args.vision or "RN50", args.batch, args.steps, cap)
    for timing in timings:
        if timing.peak_bytes is None:
            print("peak memory is not measured on a CPU", file=sys.stderr)
        line = json.dumps(asdict(timing))
        print(line, flush=True)
        if args.json:
            with args.json.open("a") as file:
                print(line, file=file)


class _Pipeline:
    """BVSA with its optimiser, an image encoder, and a batch with a blur for each image."""

    def __init__(self, device: torch.device, vision: str, batch: int):
        torch.manual_seed(0)
        self.clip = load_clip(vision, None if vision == "tiny" else "random", device=device)
        size = self.clip.image_size
        self.images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
        self.texts = self.clip.encode_texts(["A photo of a banana."]).expand(batch, -1)
        shape = encoders.InputSpec(CHANNELS, SAMPLES, self.texts.shape[1])
        build = functools.partial(encoders.build, "eeg_project")
        kind = methods.method_class("bvsa")
        self.method = kind(method_options("bvsa", "corrected"), build, batch, shape).to(device)
        self.recordings = torch.randn(batch, CHANNELS, SAMPLES, device=device)
        self.samples = torch.arange(batch, device=device)
        self.gain = torch.rand(batch, device=device)
        self.kernel_size = torch.randint(22, 29, (batch,), device=device) * 2 + 1

    def step(
        self,
        optimiser: torch.optim.Optimizer,
        views: OnlineViews | BankedViews,
        gain: torch.Tensor,
        kernel_size: torch.Tensor,
    ) -> None:
        images = views(self.samples, gain, kernel_size)
        self.method(Batch(self.samples, self.recordings, images, self.texts)).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def blur_s(self, steps: int, device: torch.device) -> float:
        """Return the time of the blur alone."""
        blurs_only = OnlineViews(self.clip, self.images)
        blurs_only.clip = _BlursOnly(self.clip)
        return _median(lambda: blurs_only(self.samples, self.gain, self.kernel_size), steps, device)


def measure(device: torch.device, vision: str, batch: int, steps: int, cap: int | None) -> Iterator[StepTiming]:
    """Time the training steps of a batch with a blur for each image, then those with features of a bank."""
    made = _Pipeline(device, vision, batch)
    blur = made.blur_s(steps, device)
    step = functools.partial(made.step, torch.optim.AdamW(made.method.parameters()))
    levels = made.method.training_levels()
    features = torch.nn.functional.normalize(torch.randn(len(levels), *made.texts.shape, device=device), dim=-1)
    of_level = torch.tensor([(level.gain, level.kernel_size) for level in levels], device=device)
    of_level = of_level[made.samples % len(levels)]
    made_online = functools.partial(step, OnlineViews(made.clip, made.images), made.gain, made.kernel_size)
    banked = functools.partial(step, BankedViews(features, levels), of_level[:, 0], of_level[:, 1].long())
    for name, one_step, blur_s in (("online", made_online, blur), ("banked", banked, None)):
        whole, peak = _median(one_step, steps, device), peak_bytes(one_step, device)
        share = None if blur_s is None else blur_s / whole
        about = peak, None, None, cap, machine(device), versions()
        yield StepTiming(name, made.clip.name, batch, whole, blur_s, share, *about)


def measure_tuned(
    device: torch.device,
    vision: str,
    batch: int,
    steps: int,
    cap: int | None,
    rank: int,
    chunk: int | None,
    checkpoint: bool,
) -> Iterator[StepTiming]:
    """Time the training steps of the same batch and of the image encoder."""
    made = _Pipeline(device, vision, batch)
    tuned = TunedVision(made.clip, rank, checkpoint_blocks=checkpoint)
    optimiser = torch.optim.AdamW([*made.method.parameters(), *tuned.parameters()])
    views = OnlineViews(tuned.encoder, made.images, chunk=chunk)
    step = functools.partial(made.step, optimiser, views, made.gain, made.kernel_size)
    blur, whole = made.blur_s(steps, device), _median(step, steps, device)
    peak = peak_bytes(step, device) if device.type == "cuda" else None
    share = blur * (1 if chunk is None else 2) / whole
    about = peak, rank, chunk, cap, machine(device), versions()
    yield StepTiming("lora", made.clip.name, batch, whole, blur, share, *about)


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
