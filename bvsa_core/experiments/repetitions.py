"""How accuracy grows with the number of test repetitions that are averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from bvsa_core.data.dataset import Recordings
from bvsa_core.data.split import make_split
from bvsa_core.retrieval.scoring import Scores, Scoring, ranks, score, similarity
from bvsa_core.training.checkpoint import RunFolder
from bvsa_core.training.embedding import compute_embeddings
from bvsa_core.training.run import load_method
from bvsa_core.training.run_data import RunData


def averaged(recordings: Recordings, draws: np.ndarray) -> Iterator[Recordings]:
    """For every draw (conditions, n) of draws: recordings of one repetition, the mean of those drawn for each condition.

    A condition is read once for all draws, and made float32 by torch, which takes half types faster than numpy does.
    """
    means = np.empty((len(draws), *recordings.data.shape[:1], *recordings.data.shape[2:]), np.float32)
    for condition, trials in enumerate(recordings.data):
        trials = torch.tensor(trials, dtype=torch.float32).numpy()
        for mean, rows in zip(means, draws):
            trials[rows[condition]].mean(axis=0, out=mean[condition])
    return (replace(recordings, data=mean[:, None]) for mean in means)


def steps(repetitions: int) -> list[int]:
    """1, 2, 4 ... and all.

    >>> steps(12)
    [1, 2, 4, 8, 12]
    """
    doubled = [2**power for power in range(repetitions.bit_length()) if 2**power < repetitions]
    return [*doubled, repetitions]


def repetition_curves(
    folder: RunFolder, run_data: RunData, scorings: Sequence[Scoring], resamples: int = 10, seed: int = 0
) -> list[list[dict]]:
    """One curve for each scoring: mean and standard deviation of accuracies over resampled subsets of the repetitions.

    Every image gets a subset of its own, drawn without replacement; all repetitions are one subset, with no spread.

    Raises:
        UserError: the folder holds no complete run, or its data have moved.
    """
    config, method = folder.config(), load_method(folder, run_data)
    path = run_data.dataset.path(config.subject, "test")
    recordings = run_data.dataset.load(config.subject, "test")
    trained = run_data.training_subjects(config)
    shown = run_data.split(config.subject, "test", config.repetitions)
    views, texts = (
        run_data.views(shown.images, method.gallery_feature_levels()),
        run_data.texts(shown.images, shown.concepts),
    )
    conditions, repetitions = recordings.data.shape[:2]
    rng = np.random.default_rng(seed)
    curves: list[list[dict[str, float]]] = [[] for _ in scorings]
    for n in steps(repetitions):
        found: list[list[Scores]] = [[] for _ in scorings]
        of_all = np.tile(np.arange(repetitions), (conditions, 1))
        draws = [
            np.sort(rng.permuted(of_all, axis=1)[:, :n], axis=1) for _ in range(resamples if n < repetitions else 1)
        ]
        for part in averaged(recordings, np.stack(draws)):
            test = make_split([(path, part)], [config.subject], config.channels, config.window).to(run_data.device)
            embeddings = compute_embeddings(method, test, views, texts, trained)
            for scores, scoring in zip(found, scorings):
                scores.append(score(ranks(similarity(embeddings, scoring))))
        for curve, scores in zip(curves, found):
            point: dict[str, float] = {"averaged": n, "resamples": len(scores)}
            for name in ("top1", "top5"):
                values = [getattr(each, name) for each in scores]
                point |= {
                    name: float(np.mean(values)),
                    f"{name}_std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
                }
            curve.append(point)
    return curves
