"""Where and when recordings tell images apart: ridge regression from parts of them to the features of images.

It knows nothing of the methods that runs train, so it describes the recordings and the image features alone.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bvsa_core.data.channel_positions import REGIONS, positions, region
from bvsa_core.data.split import Split
from bvsa_core.experiments.cell import levels_of
from bvsa_core.progress import Progress, no_progress
from bvsa_core.report.content import Accuracy, LinearDecoding, ReportRow, RunSummary
from bvsa_core.retrieval.scoring import ranks
from bvsa_core.retrieval.statistics import crossed_bootstrap
from bvsa_core.training.config import RunConfig
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.vision.layers import OUTPUT
from bvsa_core.vision.views import SHARP, Level, features_at

BIN = 0.025  # seconds that are averaged into one value
WINDOW, STEP = 4, 2  # bins of a window, and from one window to the next
NEIGHBOURS = 5  # channels of a map's every value: one and those nearest to it
# Made by NumPy: torch would make threads at import, which a forked process does not survive.
PENALTIES = np.logspace(-4, 4, 17)  # times the mean square of a principal component


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """Return weights (P, D) that predict y (N, D) from x (N, P), both with zero mean.

    The penalty is chosen among PENALTIES by generalised cross-validation (Golub, Heath and Wahba, Technometrics 1979).
    """
    squares, axes = torch.linalg.eigh(x.T @ x)
    squares = squares.clamp(min=0)
    projected = axes.T @ (x.T @ y)
    explained, total = projected.square().sum(1), y.square().sum()
    penalties = torch.tensor(PENALTIES, device=x.device)[:, None] * squares.mean().clamp(min=1e-30)
    shrunk = squares + penalties  # (penalties, P)
    residual = total - (explained * (squares + 2 * penalties) / shrunk.square()).sum(1)
    freedom = len(x) - (squares / shrunk).sum(1)
    best = (residual / freedom.square()).argmin()
    return axes @ (projected / shrunk[best][:, None])


def accuracy(train: Tensor, targets: Tensor, test: Tensor, gallery: Tensor) -> Accuracy:
    """Return how often the image of a test recording is the most similar of all to its predicted features.

    Args:
        train: (N, P) values of training recordings.
        targets: (N, D) features of their images.
        test: (M, P) values of test recordings.
        gallery: (M, D) features of their images.
    """
    train, targets, test, gallery = (each.double() for each in (train, targets, test, gallery))
    mean, spread, centre = train.mean(0), train.std(0).clamp(min=1e-12), targets.mean(0)
    weights = ridge((train - mean) / spread, targets - centre)
    predicted = normalize((test - mean) / spread @ weights, dim=-1)
    hits = (ranks(predicted @ normalize(gallery - centre, dim=-1).T) == 1).cpu().numpy()
    return Accuracy(float(hits.mean()), *crossed_bootstrap(hits[None, None], resamples=2000))


def averaged(recordings: Tensor, times: Sequence[float]) -> tuple[Tensor, np.ndarray]:
    """Return the means (N, channels, bins) of recordings (N, channels, time) over bins of BIN seconds, and their times.

    Samples after the last whole bin are dropped.
    """
    step = (times[-1] - times[0]) / max(1, len(times) - 1)
    length = min(len(times), max(1, round(BIN / step))) if step else 1
    bins = len(times) // length
    means = recordings[..., : bins * length].unflatten(-1, (bins, length)).mean(-1)
    return means, np.reshape(times[: bins * length], (bins, length)).mean(-1)


def linear_decoding(
    config: RunConfig,
    run_data: RunData,
    data: str,
    progress: Progress = no_progress,
) -> LinearDecoding:
    """Decode the recordings that a run was trained and tested on.

    Args:
        config: of the run.
        run_data: its recordings and features.
        data: name of the data.

    Raises:
        UserError: data are missing or damaged.
    """
    train = run_data.split(run_data.training_subjects(config), "train")
    test = run_data.split(config.subject, "test", config.repetitions, train.axes)
    levels = levels_of(config.method, config.method_options)
    level = SHARP if SHARP in levels else levels[-1]
    targets, gallery = (_features(split, run_data, level) for split in (train, test))
    layers = _layers(run_data)
    whole = next(iter(layers.values()))  # the first part
    (x, times), (x_test, _) = (averaged(split.recordings, train.times) for split in (train, test))
    names, everywhere = train.channels, slice(None)
    starts = range(0, max(1, len(times) - WINDOW + 1), STEP)
    parts = {float(times[start : start + WINDOW].mean()): slice(start, start + WINDOW) for start in starts}
    regions: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        regions.setdefault(region(name), []).append(i)
    if len(regions) < 2:
        regions = {}
    nearest = _neighbours(names, positions(names, train.modality))
    layers = layers if len(layers) > 1 else {}
    total, done = 1 + len(parts) + len(regions) + len(nearest) + len(layers), 0

    def decode(channels: list[int] | slice, part: slice = everywhere, columns: slice = whole) -> Accuracy:
        nonlocal done
        values, test_values = (each[:, channels, part].flatten(1) for each in (x, x_test))
        result = accuracy(values, targets[:, columns], test_values, gallery[:, columns])
        done += 1
        progress("linear decoding", done, total)
        return result

    return LinearDecoding(
        data=data,
        subject=config.subject,
        images=len(test.images),
        target=f"{run_data.encoder_name}{'' if level == SHARP else f', k{level.kernel_size} gain {level.gain:g}'}",
        window=min(WINDOW, len(times)) * float(times[1] - times[0]) if len(times) > 1 else 0.0,
        everything=decode(everywhere),
        windows={middle: decode(everywhere, part) for middle, part in parts.items()},
        regions={name: decode(regions[name]) for name in REGIONS if name in regions},
        channels={name: decode(channels) for name, channels in nearest.items()},
        layers={name: decode(everywhere, columns=columns) for name, columns in layers.items()},
    )


def _features(split: Split, run_data: RunData, level: Level) -> Tensor:
    """Return the features (N, D) of the images of all samples."""
    return features_at(level, run_data.views(split.images, [level]), split.image_of)


def _layers(run_data: RunData) -> dict[str, slice]:
    """Return the columns of the features of each part."""
    ends = np.cumsum(widths := run_data.part_widths()).tolist()
    names = (part if part == OUTPUT else f"layer {part}" for part in run_data.clip.layers)
    return {name: slice(end - width, end) for name, width, end in zip(names, widths, ends)}


def _neighbours(names: Sequence[str], places: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """Return for every channel with a position the indices of those nearest to it, itself first."""
    located = [i for i, name in enumerate(names) if name in places]
    if len(located) < NEIGHBOURS:
        return {}
    points = np.array([places[names[i]] for i in located])
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    order = distances.argsort(axis=1, kind="stable")[:, :NEIGHBOURS]
    return {names[located[row]]: [located[i] for i in nearest] for row, nearest in enumerate(order)}


def decode_rows(
    rows: Sequence[ReportRow], run_data_of: Callable[[RunConfig], RunData], progress: Progress = no_progress
) -> list[LinearDecoding]:
    """Decode the recordings of every data set and subject among these rows, once each."""
    runs: dict[tuple[str, str], RunSummary] = {}
    for row in rows:
        for run in row.runs:
            runs.setdefault((row.comparison.data, run.result.subject), run)
    configs = {key: RunFolder(Path(run.folder)).config() for key, run in runs.items()}
    return [linear_decoding(config, run_data_of(config), data, progress) for (data, _), config in configs.items()]
