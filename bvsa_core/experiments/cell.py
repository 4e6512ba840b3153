"""One cell of a grid: trained, scored in every way the grid asks for, and left on disk.

CELL/...            the run, see training.checkpoint
CELL/scores.json    figures and statistics of every scoring; the cell is complete when both are there
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path

import yaml

from bvsa_core import encoders, methods
from bvsa_core.data.dataset import Dataset
from bvsa_core.errors import UserError
from bvsa_core.experiments.grid import Cell
from bvsa_core.experiments.repetitions import repetition_curves
from bvsa_core.io.atomic import lock, write_atomically
from bvsa_core.progress import Progress, no_progress
from bvsa_core.retrieval.result import RunResult
from bvsa_core.retrieval.scoring import Scoring
from bvsa_core.training.checkpoint import RunFolder, read_json
from bvsa_core.training.config import RunConfig, RunDataConfig, to_dict
from bvsa_core.training.run import run
from bvsa_core.training.run_data import RunData
from bvsa_core.vision.views import Level

SCORES = "scores.json"


class RunDataCache:
    """Materials kept from one cell to the next that needs the same; recordings only as long as the subject is the same.

    Args:
        device: where cells run that leave it open.
    """

    def __init__(self, device: str | None = None, progress: Progress = no_progress):
        self.device, self.progress = device, progress
        self._key: RunDataConfig | None = None
        self._subject: str | None = None
        self._materials: RunData | None = None

    def run_data(self, config: RunConfig) -> RunData:
        """The materials of a cell."""
        key = RunDataConfig(**{field.name: getattr(config, field.name) for field in fields(RunDataConfig)})
        if self._materials is None or key != self._key:
            device = self.device if self.device and config.device == "auto" else config.device
            self._materials = RunData(replace(config, device=device), self.progress)
        elif config.subject != self._subject:
            self._materials.clear_cache()
        self._key, self._subject = key, config.subject
        return self._materials


def run_cell(cell: Cell, root: Path, bench: RunDataCache, progress: Progress = no_progress) -> None:
    """Do what of a cell is not done yet.

    Raises:
        UserError: data, options or the folder do not fit.
    """
    if complete(cell, root):
        return
    folder = RunFolder(root / cell.folder)
    run_data = bench.run_data(cell.config)
    result = run(cell.config, run_data, folder, progress)
    gates = [row.gate or result.protocol.gate for row in cell.rows]
    scorings = [
        Scoring(gate, result.reliability, row.rescoring, row.shuffle_texts) for gate, row in zip(gates, cell.rows)
    ]
    curves = repetition_curves(folder, run_data, scorings, cell.resamples) if cell.resamples else [None] * len(scorings)
    scored = [_scored(result, folder, scoring, curve) for scoring, curve in zip(scorings, curves)]
    with lock(
        folder.path, activity="the scoring of a run"
    ):  # which clears away what one that was killed has half written
        write_atomically(
            folder.path / SCORES, json.dumps({"asked": asked(cell), "rows": scored}, indent=1).encode() + b"\n"
        )


def _scored(result: RunResult, folder: RunFolder, scoring: Scoring, curve: list[dict] | None) -> dict:
    rescored = replace(result.rescored(folder.embeddings(), scoring), images=[])  # which result.json lists
    assert rescored.statistics is not None
    return replace(rescored, statistics=rescored.statistics | ({"repetitions": curve} if curve else {})).to_json()


def asked(cell: Cell) -> dict:
    """What scores.json answers."""
    return {
        "rows": [{**asdict(row), "name": None, "published": None} for row in cell.rows],
        "resamples": cell.resamples,
    }


def complete(cell: Cell, root: Path) -> bool:
    """Whether run and scores are there, of these settings."""
    folder = root / cell.folder
    if not all((folder / name).is_file() for name in ("run.yaml", "result.json", SCORES)):
        return False
    if yaml.safe_load((folder / "run.yaml").read_text()) != to_dict(cell.config):
        return False
    return json.loads((folder / SCORES).read_text())["asked"] == asked(cell)


def load_scores(folder: Path) -> list[RunResult]:
    """Read the results of a complete cell, one for each way its training is scored.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / SCORES
    rows = read_json(path).get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: damaged or incomplete; remove it, and 'bvsa reproduce' makes it again")
    return [RunResult.from_json(row, path) for row in rows]


def fill_banks(cells: Iterable[Cell], bench: RunDataCache) -> None:
    """Compute every feature that cells will look up, so that no two of them compute the same.

    Data that are missing or damaged are passed over: the cells that need them tell of it.

    Raises:
        UserError: a device that is not there, or no data folder.
    """
    shown_images = functools.cache(_images)
    wanted: dict[str, tuple[RunData, dict]] = {}
    for cell in cells:
        config = cell.config
        plain = replace(config, channels="all", window=None, average=True)  # none of these shapes a feature
        shaping = {field.name: getattr(plain, field.name) for field in fields(RunDataConfig)}
        key = json.dumps(to_dict(RunDataConfig(**shaping)), sort_keys=True)
        if key not in wanted:
            wanted[key] = (bench.run_data(plain), {})
        run_data, levels = wanted[key]
        trained = run_data.training_subjects(config)
        asked_for = [*levels_of(config.method, config.method_options), *(Level(*each) for each in config.target_levels)]
        for split, subjects in (("train", trained), ("test", [config.subject])):
            with suppress(UserError):
                shown = {
                    image: concept
                    for subject in subjects
                    for image, concept in shown_images(run_data.dataset, subject, split)
                }
                levels.setdefault(tuple(shown.items()), {}).update(dict.fromkeys(asked_for))
    for run_data, levels in wanted.values():
        for shown, needed in levels.items():
            images, concepts = zip(*shown)
            with suppress(UserError):
                if run_data.config.views == "banked":
                    run_data.bank(images).fill(list(needed), run_data.progress)
                run_data.texts(images, concepts)


def _images(dataset: Dataset, subject: str, split: str) -> list[tuple[str, str]]:
    recordings = dataset.load(subject, split)
    return list(zip(recordings.images, recordings.concepts))


def levels_of(name: str, options: object) -> list[Level]:
    """Every blur level that a method asks for, in training and at retrieval."""
    shape = encoders.InputSpec(channels=17, time=250, embedding=2)  # of which none depends
    method = methods.method_class(name)(options, functools.partial(encoders.build, "eeg_project"), 1, shape)
    return list(dict.fromkeys([*method.training_levels(), *method.gallery_levels()]))
