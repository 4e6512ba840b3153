"""A Dask scheduler and workers as processes of this machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


class Cluster:
    """A scheduler, and workers that are started, suspended and killed one by one."""

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, list[subprocess.Popen]()
        about = folder / "scheduler.json"
        self.start("dask_scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", about)
        wait_for(lambda: about.exists() and about.stat().st_size > 0)
        self.address = json.loads(about.read_text())["address"]

    def start(self, program: str, *arguments: object) -> subprocess.Popen:
        """Start one of Dask's programs in a folder of its own, where it finds this repository."""
        path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "support")])
        command = [sys.executable, "-m", f"distributed.cli.{program}", *map(str, arguments), "--no-dashboard"]
        with open(self.folder / f"log{len(self.processes)}", "w") as log:
            environment = {**os.environ, "PYTHONPATH": path}
            process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def add_workers(self, count: int, threads: int = 1) -> list[subprocess.Popen]:
        """Start workers that are processes of their own, and wait until the scheduler knows them."""
        first = len(self.processes)
        flags = ("--no-nanny", "--nthreads", threads, "--local-directory", self.folder)
        workers = [self.start("dask_worker", self.address, *flags) for _ in range(count)]
        logs = [self.folder / f"log{number}" for number in range(first, first + count)]
        wait_for(lambda: all("Registered to" in log.read_text() for log in logs))
        return workers

    def remove_workers(self) -> None:
        self._kill(self.processes[1:])

    def close(self) -> None:
        self._kill(self.processes)

    def _kill(self, processes: Sequence[subprocess.Popen]) -> None:
        for process in processes:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def kill_in_the_middle(
    worker: subprocess.Popen, begun: Callable[[], object], progressed: Callable[[], object]
) -> threading.Thread:
    """Suspend a worker once work has begun, and kill it when others have got on, so that it surely had a task."""

    def watch() -> None:
        wait_for(begun)
        worker.send_signal(signal.SIGSTOP)
        wait_for(progressed)
        worker.kill()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread
