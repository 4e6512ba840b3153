"""What a grid would take: cells, hours by steps that are timed here, disk, and what is missing. Nothing is written."""

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch.nn.functional import normalize

from bvsa_core import encoders
from bvsa_core.data import things_eeg, things_meg
from bvsa_core.data.dataset import Dataset, RecordingAxes
from bvsa_core.data.split import Split, make_split
from bvsa_core.distributed.processes import ProcessGroup
from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import is_complete, levels_of
from bvsa_core.experiments.grid import Cell, Grid, System, cells
from bvsa_core.io.atomic import free_disk
from bvsa_core.progress import Progress, no_progress
from bvsa_core.training.config import SETTINGS, RunConfig, RunDataConfig
from bvsa_core.training.loop import fit, make_fabric
from bvsa_core.training.run import build_method
from bvsa_core.training.run_data import RunData, choose_device
from bvsa_core.vision.bank import held_levels
from bvsa_core.vision.clip import RANDOM, load_clip
from bvsa_core.vision.layers import OUTPUT
from bvsa_core.vision.loading import embedding_width_of, weights_are_here
from bvsa_core.vision.views import Level, OnlineViews

_EPOCHS, _LEAST_EPOCHS, _SECONDS, _LEAST_SAMPLES = 20, 3, 0.5, 128  # of a timed training, which ends after these
_CPU_NUMBERS = 2**23  # of a timed batch's recordings; a larger one may take more memory than there is
_TIMED_VISION = ("tiny", "RN50", "RN101", "ViT-B-16", "ViT-B-32")  # the others may not fit into the memory
_IMAGES = 16  # of a timed batch


@dataclass(frozen=True)
class _Data:
    """Recordings of a modality, in numbers."""

    channels: int
    time: int
    samples: int  # of a subject's training set
    images: tuple[int, int]  # of training and test set


# What a run gets of the published data without other flags: 17 channels of EEG, means over repetitions.
_PUBLISHED = {
    "eeg": ("THINGS-EEG2", 10, _Data(17, things_eeg.SAMPLES, 16540, (16540, 200))),
    "meg": ("THINGS-MEG", 4, _Data(things_meg.SENSORS, things_meg.SAMPLES, 19848, (19848, 200))),
}


@dataclass(frozen=True)
class _Timed:
    """A method on a shape of data, as timed."""

    seconds: float  # of a step
    parameters: int


class _TimedEnough(Exception):
    """Ends a timed training."""


def plan(
    grid: Grid,
    systems: Sequence[System],
    data: Mapping[str, Path],
    flags: dict,
    root: Path,
    progress: Progress = no_progress,
) -> list[str]:
    """Return lines about what `cells` of the same arguments would take.

    Args:
        data: folder of each modality; if there is none, the published data are assumed.
        root: folder of the grid.
        progress: called while steps are timed.

    Raises:
        UserError: as of `cells`.
    """
    lines, missing = [], []
    assumed: dict[str, list[str]] = {}
    folders: dict[str, Path] = {
        name: data.get(name, Path(f"no --{name}")) for name in grid.modalities if name in data or not data
    }
    shapes: dict[str, _Data] = {}
    subjects_of: dict[str, list[str]] = {}
    for modality, folder in folders.items():
        title, subjects, shapes[modality] = _PUBLISHED[modality]
        try:
            names = Dataset(folder).subjects
            lines.append(f"{modality.upper()}: {len(names)} subjects in {folder}")
        except UserError as error:
            assumed[modality] = names = [f"sub-{number + 1:02d}" for number in range(subjects)]
            lines.append(f"{modality.upper()}: assumed is {title} as published, {subjects} subjects")
            why = str(error).split(";")[0] if data else "none given"
            missing.append(f"{modality.upper()} data ({why}); see docs/reproduce.md, or 'bvsa data download --help'")
        subjects_of[modality] = names
    todo, skipped = cells(grid, systems, folders, flags, assumed)
    for modality, config in {cell.modality: cell.config for cell in todo if cell.modality not in assumed}.items():
        try:
            shapes[modality] = _measure(Dataset(folders[modality]), config)
        except UserError as error:
            missing.append(f"{modality.upper()} recordings: {error}")
    trainings, seconds, disk = _trainings(todo, root, shapes, assumed, folders, progress)
    rates: dict[str, float | str] = {}
    features, features_seconds, features_disk, lacking = _features(todo, shapes, assumed, rates, progress)
    left = [cell for cell in todo if not is_complete(cell, root)]
    online, online_seconds = _online(left, shapes, {name: len(known) for name, known in subjects_of.items()}, rates)
    hours = (seconds + features_seconds + online_seconds) / 3600
    device = choose_device(todo[0].config.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return [
        *lines,
        *skipped,
        *trainings,
        *features,
        *online,
        f"about {hours:.1f} hours, one training after another: an estimate from steps timed on this machine ({name});"
        " reading, evaluation and curves are not in it",
        *_busy(),
        f"about {(disk + features_disk) / 1e9:.1f} GB of disk for runs and features (computed);"
        f" {free_disk(root) / 1e9:.0f} GB are free",
        *(f"missing: {each}" for each in (*missing, *lacking)),
        *([] if missing or lacking else ["nothing is missing"]),
    ]


def _busy() -> list[str]:
    """Return a line if other programs have made the timed steps longer."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return [f"the machine is busy (load {load:.0f} on {cores} cores): alone it is faster"] if load > 1.5 * cores else []


def _measure(dataset: Dataset, config: RunConfig) -> _Data:
    """Return the numbers of a data set, from the recordings of one subject."""
    recordings = {split: dataset.load(config.subject, split) for split in ("train", "test")}
    train = recordings["train"]
    one = replace(train, data=train.data[:1], images=train.images[:1], concepts=train.concepts[:1], sessions=None)
    path = dataset.path(config.subject, "train")
    shape = make_split([(path, one)], [config.subject], config.channels, config.window).recordings.shape
    images = len(set(train.images)), len(set(recordings["test"].images))
    samples = images[0] if config.average else len(train) * train.data.shape[1]
    return _Data(shape[1], shape[2], samples, images)


def _trainings(
    todo: Sequence[Cell],
    root: Path,
    shapes: Mapping[str, _Data],
    assumed: Mapping[str, list[str]],
    folders: Mapping[str, Path],
    progress: Progress,
) -> tuple[list[str], float, float]:
    """Time a step of every system, and return a table with the seconds and bytes of all trainings that are left."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in todo:
        config = cell.config
        names = cell.modality, config.setting, cell.system, config.encoder, config.vision
        groups.setdefault(names, []).append(cell)
    timed: dict[tuple, _Timed | str] = {}
    rows, seconds, disk = [], 0.0, 0.0
    for done, (key, group) in enumerate(groups.items()):
        progress("steps timed", done, len(groups))
        modality, setting, config = key[0], key[1], group[0].config
        data = shapes[modality]
        if not config.average and modality in assumed:
            repetitions = {"eeg": things_eeg.TRAIN_REPETITIONS, "meg": things_meg.TRAIN_REPETITIONS}[modality]
            data = replace(data, samples=data.samples * repetitions)
        same = (modality, *key[2:])  # a step takes as long in both settings
        if same not in timed:
            timed[same] = _time_step(config, data)
        result, left = timed[same], sum(not is_complete(cell, root) for cell in group)
        others = 1
        if setting == "inter":
            others = len(assumed.get(modality) or Dataset(folders[modality]).subjects) - 1
        per_epoch = math.ceil(data.samples * others / config.batch_size)
        steps = per_epoch * config.epochs
        label = f"{modality.upper()} {SETTINGS[setting]}, {', '.join(key[2:])}"
        if config.select_layer:
            tried = per_epoch * (config.select_epochs or config.epochs)
            label += f" (and {tried} steps for every layer, not estimated)"
        if isinstance(result, str):
            rows.append(f"  {label}: {left} of {len(group)} cells left, {steps} steps each; not timed: {result}")
            continue
        each = steps * result.seconds
        seconds, disk = seconds + left * each, disk + left * 4 * result.parameters
        rows.append(
            f"  {label}: {left} of {len(group)} cells left, {steps} steps of {result.seconds:.3f} s, "
            f"{left * each / 3600:.2f} hours"
        )
    progress("steps timed", len(groups), len(groups))
    counts = Counter(cell.modality.upper() for cell in todo)
    return [f"{len(todo)} cells ({', '.join(f'{n} {name}' for name, n in counts.items())})", *rows], seconds, disk


def _time_step(config: RunConfig, data: _Data) -> _Timed | str:
    """Return the time of a step; or why it cannot be timed.

    On the CPU, that of a large batch is extrapolated from a smaller one and half of that.
    """
    try:
        largest = max(2, _CPU_NUMBERS // (data.channels * data.time))
        if choose_device(config.device).type != "cpu" or config.batch_size <= largest:
            return _time_batch(config, data)
        whole, half = (_time_batch(replace(config, batch_size=size), data) for size in (largest, largest // 2))
    except (UserError, ValueError, RuntimeError) as error:
        return " ".join(str(error).split())[:200]
    growth = max(0.0, whole.seconds - half.seconds) / (largest - largest // 2)
    return replace(whole, seconds=whole.seconds + growth * (config.batch_size - largest))


def _time_batch(config: RunConfig, data: _Data) -> _Timed:
    """Train on random numbers of the same shape, and return the shortest time of a step."""
    plain = replace(config, target_levels=[], target=OUTPUT, projector="none")
    plain = replace(plain, vision_lora=0, checkpoint_vision=False, chunk=None, learn_blur="off")
    plain = replace(plain, epochs=_EPOCHS, validation=0, selection="last")
    run_data = RunData(RunDataConfig(**{each.name: getattr(plain, each.name) for each in fields(RunDataConfig)}))
    width = run_data.part_widths()[0] if config.features else embedding_width_of(config.vision, config.cache_dir)
    device, samples = run_data.device, max(config.batch_size, _LEAST_SAMPLES)
    ends: list[float] = []

    def log(metrics: dict) -> None:
        ends.append(_now(device))
        if len(ends) >= _LEAST_EPOCHS and ends[-1] - ends[0] >= _SECONDS:
            raise _TimedEnough

    with torch.random.fork_rng():
        method = build_method(plain, encoders.InputSpec(data.channels, data.time, width, 1), samples, run_data)
        features = normalize(torch.randn(samples, width, device=device), dim=-1)
        split = _random_split(samples, data).to(device)
        views = lambda indices, gain, kernel_size: features[indices]  # noqa: E731
        with suppress(_TimedEnough):
            fit(method, split, views, features, plain, make_fabric(device, ProcessGroup(), plain.precision), log)
    shortest = min(after - before for before, after in pairwise(ends)) * config.batch_size / samples
    return _Timed(shortest, sum(parameter.numel() for parameter in method.parameters()))


def _random_split(samples: int, data: _Data) -> Split:
    """Return samples of random numbers, each of an image of its own."""
    numbers, owner = torch.arange(samples), torch.zeros(samples, dtype=torch.int64)
    names = [str(number) for number in range(samples)]
    axes = RecordingAxes(tuple(map(str, range(data.channels))), tuple(each / data.time for each in range(data.time)))
    recordings = torch.randn(samples, data.channels, data.time)
    return Split(recordings, numbers, names, names, list(axes.channels), 1, owner, ["sub-01"], times=list(axes.times))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _features(
    todo: Sequence[Cell],
    shapes: Mapping[str, _Data],
    assumed: Mapping[str, list[str]],
    rates: dict[str, float | str],
    progress: Progress,
) -> tuple[list[str], float, float, list[str]]:
    """Return lines, seconds, bytes and what is missing of the feature banks that the cells look up.

    `rates` gets the seconds of an image, or why they are unknown, by image encoder.
    """
    groups: dict[tuple[str, str, str], dict[Level, None]] = {}
    configs: dict[tuple[str, str, str], RunConfig] = {}
    for cell in (each for each in todo if each.config.features is None):
        config, key = cell.config, (cell.modality, cell.config.vision, cell.config.target)
        needed = levels_of(config.method, config.method_options) + [Level(*each) for each in config.target_levels]
        groups.setdefault(key, {}).update(dict.fromkeys(needed if config.views == "banked" else []))
        configs.setdefault(key, config)
    lines, seconds, disk, lacking = [], 0.0, 0.0, []
    for done, ((modality, vision, target), levels) in enumerate(groups.items()):
        progress("image encoders timed", done, len(groups))
        config, images = configs[modality, vision, target], shapes[modality].images
        if not weights_are_here(vision, config.weights, config.cache_dir):
            lacking.append(f"weights of {vision}; the first run downloads them, or give --weights or --cache_dir")
        count = len(levels) * sum(images)
        if modality not in assumed and target == OUTPUT:  # training and test images have a bank each
            bank = config.bank or config.data / "Image_feature"
            count -= sum(each * len(held_levels(bank, vision, each, list(levels))) for each in images)
        disk += 4 * count * embedding_width_of(vision, config.cache_dir)
        if not count:
            continue
        if vision not in rates:
            rates[vision] = _time_image(config)
        rate = rates[vision]
        took = f"not timed: {rate}" if isinstance(rate, str) else f"{count * rate / 3600:.2f} hours"
        seconds += 0.0 if isinstance(rate, str) else count * rate
        about = f"{modality.upper()} images at {len(levels)} levels, {vision}{'' if target == OUTPUT else f' {target}'}"
        lines.append(f"  features of {sum(images)} {about}: {took}")
        lacking.append(f"features of {vision} for {modality.upper()}; the grid computes them first")
    progress("image encoders timed", len(groups), len(groups))
    return lines, seconds, disk, list(dict.fromkeys(lacking))


def _online(
    left: Sequence[Cell], shapes: Mapping[str, _Data], subjects: Mapping[str, int], rates: dict[str, float | str]
) -> tuple[list[str], float]:
    """Return a line for every system whose steps blur and encode images, and the seconds that this takes.

    Gradients are counted as twice the forward pass, and images of a chunk as encoded twice.
    """
    lines, total = [], 0.0
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in left:
        if cell.config.views == "online":
            names = cell.modality, cell.config.setting, cell.system, cell.config.vision
            groups.setdefault(names, []).append(cell)
    for (modality, setting, system, vision), group in groups.items():
        config = group[0].config
        if vision not in rates:
            rates[vision] = _time_image(config)
        rate, others = rates[vision], subjects[modality] - 1 if setting == "inter" else 1
        passes = 3 if config.vision_lora or config.learn_blur != "off" else 1
        passes += config.chunk is not None
        images = len(group) * shapes[modality].samples * others * config.epochs
        took = f"not timed: {rate}"
        if not isinstance(rate, str):
            total += images * passes * rate
            took = f"{images * passes * rate / 3600:.2f} hours"
        encoded = f"{images} images blurred and encoded inside the steps, {passes} passes each"
        lines.append(f"  {modality.upper()} {SETTINGS[setting]}, {system}, {vision}: {encoded}: {took}")
    return lines, total


def _time_image(config: RunConfig) -> float | str:
    """Return the seconds that one image takes at one level; or why they are unknown."""
    if config.vision not in _TIMED_VISION:
        return "a large encoder"
    device = choose_device(config.device)
    logging.disable(logging.WARNING)  # open_clip warns of weights that are random
    try:
        clip = load_clip(config.vision, None if config.vision == "tiny" else RANDOM, device=device)
    finally:
        logging.disable(logging.NOTSET)
    pixels = torch.randint(0, 256, (_IMAGES, 3, clip.image_size, clip.image_size), dtype=torch.uint8)
    views = OnlineViews(clip, pixels)
    batch = torch.arange(_IMAGES)
    gain, kernel_size = torch.full((_IMAGES,), 0.5), torch.full((_IMAGES,), 51)
    times = []
    for _ in range(2):
        before = _now(device)
        views(batch, gain, kernel_size)
        times.append(_now(device) - before)
    return min(times) / _IMAGES
