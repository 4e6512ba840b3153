"""How accuracy grows with the number of test repetitions that are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bvsa_core.data.layout import Recordings
from bvsa_core.data.split import make_split
from bvsa_core.retrieval.evaluate import Scoring, ranks, score, similarity
from bvsa_core.training.checkpoint import RunFolder
from bvsa_core.training.run import Materials, embed, load_method


def averaged(recordings: Recordings, chosen: np.ndarray) -> Recordings:
    """Recordings of one repetition, the mean of those chosen (conditions, n) for each condition; one is read at a time."""
    means = [trials[rows].mean(axis=0, dtype=np.float32) for trials, rows in zip(recordings.data, chosen)]
    return replace(recordings, data=np.stack(means)[:, None])


def steps(repetitions: int) -> list[int]:
    """1, 2, 4 ... and all.

    >>> steps(12)
    [1, 2, 4, 8, 12]
    """
    doubled = [2**power for power in range(repetitions.bit_length()) if 2**power < repetitions]
    return [*doubled, repetitions]


def repetition_curves(
    folder: RunFolder, materials: Materials, scorings: Sequence[Scoring], resamples: int = 10, seed: int = 0
) -> list[list[dict]]:
    """One curve for each scoring: mean and standard deviation of accuracies over resampled subsets of the repetitions.

    Every picture gets a subset of its own, drawn without replacement; all repetitions are one subset, with no spread.

    Raises:
        UserError: the folder holds no complete run, or its data have moved.
    """
    config, method = folder.config(), load_method(folder, materials)
    path = materials.dataset.path(config.subject, "test")
    recordings = materials.dataset.load(config.subject, "test")
    trained = materials.trained_on(config)
    conditions, repetitions = recordings.data.shape[:2]
    rng = np.random.default_rng(seed)
    curves = [[] for _ in scorings]
    for n in steps(repetitions):
        found = [[] for _ in scorings]
        for _ in range(resamples if n < repetitions else 1):
            chosen = rng.permuted(np.tile(np.arange(repetitions), (conditions, 1)), axis=1)[:, :n]
            part = averaged(recordings, np.sort(chosen, axis=1))
            test = make_split([(path, part)], [config.subject], config.channels, config.window).to(materials.device)
            embeddings = embed(method, test, materials, trained)
            for scores, scoring in zip(found, scorings):
                scores.append(score(ranks(similarity(embeddings, scoring))))
        for curve, scores in zip(curves, found):
            point = {"averaged": n, "resamples": len(scores)}
            for name in ("top1", "top5"):
                values = [getattr(each, name) for each in scores]
                point |= {name: float(np.mean(values)), f"{name}_std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
            curve.append(point)
    return curves
