"""Images of the synthetic data set, rendered by processes that start fast because nothing here imports torch."""

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from bvsa_core.progress import Progress
from bvsa_core.stopping import exit_with_parent

IMAGE_SIZE = 224  # pixels
MAX_SERIAL_IMAGES = 60  # more are rendered by several processes
IMAGE_STREAM = 0  # of random numbers: no part of the data depends on how many another part draws


@dataclass(frozen=True)
class ImageSpec:
    """An image to be rendered."""

    path: str  # relative to the image folder
    concept: str
    concept_number: int  # within the split
    drawing: int  # index into openmoji.concepts()
    svg: str  # its file
    take: int  # number of the image within the concept


Plan = dict[str, list[ImageSpec]]  # by split


def write_images(folder: Path, plan: Plan, seed: int, progress: Progress) -> None:
    """Render all images of a plan into a folder, by several processes if there are many."""
    images = sorted(itertools.chain(*plan.values()), key=lambda image: image.drawing)  # a worker draws each once
    for image in images:
        (folder / image.path).parent.mkdir(parents=True, exist_ok=True)
    write_image = partial(_write_image, folder=folder, seed=seed)
    with ExitStack() as stack:
        written: Iterator[None] = map(write_image, images)
        if len(images) > MAX_SERIAL_IMAGES:
            pool = stack.enter_context(ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), exit_with_parent))
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # so that Ctrl-C waits for no other image
            written = pool.map(write_image, images, chunksize=40)
        for done, _ in enumerate(written, start=1):
            progress("images", done, len(images))


def _write_image(spec: ImageSpec, folder: Path, seed: int) -> None:
    from bvsa_core.synthetic import openmoji

    rng = np.random.default_rng([seed, IMAGE_STREAM, spec.drawing, spec.take])
    image = openmoji.render(openmoji.Concept(spec.concept, spec.svg), rng, IMAGE_SIZE)
    Image.fromarray(image).save(folder / spec.path, quality=95)
