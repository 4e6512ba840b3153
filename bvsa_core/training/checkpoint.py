"""The training state, saved in RUN/resume.pt so that a run that was stopped or killed continues to the same numbers.

Its first line has a version and the SHA-256 of the rest: the run's settings, parameters, per-sample state, the
optimiser's state, the best epoch's weights so far and the states of the random number generators, as
torch.load(weights_only=True) reads them.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bvsa_core.distributed.processes import ProcessGroup
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import write_atomically
from bvsa_core.methods.base import Method
from bvsa_core.progress import Progress, no_progress
from bvsa_core.retrieval.result import LayerSelection
from bvsa_core.stopping import PREEMPTION, Stopped, handled
from bvsa_core.training.config import RunConfig, to_dict, with_layer
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.training.selection import Best

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SAVE_EVERY_S = 30.0
MAX_WRITE_SHARE = 1 / 20  # of the time may go into writing
VERSION = b"bvsa training state 3"  # before it, without a first line, or resume.safetensors
PLACES = {"data", "bank", "cache_dir", "device"}  # settings that a state does not depend on
# What torch.load and load_state_dict raise for damaged content, besides arithmetic and assertion errors.
UNREADABLE = (pickle.UnpicklingError, EOFError, RuntimeError, LookupError, TypeError, ValueError, AttributeError)


class TrainingState:
    """Everything that training continues from.

    Args:
        total: () sum of the losses of the epoch so far.
        config: of the run.
    """

    def __init__(
        self,
        method: Method,
        optimiser: torch.optim.Optimizer,
        best: Best,
        total: Tensor,
        fabric: Fabric,
        config: RunConfig,
    ):
        self.settings = {name: value for name, value in to_dict(config).items() if name not in PLACES}
        self.settings |= {f"SHA-256 of {name}": digest for name, digest in config.feature_digests().items()}
        self.parts: dict[str, Any] = {"method": method, "optimiser": optimiser, "precision": fabric.strategy.precision}
        self.best, self.total, self.device = best, total, total.device
        self.epoch, self.batch = 0, 0  # the next ones

    def to_bytes(self) -> bytes:
        """Serialise the state, and the random number generators of this process."""
        numpy: Any = np.random.get_state(legacy=False)
        numpy["state"]["key"] = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        generators = {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate(), "numpy": numpy}
        own = {"settings": self.settings, "epoch": self.epoch, "batch": self.batch, "total": self.total}
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        stream = io.BytesIO()
        torch.save({**own, **parts, "best": vars(self.best), "random": generators}, stream)
        return b"%b %b\n" % (VERSION, _digest(stream.getbuffer())) + stream.getbuffer()

    def load(self, content: bytes) -> None:
        """Restore what `to_bytes` saved; damaged content, or another run's, raises various exceptions."""
        saved = read_state(content)
        for name, value in self.settings.items():
            if saved["settings"].get(name) != value:
                raise ValueError(f"{name} was {saved['settings'].get(name)}, and is {value}")
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        vars(self.best).update(saved["best"])
        if self.best.state is not None:
            self.best.state = {name: value.to(self.device) for name, value in self.best.state.items()}
        self.total.copy_(saved["total"])
        self.epoch, self.batch = saved["epoch"], saved["batch"]
        generators = saved["random"]
        random.setstate(generators["python"])
        numpy = generators["numpy"]
        numpy["state"]["key"] = numpy["state"]["key"].numpy().astype(np.uint32)
        np.random.set_state(numpy)
        torch.set_rng_state(generators["torch"])
        if self.device.type == "cuda":
            if generators["cuda"] is None:
                raise ValueError("saved by a training on the CPU")
            torch.cuda.set_rng_state(generators["cuda"], self.device)


def read_state(content: bytes) -> dict[str, Any]:
    """Return what resume.pt holds; damaged content raises various exceptions."""
    first_line, _, archive = content.partition(b"\n")
    version, _, digest = first_line.rpartition(b" ")
    if version != VERSION:
        raise ValueError("damaged, or of another version")
    if digest != _digest(archive):
        raise ValueError("altered since it was saved: its checksum differs")
    return torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


