"""The folder of a run.

RUN/run.yaml               the configuration, which 'bvsa train --config' takes
RUN/metrics.jsonl          one line an epoch
RUN/weights.safetensors    encoder, scale, weights of fused targets, per-sample state
RUN/embeddings.safetensors what retrieval compares: recordings, images and texts of the test set
RUN/result.json            the scores; a run is complete when it is there
RUN/resume.pt              the training state of a run that is not complete; see training.resume
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import yaml
from torch import nn

from bvsa_core.errors import UserError
from bvsa_core.io.atomic import append_line, clean_stale, is_temporary, lock, write_atomically
from bvsa_core.io.safe_readers import read_arrays
from bvsa_core.retrieval.result import RunResult
from bvsa_core.retrieval.scoring import Embeddings
from bvsa_core.training.config import RunConfig, from_dict, to_dict


def read_json(path: Path) -> dict:
    """What a run has written as JSON.

    Raises:
        UserError: the file is damaged.
    """
    return _object(path.read_text(errors="replace"), str(path))


def _object(text: str, where: str) -> dict:
    try:
        if isinstance(found := json.loads(text), dict):
            return found
    except ValueError:
        pass
    raise UserError(f"{where}: damaged or incomplete; train the run again")


class RunFolder:
    """A folder that holds one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def complete(self, config: RunConfig) -> bool:
        """Whether the run of this configuration is already complete there.

        Raises:
            UserError: the folder holds another run, or something else.
        """
        known = self.path / "run.yaml"
        if known.exists():
            if self._described() != to_dict(config):
                raise UserError(
                    f"{self.path}: holds a run with other settings (see run.yaml); choose another folder with --out"
                )
            if (old := self.path / "resume.safetensors").exists():
                raise UserError(f"{old}: the state of an earlier version; delete it, and the run starts again")
            return (self.path / "result.json").exists() and not self.resume.exists()
        if self.path.exists() and any(not is_temporary(path) for path in self.path.iterdir()):
            raise UserError(f"{self.path}: not empty and not a run; choose another folder with --out")
        return False

    def _described(self) -> dict:
        path = self.path / "run.yaml"
        try:
            described = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
        if not isinstance(described, dict):
            raise UserError(f"{path}: not the settings of a run; delete the folder, and train the run again")
        return described

    def known(self, config: RunConfig) -> RunResult | None:
        """The result of the run of this configuration, where it is complete there.

        Raises:
            UserError: the folder holds another run, or something else.
        """
        if not self.complete(config):
            return None
        clean_stale(self.path, activity="a run")
        return self.result()

    @contextmanager
    def claimed(self, config: RunConfig) -> Iterator[None]:
        """Have the folder for a run of this configuration to oneself.

        Raises:
            UserError: another process is at work there, or it cannot be written to.
        """
        with lock(self.path, activity="a run"):
            write_atomically(self.path / "run.yaml", yaml.safe_dump(to_dict(config), sort_keys=False).encode())
            yield

    @property
    def resume(self) -> Path:
        """The file of the training state."""
        return self.path / "resume.pt"

    def add_metrics(self, metrics: dict) -> None:
        append_line(self.path / "metrics.jsonl", json.dumps(metrics))

    def truncate_metrics(self, epochs: int) -> bool:
        """Drop the lines after the first `epochs`, and return whether that many are there."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)[:epochs] if epochs and path.exists() else []
        write_atomically(path, b"".join(lines))
        return len(lines) == epochs

    def finish(self, module: nn.Module, embeddings: Embeddings, result: RunResult) -> None:
        tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
        write_atomically(self.path / "weights.safetensors", safetensors.torch.save(tensors))
        compared = {name: value.detach().float().cpu().contiguous().clone() for name, value in vars(embeddings).items()}
        write_atomically(self.path / "embeddings.safetensors", safetensors.torch.save(compared))
        write_atomically(self.path / "result.json", json.dumps(result.to_json(), indent=2).encode() + b"\n")
        self.resume.unlink(missing_ok=True)

    def result(self) -> RunResult:
        """Read the result of a complete run.

        Raises:
            UserError: the folder holds no complete run, or a damaged one.
        """
        path = self.path / "result.json"
        if not path.is_file():
            raise UserError(
                f"{self.path}: no finished run there (result.json is missing); train one with 'bvsa train --out'"
            )
        return RunResult.from_json(read_json(path), path)

    def metrics(self) -> list[dict]:
        """What metrics.jsonl says of every epoch; nothing where it is not there.

        Raises:
            UserError: a line is damaged.
        """
        path = self.path / "metrics.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        return [_object(line, f"{path}: line {number}") for number, line in enumerate(lines, start=1)]

    def config(self) -> RunConfig:
        """What the run was told.

        Raises:
            UserError: run.yaml is missing, damaged, or of another version.
        """
        path = self.path / "run.yaml"
        if not path.is_file():
            raise UserError(f"{self.path}: no run there (run.yaml is missing); train one with 'bvsa train --out'")
        described = self._described()
        try:
            return from_dict(described)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def load_weights(self, module: nn.Module) -> None:
        """Put the trained weights and per-sample state into a module.

        Raises:
            UserError: they are missing, damaged, or of another shape.
        """
        path = self.path / "weights.safetensors"
        try:
            module.load_state_dict(read_arrays(path))
        except RuntimeError as error:
            raise UserError(
                f"{path}: not the weights of this run ({str(error).splitlines()[-1].strip()}); train it again"
            ) from error

    def embeddings(self) -> Embeddings:
        """What retrieval compares, as the run left it."""
        return Embeddings(**read_arrays(self.path / "embeddings.safetensors"))
