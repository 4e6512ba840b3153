"""Synthetic data set: images and recordings made on this machine, in the layout of UBP and BVSA.

Forward model, which every number from this data set assumes: an eye fixates the centre of an image and sees it
foveated and low-passed at three scales. At each scale, opponent colours and local contrast are pooled on a grid, with
more weight near the fixation, and drive saturating units through random weights. Every unit responds with a damped
biphasic wave, coarse scales earlier than fine ones. A subject's channels mix the units, partly as in all subjects; a
trial scales the response by a random gain and adds 1/f noise, correlated between channels, with an alpha rhythm. The
model knows no words, no categories, and no encoder.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import scipy.fft
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

import fovblur
from bvsa_core.data import things_eeg, things_meg
from bvsa_core.data.dataset import (
    DESCRIPTION,
    IMAGE_FOLDERS,
    RECORDINGS_FOLDER,
    SYNTHETIC,
    Recordings,
    write_recordings,
)
from bvsa_core.errors import UserError, changes, first_few, unknown_name
from bvsa_core.io.atomic import (
    clean_stale,
    is_temporary,
    lock,
    make_folder,
    refuse_links,
    remove_temporary,
    write_atomically,
)
from bvsa_core.io.text_files import flatten, read_json
from bvsa_core.progress import Progress, no_progress
from bvsa_core.synthetic.images import IMAGE_STREAM, ImageSpec, Plan, write_images

SCALES = ((2.0, 2, 16), (5.0, 4, 10), (10.0, 8, 6))  # (sigma in pixels, stride in pixels, side of the grid)
UNITS_PER_SCALE = 24
LATENCIES = (0.17, 0.13, 0.09)  # seconds, one per scale
FACTS = {"eeg": things_eeg, "meg": things_meg}
# Streams of random numbers after that of the images.
_CORTEX, _SUBJECT, _TRIALS = range(1, 4)
_OF_MODALITY: Any = None  # replaced by the published data set's size


@dataclass(frozen=True)
class SyntheticConfig:
    """How much of the synthetic data set to make, and how noisy."""

    modality: Literal["eeg", "meg"] = "eeg"
    """Shape of the recordings: 'eeg' as in THINGS-EEG, 'meg' as in THINGS-MEG."""
    subjects: int = 2
    """Number of subjects; they differ in topography, latencies and noise."""
    train_concepts: int = 600
    """Concepts with training images."""
    images_per_concept: int = _OF_MODALITY
    """Training images of a concept; default: 10 for EEG, 12 for MEG."""
    train_repetitions: int = _OF_MODALITY
    """Repetitions of a training image; default: 4 for EEG, 1 for MEG."""
    test_concepts: int = 200
    """Concepts of the test set, one image each, none of them a training concept."""
    test_repetitions: int = _OF_MODALITY
    """Repetitions of a test image; default: 80 for EEG, 12 for MEG."""
    channels: str = "standard"
    """'standard' (17 occipital and parietal electrodes) or 'all' (63); for MEG both are all 271 sensors."""
    samples: int = _OF_MODALITY
    """Time points of an epoch from image onset; default: 250 at 250 Hz for EEG, 201 at 200 Hz for MEG."""
    signal_to_noise: float = 0.15
    """Ratio of the standard deviations of response and noise in a single trial."""
    seed: int = 0
    """Seed of all random numbers."""

    def __post_init__(self) -> None:
        if self.modality not in FACTS:
            raise UserError(unknown_name("modality", self.modality, FACTS))
        sizes = ("images_per_concept", "train_repetitions", "test_repetitions")
        for name in (*sizes, "samples"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(self.facts, name.upper()))
        for name in ("subjects", "train_concepts", "test_concepts", *sizes):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.samples < 50:
            raise UserError(f"samples is {self.samples}; an epoch needs at least 50 (0.2 s of EEG)")
        if self.channels not in ("standard", "all"):
            raise UserError(f"channels is {self.channels!r}; choose 'standard' or 'all'")
        if not self.signal_to_noise > 0:
            raise UserError(f"signal_to_noise is {self.signal_to_noise}; it must be positive")

    @property
    def facts(self) -> ModuleType:
        """Sizes and names of the published data set of the modality."""
        return FACTS[self.modality]

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels."""
        occipital = (self.modality, self.channels) == ("eeg", "standard")
        return things_eeg.OCCIPITAL_CHANNELS if occipital else self.facts.CHANNELS


