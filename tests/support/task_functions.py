"""What tests give to a pool of tasks, in a module that workers can import."""

import os
import signal
import time
from pathlib import Path

import torch

from bvsa_core.distributed.tasks import TaskPool, Workers
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress
from bvsa_core.stopping import Stopped


def context(device: str | None) -> list:
    """Return the context of a worker: its device, and the tasks it has done."""
    return [device]


def do(done: list, path: Path, progress: Progress) -> None:
    """Write a file that says where it was written, unless the name of the file says otherwise."""
    done.append(path.name)
    if path.name == "killed" or (path.name == "killed once" and not path.exists()):
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if path.name == "stopped once" and not path.exists():
        path.touch()
        raise Stopped("saved", signal.SIGTERM)  # as a training does
    if path.name == "wrong":
        raise UserError("a task is wrong")
    if path.name == "unreadable":
        Path("/nowhere").read_bytes()
    if path.name == "bug":
        raise ZeroDivisionError
    path.write_text(f"{os.getpid()} {torch.get_num_threads()} {done}")


def wait(done: list, folder: Path, progress: Progress) -> None:
    """Say who waits, and wait: in vain, or until the progress says that the command is stopped."""
    (folder / f"{os.getpid()}.pid").touch()
    try:
        while True:
            time.sleep(0.05)
            progress("waiting", 0, 1)
    finally:
        (folder / f"{os.getpid()}.stopped").touch()


def wait_in_workers(folder: str) -> None:
    """Run two tasks that wait."""
    with TaskPool(Workers(workers=2, threads=1), context(None), context) as pool:
        list(pool.run(wait, [Path(folder), Path(folder)]))
