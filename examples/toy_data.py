"""Toy data: images of coloured shapes, and simulated recordings that depend on them."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bvsa_core import Recordings, write_subject

CHANNELS = ["P7", "P3", "Pz", "P4", "P8", "O1", "Oz", "O2"]
TIMES = np.arange(50) / 100  # seconds after image onset
SPLITS = {"training": (60, 2), "test": (12, 8)}  # images (each of its own concept), repetitions


def draw_image(path: Path, rng: np.random.Generator) -> np.ndarray:
    """Draw an image and save it. Returns its features (48,): the colours of a 4 x 4 grid."""
    image = Image.new("RGB", (96, 96), tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for shape in (pen.ellipse, pen.rectangle, pen.ellipse):
        x, y, size = [*rng.integers(0, 56, 2).tolist(), int(rng.integers(24, 56))]
        shape((x, y, x + size, y + size), fill=tuple(rng.integers(0, 256, 3).tolist()))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return np.asarray(image.resize((4, 4), Image.Resampling.BOX), dtype=float).ravel() / 64 - 2


def simulate(features: np.ndarray, repetitions: int, rng: np.random.Generator) -> np.ndarray:
    """Simulate recordings (images, repetitions, channels, time): a linear map of features (images, F), plus noise."""
    images, count = features.shape
    mixing = np.random.default_rng(0).standard_normal((count, len(CHANNELS) * len(TIMES))) / np.sqrt(count)
    response = (features @ mixing).reshape(images, 1, len(CHANNELS), len(TIMES))
    return response + rng.standard_normal((images, repetitions, len(CHANNELS), len(TIMES)))


def make_store(folder: Path, subjects: int = 1) -> Path:
    """Write a data set of such images and recordings; own_recordings.py shows the steps."""
    rng = np.random.default_rng(0)
    names = {s: [f"{s}_images/{s}{i:03d}/{s}{i:03d}_01.png" for i in range(count)] for s, (count, _) in SPLITS.items()}
    features = {s: np.stack([draw_image(folder / "Image_set" / name, rng) for name in names[s]]) for s in SPLITS}
    for number in range(1, subjects + 1):
        splits = []
        for split, (_, repetitions) in SPLITS.items():
            concepts = [Path(name).parent.name for name in names[split]]
            data = simulate(features[split], repetitions, rng)
            splits.append(Recordings(data, names[split], concepts, CHANNELS, TIMES))
        write_subject(folder, f"sub-{number:02d}", *splits, "standardised")
    return folder