def make_dataset(root: str | Path, config: SyntheticConfig, progress: Progress = no_progress) -> None:
    """Write the data set, or the missing parts of it, into a folder.

    Every subfolder appears under its final name only when it is complete; the same call again continues.

    Raises:
        UserError: the folder holds something else, or there are not enough concepts.
    """
    root = Path(root)
    description = {"name": SYNTHETIC, "modality": config.modality.upper(), "config": asdict(config)}
    path, remedy = root / DESCRIPTION, "choose another folder or delete it"
    images, recordings = root / IMAGE_FOLDERS[0], root / RECORDINGS_FOLDER
    subjects = {number: recordings / f"sub-{number:02d}" for number in range(1, config.subjects + 1)}
    if path.exists():
        if (held := read_json(path, f"{root}: {remedy}")) != description:
            other = [each.removeprefix("config.") for each in changes(flatten(held), flatten(description))]
            problem = f"holds a data set made with other settings: {first_few(other)}"
            raise UserError(f"{root}: {problem}; {remedy}")
    elif root.exists() and any(not is_temporary(child) for child in root.iterdir()):
        raise UserError(f"{root}: not empty and not a synthetic data set; choose another folder")
    if all(made.exists() for made in (path, images, *subjects.values())):
        clean_stale(root, activity="the making of data")
        return
    plan = plan_images(config)
    refuse_links(recordings)
    with lock(root, activity="the making of data"):
        write_atomically(path, (json.dumps(description, indent=2) + "\n").encode())
        make_folder(images, lambda folder: write_images(folder, plan, config.seed, progress))
        missing = {number: folder for number, folder in subjects.items() if not folder.exists()}
        if not missing:
            return
        remove_temporary(recordings)
        drive = _drive_of_units(images, plan, config.seed, progress)
        progress("recordings", 0, len(missing))
        for done, (number, target) in enumerate(missing.items(), start=1):
            make_folder(target, partial(_write_subject, number=number, drive=drive, plan=plan, config=config))
            progress("recordings", done, len(missing))


def plan_images(config: SyntheticConfig) -> Plan:
    """Return the images of every split; each concept is in one split only."""
    try:
        from bvsa_core.synthetic import openmoji

        concepts = openmoji.concepts()
    except ModuleNotFoundError as error:
        raise UserError(str(error)) from error
    if config.train_concepts + config.test_concepts > len(concepts):
        requested = f"{config.train_concepts} training and {config.test_concepts} test concepts"
        raise UserError(f"{requested} are requested; there are {len(concepts)}")
    order = np.random.default_rng([config.seed, IMAGE_STREAM]).permutation(len(concepts))
    test, train = np.split(order[: config.test_concepts + config.train_concepts], [config.test_concepts])
    plan: Plan = {"train": [], "test": []}
    splits = (("train", "training", "b", train, config.images_per_concept), ("test", "test", "s", test, 1))
    for split, prefix, suffix, chosen, takes in splits:
        for number, index in enumerate(sorted(chosen.tolist(), key=lambda index: concepts[index].name)):
            name, svg = concepts[index].name, concepts[index].svg
            for take in range(takes):
                path = f"{prefix}_images/{number + 1:05d}_{name}/{name}_{take + 1:02d}{suffix}.jpg"
                plan[split].append(ImageSpec(path, name, number, index, svg, take))
    return plan


