"""Many runs over shared materials: every method on every subject with every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bvsa_core.progress import Progress, no_progress
from bvsa_core.retrieval.result import RunResult
from bvsa_core.training.checkpoint import RunFolder
from bvsa_core.training.config import RunConfig
from bvsa_core.training.run import run
from bvsa_core.training.run_data import RunData


def cells(base: RunConfig, methods: Sequence[str], subjects: Sequence[str], seeds: int) -> list[RunConfig]:
    """Configurations of a grid, one after another."""
    return [
        replace(base, method=method, method_options=None, subject=subject, seed=base.seed + seed)
        for method in methods
        for subject in subjects
        for seed in range(seeds)
    ]


def folder_of(cell: RunConfig, root: Path) -> Path:
    """Where a cell goes."""
    return root / f"{cell.method}-{cell.preset}_{cell.encoder}_{cell.subject}_seed{cell.seed}"


def run_grid(
    grid: Sequence[RunConfig], root: Path, run_data: RunData, progress: Progress = no_progress
) -> list[RunResult]:
    """Results of all cells. A cell that is complete in its folder is not run again."""
    results = []
    for done, cell in enumerate(grid):
        name = f"{cell.method} {cell.subject} seed {cell.seed}"
        folder = RunFolder(folder_of(cell, root))
        progress(name, done, len(grid))
        epoch_done = lambda _, epoch, epochs, done=done, name=name: progress(name, done + epoch / epochs, len(grid))  # noqa: E731
        results.append(run(cell, run_data, folder, epoch_done))
    progress("done", len(grid), len(grid))
    return results
