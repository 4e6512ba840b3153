"""Where training stands, kept so that a run that was stopped or killed goes on from there to the same numbers.

One file, RUN/resume.safetensors: parameters, per-sample state, the optimiser's moments, the best epoch's state so far and
the streams of random numbers as tensors, and what is no tensor as JSON in the file's metadata.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bvsa_core.distributed.processes import ProcessGroup
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import write_atomically
from bvsa_core.methods.base import Method
from bvsa_core.progress import Progress, no_progress
from bvsa_core.training.checkpoint import RunFolder
from bvsa_core.training.selection import Best

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SECONDS = 30.0  # between two states; more where they are so large that writing one takes a twentieth of that, or longer
WRITING = 20.0  # times as long as a write, training goes on before the next


class Stopped(KeyboardInterrupt):
    """Ctrl-C, after where training stands has been kept; the message says where."""


class TrainingState:
    """Everything that training goes on from.

    Args:
        total: () sum of the losses of the epoch so far.
    """

    def __init__(self, method: Method, optimiser: torch.optim.Optimizer, best: Best, total: Tensor, fabric: Fabric):
        self.method, self.optimiser, self.best, self.total = method, optimiser, best, total
        self.precision, self.device = fabric.strategy.precision, total.device
        self.epoch, self.batch = 0, 0  # the next ones

    def write(self) -> bytes:
        tensors = {f"method.{name}": value for name, value in self.method.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in (self.best.state or {}).items()}
        tensors |= {"total": self.total, "random": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        facts: dict = {
            "epoch": self.epoch,
            "batch": self.batch,
            "best": [self.best.merit, self.best.epoch],
            "optimiser": {},
        }
        for number, moments in self.optimiser.state_dict()["state"].items():
            numbers: dict[str, Any] = {}
            for name, value in moments.items():
                (tensors if isinstance(value, Tensor) else numbers)[f"optimiser.{number}.{name}"] = value
            facts["optimiser"][number] = [list(moments), numbers]
        numpy = np.random.get_state(legacy=False)
        numpy["state"]["key"] = numpy["state"]["key"].tolist()
        facts |= {"precision": self.precision.state_dict(), "python": random.getstate(), "numpy": numpy}
        content = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        return safetensors.torch.save(content, metadata={"facts": json.dumps(facts)})

    def read(self, content: bytes) -> None:
        """Go on from what `write` gave.

        Raises:
            ValueError, KeyError, RuntimeError, TypeError: it is damaged, or of something else.
        """
        length = int.from_bytes(content[:8], "little")
        facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["facts"])
        try:
            tensors = safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            raise ValueError(error) from error
        of = lambda part: {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}  # noqa: E731
        self.method.load_state_dict(of("method."))
        state = {}
        for number, (names, numbers) in facts["optimiser"].items():
            moments = of(f"optimiser.{number}.") | {name.rpartition(".")[2]: value for name, value in numbers.items()}
            state[int(number)] = {name: moments[name] for name in names}
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        merit, self.best.epoch = facts["best"]
        self.best.merit = tuple(merit) if merit is not None else None
        self.best.state = {name: value.to(self.device) for name, value in of("best.").items()} or None
        self.precision.load_state_dict(facts["precision"])
        self.total.copy_(tensors["total"])
        self.epoch, self.batch = facts["epoch"], facts["batch"]
        version, numbers, gauss = facts["python"]
        random.setstate((version, tuple(numbers), gauss))
        facts["numpy"]["state"]["key"] = np.array(facts["numpy"]["state"]["key"], dtype=np.uint32)
        np.random.set_state(facts["numpy"])
        torch.set_rng_state(tensors["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)


class Checkpointer:
    """Keeps in a run's folder where training stands, from time to time and when Ctrl-C asks to stop.

    Args:
        folder: None keeps nothing.
        team: processes that train together, of which the first writes.
        progress: hears of (epochs done, epochs in all) after batches, a few times a second.
    """

    def __init__(
        self,
        folder: RunFolder | None = None,
        team: ProcessGroup = ProcessGroup(),
        progress: Progress = no_progress,
    ):
        self.folder, self.team, self.progress = folder, team, progress
        self.stopping = False
        self.waits, self.kept, self.told = SECONDS, time.monotonic(), 0.0

    def resume(self, standing: TrainingState) -> None:
        """Bring training to where it stood when it was stopped, if it was.

        Raises:
            UserError: the file is damaged, or of another run.
        """
        if self.folder is None:
            return
        path = self.folder.resume
        content = self.team.ask_first(lambda: path.read_bytes() if path.exists() else None)
        if content is not None:
            try:
                standing.read(content)
            except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
                detail = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
                raise UserError(
                    f"{path}: not where this run stood ({detail}); delete it, and the run starts again"
                ) from error
        if self.team.rank == 0 and not self.folder.keep_metrics(standing.epoch):
            raise UserError(
                f"{self.folder.path}/metrics.jsonl: lines are missing; delete {path.name}, and the run starts again"
            )

    def passed(self, standing: TrainingState, epochs: int, batches: int) -> None:
        """Called after every batch and every epoch.

        Raises:
            Stopped: Ctrl-C has asked for it.
        """
        now = time.monotonic()
        if now - self.told > 0.25:
            self.told = now
            self.progress("epochs", standing.epoch + standing.batch / batches, epochs)
        if self.folder is None or self.team.rank > 0 or not (self.stopping or now - self.kept >= self.waits):
            return
        write_atomically(self.folder.resume, standing.write())
        self.kept = time.monotonic()
        self.waits = max(SECONDS, WRITING * (self.kept - now))
        if self.stopping:
            raise Stopped(f"{self.folder.path}: stopped in epoch {min(standing.epoch + 1, epochs)} of {epochs}")

    @contextmanager
    def catch_sigint(self) -> Iterator[None]:
        """Inside, Ctrl-C lets the batch at hand end, and a second one, in a single process, does not."""
        if self.folder is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            if self.stopping and self.team.size == 1:
                raise KeyboardInterrupt
            self.stopping = True  # torchrun passes on what the terminal has sent already

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