def _drive_of_units(folder: Path, plan: Plan, seed: int, progress: Progress) -> dict[str, np.ndarray]:
    """Return the input (images, units) of the units by split, standardised over the training images and saturated."""
    weights, drive = _cortex(seed), {}
    for split, images in plan.items():
        parts = []
        for start in range(0, len(images), 64):
            progress("responses", start, len(images))
            batch = np.stack([np.asarray(Image.open(folder / image.path)) for image in images[start : start + 64]])
            parts.append(visual_drive(torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous(), weights))
        progress("responses", len(images), len(images))
        drive[split] = np.concatenate(parts)
    mean, std = drive["train"].mean(0), drive["train"].std(0)
    return {split: np.tanh((values - mean) / std) for split, values in drive.items()}


def _cortex(seed: int) -> list[Tensor]:
    """Return weights from pooled features to units, (features, UNITS_PER_SCALE) per scale; all subjects share them."""
    rng = np.random.default_rng([seed, _CORTEX])
    weights = []
    for _, _, grid in SCALES:
        centres = (np.arange(grid) + 0.5) / grid * 2 - 1
        eccentricity = np.hypot(centres[:, None], centres)
        magnification = np.tile(np.exp(-1.5 * eccentricity).ravel(), 4)  # three opponent colours and contrast
        random = rng.standard_normal((4 * grid * grid, UNITS_PER_SCALE))
        weights.append(torch.from_numpy((random * magnification[:, None]).astype(np.float32)))
    return weights


def visual_drive(images: Tensor, weights: list[Tensor]) -> np.ndarray:
    """Return the input (B, units) of the units for uint8 images (B, 3, H, W)."""
    drives = []
    for (sigma, stride, grid), weight in zip(SCALES, weights):
        seen = avg_pool2d(fovblur.foveated_blur(images, sigma, mean=0.5, std=0.25), stride)
        red, green, blue = seen.unbind(1)
        luminance = seen.mean(1)
        down = luminance.diff(dim=1, append=luminance[:, -1:])
        across = luminance.diff(dim=2, append=luminance[:, :, -1:])
        contrast = down.abs() + across.abs()
        opponents = torch.stack([luminance, red - green, blue - (red + green) / 2, contrast], dim=1)
        drives.append(adaptive_avg_pool2d(opponents, grid).flatten(1) @ weight)
    return torch.cat(drives, dim=1).numpy()


@dataclass(frozen=True)
class Subject:
    """Parameters of one subject's forward model."""

    channels: list[str]
    mixing: np.ndarray  # (units, channels)
    waves: np.ndarray  # (units, samples) response of a unit over time
    sampling_rate: int  # Hz
    noise_mixing: np.ndarray  # (channels, channels)
    alpha: float  # strength of the alpha rhythm
    response_scale: float  # from responses to the signal-to-noise ratio, with noise of standard deviation 1


def make_subject(number: int, drive: np.ndarray, config: SyntheticConfig) -> Subject:
    """Draw the parameters of one subject; `drive` (conditions, units) sets the scale of the responses."""
    names = list(config.channel_names)
    shared = np.random.default_rng([config.seed, _SUBJECT])
    own = np.random.default_rng([config.seed, _SUBJECT, number])
    units, channels = UNITS_PER_SCALE * len(SCALES), len(names)
    mixing = shared.standard_normal((units, channels)) + own.standard_normal((units, channels))
    latency = np.repeat(LATENCIES, UNITS_PER_SCALE) + shared.normal(0, 0.012, units)
    latency = latency + own.normal(0, 0.01) + own.normal(0, 0.005, units)
    width = shared.uniform(0.02, 0.04, units)
    rebound = shared.uniform(0.3, 0.9, units)
    t = np.arange(config.samples) / config.facts.SAMPLING_RATE
    first = np.exp(-0.5 * ((t - latency[:, None]) / width[:, None]) ** 2)
    second = np.exp(-0.5 * ((t - latency[:, None] - 4 * width[:, None]) / (2 * width[:, None])) ** 2)
    waves = first - rebound[:, None] * second
    distance = np.abs(np.subtract.outer(np.arange(channels), np.arange(channels)))
    neighbours = np.exp(-distance / own.uniform(1.5, 3.0))
    noise_mixing = np.linalg.cholesky(neighbours + 0.1 * np.eye(channels))
    noise_mixing /= np.sqrt((noise_mixing**2).sum(1, keepdims=True))
    response = respond(drive[:200], mixing, waves)
    scale = config.signal_to_noise / response.std()
    return Subject(names, mixing, waves, config.facts.SAMPLING_RATE, noise_mixing, own.uniform(0.3, 0.8), float(scale))


