"""Logging of the metrics of every epoch to TensorBoard or Weights & Biases."""

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bvsa_core.errors import UserError
from bvsa_core.io.atomic import refuse_links
from bvsa_core.io.text_files import flatten

Log = Callable[[dict], None]


def no_log(metrics: dict) -> None:
    """Ignore metrics; the default of functions that take a `Log`."""


@contextmanager
def logger(kind: str, folder: Path) -> Iterator[Log]:
    """Yield a function that logs metrics, a dict with their epoch.

    Args:
        kind: none, tensorboard (files in the folder) or wandb (a run of the folder's name, uploaded if there is a key).
        folder: of the run.
    """
    if kind == "none":
        yield no_log
        return
    if importlib.util.find_spec(kind) is None:
        raise UserError(f"--log {kind} needs {kind}; pip install 'fovblur[{kind}]'")
    refuse_links(folder / kind)
    yield from (_tensorboard if kind == "tensorboard" else _wandb)(folder)


def _tensorboard(folder: Path) -> Iterator[Log]:
    from lightning_fabric.loggers import TensorBoardLogger

    log = TensorBoardLogger(folder, name="tensorboard", version="")

    def write(metrics: dict) -> None:
        log.log_metrics(_numbers(metrics), metrics["epoch"])
        log.save()

    try:
        yield write
    finally:
        log.finalize("")


def _wandb(folder: Path) -> Iterator[Log]:
    import wandb

    @functools.cache
    def run():  # not before the first metrics, when the folder exists
        keyless = wandb.api.api_key is None and "WANDB_MODE" not in os.environ
        return wandb.init(project="bvsa", name=folder.resolve().name, dir=folder, mode="offline" if keyless else None)

    try:
        yield lambda metrics: run().log(_numbers(metrics), step=metrics["epoch"])
    finally:
        if run.cache_info().currsize:
            run().finish()


def _numbers(metrics: dict) -> dict[str, float]:
    """Return metrics by name, without the epoch; nested ones are called part/name."""
    return flatten({name: value for name, value in metrics.items() if name != "epoch"}, "/")
