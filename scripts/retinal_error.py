"""Print how far the levels of retinal_blur are from a Gaussian for every pixel: python scripts/retinal_error.py

Images of a display of 1080 x 1920 pixels, seen at 40 pixels per degree with the fixation in a corner, are blurred in
float64. At pixels drawn at random, the result is compared with the pixel's own sampled Gaussian, whose variance is the
one that the model asks for: a sampled Gaussian narrower than about 0.6 pixels has less than sigma^2. Errors are
fractions of the images' range, 0 to 1.
"""

from __future__ import annotations

import math

import numpy as np
import torch

import fovblur

HEIGHT, WIDTH, PIXELS_PER_DEGREE = 1080, 1920, 40.0
COUNTS = (4, 6, 8, 12, 16, 24, 32)
DRAWN = 2000  # pixels
RADIUS = 24  # of the dense Gaussians, at least four sigma


def images(random: np.random.RandomState) -> dict[str, np.ndarray]:
    """Return one image (HEIGHT, WIDTH) a kind."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = np.inf
    natural = np.fft.irfft2(np.fft.rfft2(random.standard_normal((HEIGHT, WIDTH))) / frequency, (HEIGHT, WIDTH))
    edges = np.zeros((HEIGHT, WIDTH))
    for _ in range(300):
        top, left, height, width = random.randint((HEIGHT, WIDTH, 200, 200))
        edges[top : top + height, left : left + width] = random.rand()
    return {
        "1/f noise": np.clip(0.5 + 0.2 * natural / natural.std(), 0, 1),
        "edges": edges,
        "white noise": random.rand(HEIGHT, WIDTH),
    }


def variance(distance: np.ndarray) -> np.ndarray:
    """Return the variance of the Gaussian that a pixel at a distance from the fixation needs, as the docs state it."""
    eccentricity = distance / PIXELS_PER_DEGREE
    cutoff = 2.3 * math.log(64) / (0.106 * (eccentricity + 2.3)) / PIXELS_PER_DEGREE  # cycles a pixel
    return math.log(2) / (2 * math.pi**2) * np.maximum(0, cutoff**-2 - 2**2)


def dense(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the image at some pixels, each blurred by a Gaussian of its own."""
    offsets = np.arange(-RADIUS, RADIUS + 1)
    wanted = variance(np.hypot(y, x))
    low, high = np.zeros(len(y)), np.sqrt(wanted) + 1
    for _ in range(60):
        sigma = (low + high) / 2
        taps = np.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
        taps /= taps.sum(1, keepdims=True)
        below = (taps * offsets**2).sum(1) < wanted
        low, high = np.where(below, sigma, low), np.where(below, high, sigma)
    padded = np.pad(image, RADIUS, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (len(offsets), len(offsets)))[y, x]
    return np.einsum("nij,ni,nj->n", windows, taps, taps)


def errors() -> dict[str, dict[int, np.ndarray]]:
    """Return the absolute errors at the pixels, by kind of image and number of levels."""
    random = np.random.RandomState(0)
    y, x = random.randint(HEIGHT, size=DRAWN), random.randint(WIDTH, size=DRAWN)
    found = {}
    for name, image in images(random).items():
        expected = dense(image, y, x)
        found[name] = {}
        for count in COUNTS:
            tensor = torch.from_numpy(image)[None, None]
            ours = fovblur.retinal_blur(tensor, (0, 0), pixels_per_degree=PIXELS_PER_DEGREE, levels=count)
            found[name][count] = np.abs(ours[0, 0].numpy()[y, x] - expected)
    return found


def table() -> str:
    """Return the largest and the mean error as a Markdown table."""
    found = errors()
    lines = [
        f"| levels | {' | '.join(f'{name}: largest | mean' for name in found)} |",
        f"|---|{'---|' * 2 * len(found)}",
    ]
    for count in COUNTS:
        cells = [f"{by[count].max():.1e} | {by[count].mean():.1e}" for by in found.values()]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
