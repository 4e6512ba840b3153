"""The folder of a run.

RUN/run.yaml               the configuration, which 'bvsa train --config' takes
RUN/metrics.jsonl          one line an epoch
RUN/weights.safetensors    encoder, scale, weights of fused targets, per-sample state
RUN/embeddings.safetensors what retrieval compares: recordings, images and texts of the test set
RUN/result.json            the scores; a run is complete when it is there
RUN/resume.pt              the training state of a run that is not complete; see training.checkpoint
"""

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
from bvsa_core.io.text_files import parse_json, read_json, read_yaml
from bvsa_core.retrieval.result import RunResult
from bvsa_core.retrieval.scoring import Embeddings
from bvsa_core.training.config import RunConfig, from_dict, to_dict

ACTIVITY = "a run"  # what other processes report while the folder is locked
REMEDY = "delete it, and train the run again"
NO_RUN = "train one with 'bvsa train --out'"


class RunFolder:
    """A folder that holds one run.

    Methods raise UserError if files are missing, damaged, of another run or version, or cannot be written.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.settings = self.path / "run.yaml"
        self.resume = self.path / "resume.pt"  # the training state

    def is_complete(self, config: RunConfig) -> bool:
        """Return whether the folder holds the complete run of a configuration."""
        if not self.settings.exists():
            if self.path.exists() and any(not is_temporary(path) for path in self.path.iterdir()):
                raise UserError(f"{self.path}: not empty and not a run; choose another folder with --out")
            return False
        if read_yaml(self.settings, "delete the folder, and train the run again") != to_dict(config):
            problem = "holds a run with other settings (see run.yaml)"
            raise UserError(f"{self.path}: {problem}; choose another folder with --out")
        if (old := self.path / "resume.safetensors").exists():
            raise UserError(f"{old}: the state of an earlier version; delete it, and the run starts again")
        return (self.path / "result.json").exists() and not self.resume.exists()

    def finished_result(self, config: RunConfig) -> RunResult | None:
        """Return the result of the run of a configuration, or None if it is not complete."""
        if not self.is_complete(config):
            return None
        clean_stale(self.path, activity=ACTIVITY)
        return self.result()

    @contextmanager
    def locked(self, config: RunConfig) -> Iterator[None]:
        """Lock the folder for a run of a configuration, which is written to run.yaml."""
        with lock(self.path, activity=ACTIVITY):
            write_atomically(self.settings, yaml.safe_dump(to_dict(config), sort_keys=False).encode())
            yield

    def add_metrics(self, metrics: dict) -> None:
        """Append the metrics of an epoch."""
        append_line(self.path / "metrics.jsonl", json.dumps(metrics))

    def truncate_metrics(self, epochs: int) -> bool:
        """Drop the lines after the first `epochs`, and return whether that many are there."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)[:epochs] if epochs and path.exists() else []
        write_atomically(path, b"".join(lines))
        return len(lines) == epochs

    def finish(self, module: nn.Module, embeddings: Embeddings, result: RunResult) -> None:
        """Write weights, embeddings and the result, which makes the run complete."""
        features = {name: value.float().clone() for name, value in vars(embeddings).items()}
        for name, tensors in (("weights", module.state_dict()), ("embeddings", features)):
            tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            write_atomically(self.path / f"{name}.safetensors", safetensors.torch.save(tensors))
        write_atomically(self.path / "result.json", json.dumps(result.to_json(), indent=2).encode() + b"\n")
        self.resume.unlink(missing_ok=True)

    def result(self) -> RunResult:
        """Read the result of a complete run."""
        path = self.path / "result.json"
        if not path.is_file():
            raise UserError(f"{self.path}: no finished run there (result.json is missing); {NO_RUN}")
        return RunResult.from_json(read_json(path, REMEDY), path)

    def metrics(self) -> list[dict]:
        """Read the metrics of every epoch; none if there is no metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        epochs = [parse_json(line, f"{path}: line {number}", REMEDY) for number, line in enumerate(lines, start=1)]
        for number, epoch in enumerate(epochs, start=1):
            if not {"epoch", "loss"} <= epoch.keys():
                raise UserError(f"{path}: line {number} has no epoch and loss; {REMEDY}")
        return epochs

    def config(self) -> RunConfig:
        """Read the configuration of the run."""
        if not self.settings.is_file():
            raise UserError(f"{self.path}: no run there (run.yaml is missing); {NO_RUN}")
        settings = read_yaml(self.settings, "delete the folder, and train the run again")
        try:
            return from_dict(settings)
        except UserError as error:
            raise UserError(f"{self.settings}: {error}") from error

    def load_weights(self, module: nn.Module) -> None:
        """Load the trained weights and per-sample state into a module."""
        path = self.path / "weights.safetensors"
        try:
            module.load_state_dict(read_arrays(path))
        except RuntimeError as error:
            detail = str(error).splitlines()[-1].strip()
            raise UserError(f"{path}: not the weights of this run ({detail}); train it again") from error

    def embeddings(self) -> Embeddings:
        """Read the embeddings of the test set."""
        return Embeddings(**read_arrays(self.path / "embeddings.safetensors"))
