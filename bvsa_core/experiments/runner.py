"""The cells of a grid, and the features they look up, as independent tasks."""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

from bvsa_core.data.dataset import Dataset
from bvsa_core.distributed.tasks import TaskPool
from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import RunDataCache, is_complete, levels_of, run_cell
from bvsa_core.experiments.grid import Cell
from bvsa_core.progress import Progress, no_progress
from bvsa_core.training.config import RunDataConfig, to_dict
from bvsa_core.training.layer_selection import candidates
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.vision.bank import ShardTask
from bvsa_core.vision.loading import check_weights
from bvsa_core.vision.views import Level


def run_cells(
    cells: Sequence[Cell],
    root: Path,
    pool: TaskPool[RunDataCache],
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> dict[str, str]:
    """Run the cells that are not complete. Returns what went wrong with those that failed, in the order of `cells`.

    With `overwrite`, cells replace runs of other settings in their folders.
    """
    waiting = [(cell, root, overwrite) for cell in cells if not is_complete(cell, root)]
    done, errors = len(cells) - len(waiting), dict[str, str]()

    def part(_task: str, epoch: float, epochs: int, note: str = "", /) -> None:
        note = ", ".join(filter(None, (f"epoch {min(int(epoch) + 1, epochs)} of {epochs}", note)))
        progress("cells", done + epoch / epochs, len(cells), note)

    progress("cells", done, len(cells))
    for (cell, *_), error in pool.run(_run_cell, waiting, part):
        if error:
            errors[str(cell)] = error
        done += 1
        progress("cells", done, len(cells))
    return {str(cell): errors[str(cell)] for cell in cells if str(cell) in errors}


def _run_cell(cache: RunDataCache, item: tuple[Cell, Path, bool], progress: Progress) -> None:
    cell, root, overwrite = item
    run_cell(cell, root, cache, progress, overwrite)


def check_start(cells: Sequence[Cell], root: Path, overwrite: bool = False) -> None:
    """Check, before anything is written, that image encoders can be loaded and folders hold no run of other settings.

    Cells whose folder is damaged report it when they run. With `overwrite`, other runs will be replaced.

    Raises:
        UserError: an encoder cannot be loaded, or a folder holds another run.
    """
    readable = []
    for cell in cells:
        folder = RunFolder(root / cell.folder, overwrite)
        with suppress(UserError):
            folder.config()
            readable.append((folder, cell.config))
    for folder, config in readable:
        folder.is_complete(config)
    missing = [cell.config for cell in cells if not is_complete(cell, root)]
    for encoder in {(config.vision, config.weights, config.cache_dir) for config in missing}:
        check_weights(*encoder)


def fill_bank(
    run_data: RunData,
    images: Sequence[str],
    levels: Sequence[Level],
    pool: TaskPool[RunDataCache],
    progress: Progress = no_progress,
) -> None:
    """Compute the features of images that their bank does not have at these levels."""

    def run(tasks: list[ShardTask], report: Progress) -> Iterator[None]:
        for _, error in pool.run(_compute_shard, [(run_data.config, task) for task in tasks], report):
            if error:
                raise UserError(error)
            yield

    run_data.bank(images).fill(levels, progress, run=run)


def _compute_shard(cache: RunDataCache, item: tuple[RunDataConfig, ShardTask], progress: Progress) -> None:
    config, task = item
    task.run(cache.run_data(config).clip, progress)


def fill_banks(cells: Iterable[Cell], pool: TaskPool[RunDataCache]) -> None:
    """Compute every feature that cells will look up, so that no two of them compute the same.

    Data that are missing or damaged are passed over: the cells that need them report it.
    """
    images_of = functools.cache(_images)
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        # Channels, window and averaging shape no feature.
        shaping = {**to_dict(cell.config), "channels": "all", "window": None, "average": True}
        key = json.dumps([cell.config.select_layer, *(shaping[field.name] for field in fields(RunDataConfig))])
        groups.setdefault(key, []).append(cell)
    for group in groups.values():
        plain = replace(group[0].config, channels="all", window=None, average=True)
        run_data = pool.context.run_data(plain)
        if plain.select_layer:
            with suppress(UserError):
                _, run_data = candidates(run_data)
        levels_by_images: dict[tuple, dict[Level, None]] = {}
        for config in (cell.config for cell in group):
            levels = levels_of(config.method, config.method_options) + [Level(*each) for each in config.target_levels]
            for split, subjects in (("train", run_data.training_subjects(config)), ("test", [config.subject])):
                with suppress(UserError):
                    shown = dict(pair for subject in subjects for pair in images_of(run_data.dataset, subject, split))
                    levels_by_images.setdefault(tuple(shown.items()), {}).update(dict.fromkeys(levels))
        for pairs, needed in levels_by_images.items():
            images, concepts = zip(*pairs)
            with suppress(UserError):
                if run_data.config.views == "banked":
                    fill_bank(run_data, images, list(needed), pool, run_data.progress)
                run_data.texts(images, concepts)


def _images(dataset: Dataset, subject: str, split: str) -> list[tuple[str, str]]:
    """Return name and concept of every image of a subject's recordings."""
    recordings = dataset.load(subject, split)
    return list(zip(recordings.images, recordings.concepts))