class Checkpointer:
    """Saves the training state in a run's folder, from time to time and when a signal stops the training.

    Args:
        folder: None saves nothing.
        processes: those that train together; the first writes.
        progress: reports (epochs done, epochs in all) after batches, a few times a second.
    """

    def __init__(
        self,
        folder: RunFolder | None = None,
        processes: ProcessGroup = ProcessGroup(),
        progress: Progress = no_progress,
    ):
        self.folder, self.processes, self.progress = folder, processes, progress
        self.stopping: int | None = None  # the signal that stops the training
        self.save_interval, self.last_saved, self.last_reported = SAVE_EVERY_S, time.monotonic(), 0.0

    def begin(self, config: RunConfig) -> None:
        """Write the settings of the run, if it has a folder."""
        if self.folder is not None and self.processes.rank == 0:
            self.folder.begin(config)

    def select_layer(self, config: RunConfig, choose: Callable[..., LayerSelection]) -> LayerSelection | None:
        """Return the layer chosen for a run, which an earlier process may have done; None if none is to be chosen.

        Args:
            config: of the run.
            choose: called with the Top-1 of the layers tried before, and a function that saves it after every layer.
        """
        folder = self.folder
        known = None if folder is None else self.processes.broadcast(lambda: folder.selected_layer(config))
        if known is not None or not config.select_layer:
            return known
        tried = {} if folder is None else self.processes.broadcast(lambda: folder.tried_layers(config))
        written = folder if self.processes.rank == 0 else None
        features = {} if written is None else config.feature_digests()
        chosen = choose(tried, lambda top1: None if written is None else written.keep_tried_layers(top1, features))
        chosen = self.processes.broadcast(lambda: chosen)  # all train on the same layer
        if written is not None:
            written.keep_layer(chosen, with_layer(config, chosen.chosen))
        return chosen

    def resume(self, state: TrainingState) -> None:
        """Restore the state of a training that was stopped, if there is one."""
        if self.folder is None:
            return
        path = self.folder.resume
        content = self.processes.broadcast(lambda: path.read_bytes() if path.exists() else None)
        if content is not None:
            try:
                state.load(content)
            except (*UNREADABLE, ArithmeticError, AssertionError) as error:
                detail = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
                problem = f"not the state of this run ({detail})"
                raise UserError(f"{path}: {problem}; delete it, and the run starts again") from error
        if self.processes.rank == 0 and not self.folder.truncate_metrics(state.epoch):
            lines = f"{self.folder.path}/metrics.jsonl: lines are missing"
            raise UserError(f"{lines}; delete {path.name}, and the run starts again")

    def on_step_end(self, state: TrainingState, epochs: int, batches: int) -> None:
        """Report, and save the state if it is time to, after every batch and epoch; raise Stopped after a signal."""
        now = time.monotonic()
        if now - self.last_reported > 0.25:
            self.last_reported = now
            self.progress("epochs", state.epoch + state.batch / batches, epochs)
        due = self.stopping is not None or now - self.last_saved >= self.save_interval
        if self.folder is None or self.processes.rank > 0 or not due:
            return
        write_atomically(self.folder.resume, state.to_bytes())
        self.last_saved = time.monotonic()
        self.save_interval = max(SAVE_EVERY_S, (self.last_saved - now) / MAX_WRITE_SHARE)
        if self.stopping is not None:
            where = f"{self.folder.path}: stopped in epoch {min(state.epoch + 1, epochs)} of {epochs}"
            raise Stopped(where, self.stopping)

    @contextmanager
    def catch_signals(self) -> Iterator[None]:
        """Let the batch at hand end at a signal; a second Ctrl-C, in a single process, ends at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            if number == self.stopping == signal.SIGINT and self.processes.size == 1:
                raise KeyboardInterrupt
            self.stopping = number  # torchrun repeats the terminal's signal, and clusters theirs

        with handled((signal.SIGINT, *PREEMPTION) if self.folder else (), stop):
            yield
