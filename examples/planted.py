"""Stand-ins for data of your own: images of coloured shapes, and recordings in which an image has left its trace."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bvsa_core import Recordings, write_subject

CHANNELS = ["P7", "P3", "Pz", "P4", "P8", "O1", "Oz", "O2"]
TIMES = np.arange(50) / 100  # seconds after the image appears
TRAINING, TEST = 60, 12  # images, each of a concept of its own


def draw(folder: Path, name: str, rng: np.random.Generator) -> np.ndarray:
    """Draw an image into a folder. Returns what of it a brain will answer to, its colours on a grid of 4 x 4."""
    image = Image.new("RGB", (96, 96), tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for shape in (pen.ellipse, pen.rectangle, pen.ellipse):
        x, y, size = [*rng.integers(0, 56, 2).tolist(), int(rng.integers(24, 56))]
        shape((x, y, x + size, y + size), fill=tuple(rng.integers(0, 256, 3).tolist()))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)
    return np.asarray(image.resize((4, 4), Image.Resampling.BOX), dtype=float).ravel() / 64 - 2


def record(seen: np.ndarray, repetitions: int, rng: np.random.Generator) -> np.ndarray:
    """Recordings (images, repetitions, channels, time) of what was seen (images, features)."""
    answer = np.random.default_rng(0).standard_normal((seen.shape[1], len(CHANNELS) * len(TIMES))) / np.sqrt(
        seen.shape[1]
    )
    shape = (len(seen), repetitions, len(CHANNELS), len(TIMES))
    return (seen @ answer).reshape(len(seen), 1, *shape[2:]) + rng.standard_normal(shape)


def store(folder: Path, subjects: int = 1) -> Path:
    """A data set of such images and recordings, as own_recordings.py makes it step by step."""
    rng = np.random.default_rng(0)
    splits = {"training": (TRAINING, 2), "test": (TEST, 8)}
    names = {
        split: [f"{split}_images/{split}{i:03d}/{split}{i:03d}_01.png" for i in range(count)]
        for split, (count, _) in splits.items()
    }
    seen = {split: np.stack([draw(folder / "Image_set", name, rng) for name in names[split]]) for split in splits}
    for number in range(1, subjects + 1):
        recorded = {split: record(seen[split], repetitions, rng) for split, (_, repetitions) in splits.items()}
        train, test = (
            Recordings(
                recorded[split], names[split], [Path(name).parent.name for name in names[split]], CHANNELS, TIMES
            )
            for split in splits
        )
        write_subject(folder, f"sub-{number:02d}", train, test, "standardised")
    return folder
