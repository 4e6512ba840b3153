"""The folder of a run.

RUN/run.yaml               the configuration, which 'bvsa train --config' takes, and where its relative paths start
RUN/metrics.jsonl          one line an epoch
RUN/weights.safetensors    encoder, scale, weights of fused targets, per-sample state
RUN/embeddings.safetensors what retrieval compares: recordings, images and texts of the test set
RUN/result.json            the scores, and checksums of the three files above; a run is complete when it is there
RUN/resume.pt              the training state of a run that is not complete; see training.checkpoint
RUN/layers.json            the layer that --select_layer chose, until it is in result.json
RUN/tried_layers.json      the Top-1 of the layers that it has tried, until it has chosen
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypedDict

import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

from bvsa_core.data.store import sha256_of
from bvsa_core.errors import UserError, changes, first_few
from bvsa_core.io.atomic import (
    append_line,
    clean_stale,
    is_temporary,
    lock,
    os_errors_to_user_errors,
    refuse_links,
    remove,
    write_atomically,
)
from bvsa_core.io.safe_readers import read_arrays
from bvsa_core.io.text_files import flatten, parse_json, read_json, read_yaml
from bvsa_core.io.typed import build
from bvsa_core.retrieval.result import REMEDY, LayerSelection, RunResult
from bvsa_core.retrieval.scoring import Embeddings
from bvsa_core.training.config import GIVEN, LAYER_CHOSEN, SELECTIONS, SETTINGS, RunConfig, from_dict, to_dict
from bvsa_core.vision.learnt_blur import LearntValues

ACTIVITY = "a run"  # what other processes report while the folder is locked
NO_RUN = "train one with 'bvsa train --out'"
SELECT_AGAIN = "delete it, and the layer is chosen again"
WEIGHTS, EMBEDDINGS, METRICS = "weights.safetensors", "embeddings.safetensors", "metrics.jsonl"
OUTPUTS = (  # of a run and of commands that work on it, the one that makes it complete first
    "result.json", "scores.json", "resume.pt", "layers.json", "tried_layers.json", WEIGHTS, EMBEDDINGS, METRICS,
    "retrieved.json", "page.html", "tensorboard", "wandb",
)  # fmt: skip
PATHS = ("data", "bank", "cache_dir", *GIVEN, "texts", "concepts")  # settings that name a place
_START = "# relative paths start in {}, seen from this file"
ALTERED = "altered since the run ended (its checksum differs); delete its folder, and train the run again"
_LEVEL = re.compile(r"k\d+ gain \d+(\.\d+)?(e-\d+)?")


class _TriedLayers(TypedDict):
    top1: dict[str, float]


class _EveryMetric(TypedDict):
    epoch: int
    loss: float


class Metrics(_EveryMetric, total=False):
    """Metrics of one epoch, a line of metrics.jsonl; a run may have more."""

    blur: dict[str, int]  # training samples at each blur level
    learnt_blur: dict[str, LearntValues]
    validation_loss: float
    validation_top1: float
    test_top1: float
    test_map: float


class RunFolder:
    """A folder that holds one run.

    Methods raise UserError if files are missing, damaged, of another run or version, or cannot be written.

    Args:
        path: of the folder, which may be missing.
        overwrite: replace a run of other settings that is there.
    """

    def __init__(self, path: str | Path, overwrite: bool = False):
        self.path, self.overwrite = Path(path), overwrite
        self.settings = self.path / "run.yaml"
        self.resume = self.path / "resume.pt"  # the training state
        self.layers, self.tried = self.path / "layers.json", self.path / "tried_layers.json"

    def is_complete(self, config: RunConfig) -> bool:
        """Return whether the folder holds the complete run of a configuration."""
        if not self.settings.exists():
            if self.path.exists() and any(not is_temporary(path) for path in self.path.iterdir()):
                raise UserError(f"{self.path}: not empty and not a run; choose another folder with --out")
            return False
        if self._is_replaced(config):
            return False
        if differing := self.differences(config):
            problem = f"holds a run with other settings: {first_few(differing)}"
            remedy = "choose another folder with --out, or replace the run with --overwrite"
            raise UserError(f"{self.path}: {problem}; {remedy}")
        if (old := self.path / "resume.safetensors").exists():
            raise UserError(f"{old}: the state of an earlier version; delete it, and the run starts again")
        return (self.path / "result.json").exists() and not self.resume.exists()

    def differences(self, config: RunConfig) -> list[str]:
        """Return the settings in which the run there differs from a configuration, as "NAME OLD -> NEW"."""
        own = self.config()
        if config.select_layer and (self.layers.exists() or self._has_layers()):
            own = replace(own, target=config.target, select_layer=True)
        return changes(_comparable(own), _comparable(config))

    def _has_layers(self) -> bool:
        return (self.path / "result.json").is_file() and self.result().layers is not None

    def _is_replaced(self, config: RunConfig) -> bool:
        """Return whether the run there gives way to that of a configuration; a damaged one does, too."""
        if not self.overwrite or not self.settings.exists():
            return False
        try:
            return bool(self.differences(config))
        except UserError:
            return True

    def finished_result(self, config: RunConfig) -> RunResult | None:
        """Return the result of the run of a configuration, verified, or None if it is not complete."""
        if not self.is_complete(config):
            return None
        clean_stale(self.path, activity=ACTIVITY)
        return self.verify()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for a run."""
        with lock(self.path, activity=ACTIVITY):
            read = self.settings, self.resume, self.layers, self.tried, self.path / METRICS  # to continue the run
            for path in read:
                refuse_links(path)
            yield

    def begin(self, config: RunConfig) -> None:
        """Write the settings of a run whose data and options have been checked; the first files it writes.

        With `overwrite`, what a run of other settings left there is deleted before. The caller holds the lock.
        """
        if self._is_replaced(config):
            for name in OUTPUTS:
                with os_errors_to_user_errors(self.path / name):
                    remove(self.path / name)
        self._write_settings(config)

    def _write_settings(self, config: RunConfig) -> None:
        text = yaml.safe_dump(to_dict(config), sort_keys=False)
        if not all(path.is_absolute() for path in _paths(config).values()):
            text = f"{_START.format(os.path.relpath(Path.cwd(), self.path.resolve()))}\n{text}"
        write_atomically(self.settings, text.encode())

    def add_metrics(self, metrics: dict) -> None:
        """Append the metrics of an epoch."""
        append_line(self.path / METRICS, json.dumps(metrics))

    def truncate_metrics(self, epochs: int) -> bool:
        """Drop the lines after the first `epochs`, and return whether that many are there."""
        path = self.path / METRICS
        lines = path.read_bytes().splitlines(keepends=True)[:epochs] if epochs and path.exists() else []
        write_atomically(path, b"".join(lines))
        return len(lines) == epochs

    def finish(self, module: nn.Module, embeddings: Embeddings, result: RunResult) -> RunResult:
        """Write weights, embeddings and the result, which makes the run complete. Returns it with their checksums."""
        features = {name: value.float().clone() for name, value in vars(embeddings).items()}
        files = {METRICS: sha256_of(self.path / METRICS)}
        for name, tensors in ((WEIGHTS, module.state_dict()), (EMBEDDINGS, features)):
            content = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
            write_atomically(self.path / name, content)
            files[name] = hashlib.sha256(content).hexdigest()
        result = replace(result, files=files)
        write_atomically(self.path / "result.json", json.dumps(result.to_json(), indent=2).encode() + b"\n")
        for path in (self.resume, self.layers, self.tried):
            path.unlink(missing_ok=True)
        return result

    def selected_layer(self, config: RunConfig) -> LayerSelection | None:
        """Read the layer that has been chosen for the run of a configuration; None if it has not."""
        content = self._choice(self.layers, config)
        return None if content is None else build(LayerSelection, content, str(self.layers), SELECT_AGAIN)

    def _choice(self, path: Path, config: RunConfig) -> Any:
        """Read a file about the choice of a layer for a configuration; None if there is none."""
        if not path.exists() or self._is_replaced(config):
            return None
        content = read_json(path, SELECT_AGAIN)
        if isinstance(content, dict) and content.get("features", {}) != config.feature_digests():
            raise UserError(f"{path}: written for other features than those of this run; {SELECT_AGAIN}")
        return content

    def keep_layer(self, selection: LayerSelection, config: RunConfig) -> None:
        """Write the layer that has been chosen, and the settings of the run with it."""
        content = asdict(selection) | {"features": config.feature_digests()}
        write_atomically(self.layers, json.dumps(content, indent=2).encode() + b"\n")
        self._write_settings(config)
        self.tried.unlink(missing_ok=True)

    def tried_layers(self, config: RunConfig) -> dict[str, float]:
        """Read the Top-1 by layer that a choice for a configuration had found when it was stopped."""
        content = self._choice(self.tried, config)
        if content is None:
            return {}
        top1 = build(_TriedLayers, content, str(self.tried), SELECT_AGAIN)["top1"]
        if not all(0 <= value <= 1 for value in top1.values()):
            raise UserError(f"{self.tried}: top1 must be fractions; {SELECT_AGAIN}")
        return top1

    def keep_tried_layers(self, top1: dict[str, float], features: dict[str, str]) -> None:
        """Write the Top-1 of the layers that have been tried, from which a stopped choice continues.

        Args:
            top1: by layer.
            features: the digests of features that are given.
        """
        write_atomically(self.tried, json.dumps({"top1": top1, "features": features}, indent=2).encode() + b"\n")

    def result(self) -> RunResult:
        """Read the result of a complete run."""
        path = self.path / "result.json"
        if not path.is_file():
            inside = next(self.path.rglob("result.json"), None)
            remedy = f"give one of the runs in it, such as {inside.parent}" if inside else NO_RUN
            raise UserError(f"{self.path}: no finished run there (result.json is missing); {remedy}")
        return RunResult.from_json(read_json(path, REMEDY), path)

    def verify(self) -> RunResult:
        """Read the result, checking that it fits the settings and embeddings, and that no file has changed.

        Weights may be missing, as where only results are kept.
        """
        result = self.result()
        self._check_settings(result)
        if (self.path / WEIGHTS).is_file():
            self._check(WEIGHTS)
        result.check_ranks(self.embeddings(), self.path / "result.json")
        return result

    def _check_settings(self, result: RunResult) -> None:
        """Raise UserError if a result is not one of the run's settings."""
        config, protocol = self.config(), result.protocol
        names = ("method", "preset", "subject", "seed")
        pairs = {name: (getattr(result, name), getattr(config, name)) for name in names}
        pairs["selection"] = protocol.selection.partition(LAYER_CHOSEN)[0], SELECTIONS[config.selection]
        pairs["setting"] = protocol.setting or SETTINGS[config.setting], SETTINGS[config.setting]
        for name, (own, of_settings) in pairs.items():
            if own != of_settings:
                path = self.path / "result.json"
                raise UserError(f"{path}: {name} is {own}, and {of_settings} in run.yaml; {REMEDY}")

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics of every epoch; none if there is no metrics.jsonl."""
        path = self.path / METRICS
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        epochs = []
        for number, line in enumerate(lines, start=1):
            source = f"{path}: line {number}"
            epoch: dict[str, Any] = build(Metrics, parse_json(line, source, REMEDY), source, REMEDY)
            levels = epoch.get("blur", {"k1 gain 0": 1})
            if not all(map(_LEVEL.fullmatch, levels)) or min(levels.values(), default=0) < 1:
                raise UserError(f"{source}: blur must count samples by levels such as 'k51 gain 0.5'; {REMEDY}")
            epochs.append(epoch)
        if (self.path / "result.json").is_file():
            self._check(METRICS)
        return epochs

    def config(self) -> RunConfig:
        """Read the configuration of the run.

        Relative paths are those that the run was trained with as long as they lead to the same place, else absolute.
        """
        if not self.settings.is_file():
            raise UserError(f"{self.path}: no run there (run.yaml is missing); {NO_RUN}")
        settings = read_yaml(self.settings, "delete the folder, and train the run again")
        try:
            config = from_dict(settings)
        except UserError as error:
            raise UserError(f"{self.settings}: {error}") from error
        with open(self.settings, errors="replace") as file:
            match = re.fullmatch(_START.format("(.+)"), file.readline().rstrip("\n"))
        if match is None:
            return config
        start = self.path.resolve() / match[1]
        for name, path in _paths(config).items():
            if (there := (start / path).resolve()).exists() and there != path.resolve():
                setattr(config, name, there)
        return config

    def _read(self, name: str) -> dict[str, Tensor]:
        """Read the tensors of a file that the run wrote."""
        tensors = read_arrays(self.path / name)
        self._check(name)
        return tensors

    def _check(self, name: str) -> None:
        """Raise UserError if a file of a complete run is not the one whose checksum its result has."""
        path = self.path / name
        if (expected := self.result().files.get(name)) and not (path.is_file() and sha256_of(path) == expected):
            raise UserError(f"{path}: {ALTERED}")

    def load_weights(self, module: nn.Module) -> None:
        """Load the trained weights and per-sample state into a module."""
        tensors = self._read(WEIGHTS)
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            detail = str(error).splitlines()[-1].strip()
            raise UserError(f"{self.path / WEIGHTS}: not the weights of this run ({detail}); train it again") from error

    def embeddings(self) -> Embeddings:
        """Read the embeddings of the test set."""
        tensors = self._read(EMBEDDINGS)
        names = [each.name for each in fields(Embeddings)]
        matrices = [tensors.get(name, torch.empty(0)) for name in names]
        fit = tensors.keys() == {*names} and all(each.ndim == 2 and each.is_floating_point() for each in matrices)
        if fit:
            (queries, width), (images, image_width), (others, text_width), (texts, width_of_texts) = (
                each.shape for each in matrices
            )
            fit = 0 < queries == others <= images == texts and width == image_width and text_width == width_of_texts
        if not fit or not all(each.isfinite().all() for each in matrices):
            held = ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items()) or "nothing"
            problem = f"not the embeddings of a run ({held})"
            raise UserError(f"{self.path / EMBEDDINGS}: {problem}; delete its folder, and train the run again")
        return Embeddings(**tensors)


def _paths(config: RunConfig) -> dict[str, Path]:
    """Return the settings that name a place."""
    return {name: path for name in PATHS if (path := getattr(config, name)) is not None}


def _comparable(config: RunConfig) -> dict[str, Any]:
    """Return settings by name, with paths that are equal if they lead to the same place."""
    return flatten(to_dict(config) | {name: str(path.resolve()) for name, path in _paths(config).items()})