def respond(drive: np.ndarray, mixing: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """Return noise-free responses (conditions, channels, samples) to unit activity (conditions, units)."""
    return np.einsum("nk,kc,kt->nct", drive, mixing, waves, optimize=True)


def record(
    subject: Subject, drive: np.ndarray, repetitions: int, seeds: Iterator[np.random.SeedSequence]
) -> np.ndarray:
    """Return trials (conditions, repetitions, channels, samples) float16 for unit activity (conditions, units)."""
    channels, samples = len(subject.channels), subject.waves.shape[1]
    frequencies = scipy.fft.rfftfreq(samples, 1 / subject.sampling_rate)
    amplitude = 1 / np.sqrt(np.maximum(frequencies, 1.0))
    amplitude += subject.alpha * np.exp(-0.5 * ((frequencies - 10) / 1.2) ** 2)
    amplitude = (amplitude / np.sqrt((amplitude**2).sum() * 4) * samples).astype(np.float32)  # unit variance in time
    trials = np.empty((len(drive), repetitions, channels, samples), dtype=np.float16)
    step = max(1, 1024 // repetitions)
    for start in range(0, len(drive), step):
        rng = np.random.default_rng(next(seeds))
        part = drive[start : start + step]
        shape = (len(part), repetitions, channels, len(frequencies))
        spectrum = rng.standard_normal((*shape, 2), dtype=np.float32).view(np.complex64)[..., 0] * amplitude
        noise = scipy.fft.irfft(spectrum, samples, overwrite_x=True)
        noise = np.matmul(subject.noise_mixing.astype(np.float32), noise)
        gain = rng.lognormal(0.0, 0.3, (len(part), repetitions, 1, 1)).astype(np.float32)
        gain *= np.float32(subject.response_scale)
        response = respond(part, subject.mixing, subject.waves).astype(np.float32)
        trials[start : start + step] = noise + gain * response[:, None]
    return trials


def _write_subject(
    folder: Path, number: int, drive: dict[str, np.ndarray], plan: Plan, config: SyntheticConfig
) -> None:
    subject = make_subject(number, drive["train"], config)
    times = np.arange(config.samples) / subject.sampling_rate
    repetitions_of = {"train": config.train_repetitions, "test": config.test_repetitions}
    for stream, (split, repetitions) in enumerate(repetitions_of.items()):
        seed = (config.seed, _TRIALS, number, stream)
        seeds = (np.random.SeedSequence([*seed, chunk]) for chunk in itertools.count())
        images, concepts = [image.path for image in plan[split]], [image.concept for image in plan[split]]
        data = record(subject, drive[split], repetitions, seeds)
        recordings = Recordings(data, images, concepts, subject.channels, times, source=SYNTHETIC)
        labels = np.array([image.concept_number for image in plan[split]])
        session_of_repetition = np.arange(repetitions) * min(4, repetitions) // repetitions
        sessions = np.tile(session_of_repetition, (len(labels), 1)).astype(np.float64)
        write_recordings(folder / f"{split}.pt", recordings, labels, sessions)
