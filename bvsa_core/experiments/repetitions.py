"""Accuracy as a function of the number of test repetitions that are averaged."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from bvsa_core.data.dataset import Recordings
from bvsa_core.data.split import make_split
from bvsa_core.retrieval.scoring import Scoring, ranks, score, similarity
from bvsa_core.retrieval.statistics import CurvePoint
from bvsa_core.training.embedding import compute_embeddings
from bvsa_core.training.run import load_method
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder


def averaged(recordings: Recordings, draws: np.ndarray) -> Iterator[Recordings]:
    """Yield for every draw (conditions, n) recordings of one repetition: the mean of those drawn for each condition.

    Each condition is read once for all draws, and converted to float32 by torch: numpy is slower for half types.
    """
    means = np.empty((len(draws), *recordings.data.shape[:1], *recordings.data.shape[2:]), np.float32)
    for condition, trials in enumerate(recordings.data):
        trials = torch.tensor(trials, dtype=torch.float32).numpy()
        for mean, rows in zip(means, draws):
            trials[rows[condition]].mean(axis=0, out=mean[condition])
    return (replace(recordings, data=mean[:, None]) for mean in means)


def steps(repetitions: int) -> list[int]:
    """Return 1, 2, 4 ... and all.

    >>> steps(12)
    [1, 2, 4, 8, 12]
    """
    return [*(2**power for power in range((repetitions - 1).bit_length())), repetitions]


def repetition_curves(
    folder: RunFolder, run_data: RunData, scorings: Sequence[Scoring], resamples: int = 10, seed: int = 0
) -> list[list[CurvePoint]]:
    """Return a curve for each scoring: mean and standard deviation of accuracies over subsets of the test repetitions.

    Subsets are drawn without replacement, for every image its own; all repetitions are one subset, without spread.

    Args:
        resamples: number of subsets for each point.

    Raises:
        UserError: the folder holds no complete run, or its data have moved.
    """
    config, method = folder.config(), load_method(folder, run_data)
    path = run_data.dataset.path(config.subject, "test")
    recordings = run_data.dataset.load(config.subject, "test")
    trained = run_data.training_subjects(config)
    axes = folder.result().axes
    shown = run_data.split(config.subject, "test", config.repetitions, axes)
    views = run_data.views(shown.images, method.gallery_feature_levels(), vision=method.vision)
    texts = run_data.texts(shown.images, shown.concepts)
    conditions, repetitions = recordings.data.shape[:2]
    rng = np.random.default_rng(seed)
    curves: list[list[CurvePoint]] = [[] for _ in scorings]
    for n in steps(repetitions):
        accuracies = []  # (draws, scorings, 2)
        everything = np.tile(np.arange(repetitions), (conditions, 1))
        count = resamples if n < repetitions else 1
        draws = [np.sort(rng.permuted(everything, axis=1)[:, :n], axis=1) for _ in range(count)]
        for part in averaged(recordings, np.stack(draws)):
            chosen = config.channels, config.window, True, None, axes
            test = make_split([(path, part)], [config.subject], *chosen).to(run_data.device)
            embeddings = compute_embeddings(method, test, views, texts, trained)
            scores = [score(ranks(similarity(embeddings, scoring))) for scoring in scorings]
            accuracies.append([(each.top1, each.top5) for each in scores])
        means = np.mean(accuracies, axis=0)
        spreads = np.std(accuracies, axis=0, ddof=1) if count > 1 else np.zeros_like(means)
        for curve, (top1, top5), (std1, std5) in zip(curves, means.tolist(), spreads.tolist()):
            curve.append(CurvePoint(averaged=n, resamples=count, top1=top1, top1_std=std1, top5=top5, top5_std=std5))
    return curves
