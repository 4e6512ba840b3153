"""One cell of a grid: trained, scored in every way the grid asks for, and left on disk.

CELL/...            the run, see training.run_folder
CELL/scores.json    figures and statistics of every scoring; the cell is complete when both are there
"""

import functools
import json
from dataclasses import asdict, fields, replace
from pathlib import Path

from bvsa_core import encoders, methods
from bvsa_core.errors import UserError
from bvsa_core.experiments.grid import Cell
from bvsa_core.experiments.repetitions import repetition_curves
from bvsa_core.io.atomic import lock, refuse_links, write_atomically
from bvsa_core.io.text_files import read_json
from bvsa_core.progress import Progress, no_progress
from bvsa_core.retrieval.result import RunResult
from bvsa_core.retrieval.scoring import Scoring
from bvsa_core.training.config import RunConfig, RunDataConfig
from bvsa_core.training.evaluation import check_gate
from bvsa_core.training.run import run
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.vision.learnt_blur import window_of
from bvsa_core.vision.views import Level

SCORES = "scores.json"


class RunDataCache:
    """RunData kept from one cell to the next that needs the same; recordings only while the subject is the same.

    Args:
        device: of configurations whose device is "auto".
    """

    def __init__(self, device: str | None = None, progress: Progress = no_progress):
        self.device, self.progress = device, progress
        self._key: RunDataConfig | None = None
        self._subject: str | None = None
        self._run_data: RunData | None = None

    def run_data(self, config: RunDataConfig) -> RunData:
        """Return the data of a configuration, such as that of a run."""
        subject = getattr(config, "subject", None)
        key = RunDataConfig(**{field.name: getattr(config, field.name) for field in fields(RunDataConfig)})
        if self._run_data is None or key != self._key:
            device = self.device if self.device and config.device == "auto" else config.device
            self._run_data = RunData(replace(key, device=device), self.progress)
        elif subject != self._subject:
            self._run_data.clear_cache()
        self._key, self._subject = key, subject
        return self._run_data


def run_cell(
    cell: Cell, root: Path, cache: RunDataCache, progress: Progress = no_progress, overwrite: bool = False
) -> None:
    """Train and score a cell, unless it is done; with `overwrite`, in place of a run of other settings."""
    if is_complete(cell, root):
        return
    folder = RunFolder(root / cell.folder, overwrite)
    refuse_links(folder.path, below=root)
    run_data = cache.run_data(cell.config)
    result = run(cell.config, run_data, folder, progress)
    gates = [row.gate or result.protocol.gate for row in cell.rows]
    for gate in gates:
        check_gate(gate, result.method, folder.embeddings())
    options = [(result.reliability, row.rescoring, row.shuffle_texts, result.alpha) for row in cell.rows]
    scorings = [Scoring(gate, *each) for gate, each in zip(gates, options)]
    curves = repetition_curves(folder, run_data, scorings, cell.resamples) if cell.resamples else [None] * len(scorings)
    embeddings, result = folder.embeddings(), replace(result, images=[])  # result.json lists the images
    scored = [result.rescored(embeddings, how, curve=curve).to_json() for how, curve in zip(scorings, curves)]
    content = json.dumps({"asked": requested_scores(cell), "rows": scored}, indent=1)
    with lock(folder.path, activity="the scoring of a run"):
        write_atomically(folder.path / SCORES, content.encode() + b"\n")


def requested_scores(cell: Cell) -> dict:
    """Return what scores.json must be the answer to."""
    rows = [{**asdict(row), "name": None, "published": None} for row in cell.rows]
    return {"rows": rows, "resamples": cell.resamples}


def is_complete(cell: Cell, root: Path) -> bool:
    """Return whether run and scores of these settings are there; damaged files count as missing."""
    folder = root / cell.folder
    if not (folder / "result.json").is_file():
        return False
    try:
        refuse_links(folder, below=root)
        if RunFolder(folder).differences(cell.config):
            return False
        return read_json(folder / SCORES, "")["asked"] == requested_scores(cell)
    except (UserError, KeyError):
        return False


def load_scores(folder: Path) -> list[RunResult]:
    """Read the results of a complete cell, one for each way its training is scored; its embeddings must give them."""
    path = folder / SCORES
    remedy = "remove it, and 'bvsa reproduce' makes it again"
    rows = read_json(path, remedy).get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: damaged or incomplete; {remedy}")
    results, embeddings = [RunResult.from_json(row, path) for row in rows], RunFolder(folder).embeddings()
    for result in results:
        result.check_ranks(embeddings, path)
    return results


def levels_of(name: str, options: object) -> list[Level]:
    """Return every blur level that a method asks for, in training and at retrieval."""
    method = _small_method(name, options)
    return list(dict.fromkeys([*method.training_levels(), *method.gallery_levels()]))


def gallery_level_of(name: str, options: object) -> Level:
    """Return the blur level of the images that a method retrieves; the middle one of several."""
    levels = _small_method(name, options).gallery_levels()
    return levels[len(levels) // 2]


def learnt_levels(config: RunConfig, result: RunResult) -> dict[str, Level]:
    """Return the levels of a run's learnt blur by name, see `LearntBlur.values`; none if the run learnt no blur."""
    size = window_of(_small_method(config.method, config.method_options).training_levels())
    return {name: Level(size, each["gain"], each["sigma"]) for name, each in result.learnt_blur.items()}


def _small_method(name: str, options: object) -> methods.Method:
    """Return a method to ask for its blur levels, which do not depend on the shape of recordings."""
    shape = encoders.InputSpec(channels=17, time=250, embedding=2)
    return methods.method_class(name)(options, functools.partial(encoders.build, "eeg_project"), 1, shape)
