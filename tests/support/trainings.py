"""Short trainings of synthetic data sets."""

import dataclasses
from pathlib import Path

from bvsa_core.retrieval.result import RunResult
from bvsa_core.training.config import RunConfig, RunDataConfig
from bvsa_core.training.run import run
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder


def make_config(run_data: RunData, **changes) -> RunConfig:
    shared = {field.name: getattr(run_data.config, field.name) for field in dataclasses.fields(RunDataConfig)}
    return RunConfig(**{**shared, "epochs": 2, "batch_size": 32, **changes})


def train_run(folder: Path, run_data: RunData, **changes) -> RunResult:
    return run(make_config(run_data, **changes), run_data, RunFolder(folder))


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in RunFolder(folder).metrics()]
