"""Independent tasks: one after another in this process, on joblib's processes of this machine, or on a Dask cluster.

A task leaves files and computes only those that are missing. A lost worker therefore costs the task it was at, which is
tried again, and a command that was stopped continues.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from bvsa_core.allocator import tune_allocator
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress, no_progress
from bvsa_core.stopping import exit_with_parent

Item = TypeVar("Item")
Context = TypeVar("Context")
CONNECT_S = 5  # wait for the scheduler's answer
STOP_S = 10  # time that workers have after a signal to save their training
POLL_S = 0.5  # between looks at the workers of a cluster
TRIES = 3  # of a task whose workers are lost
LOST = "its worker was killed, perhaps for lack of memory; use fewer --workers"


@dataclass(frozen=True)
class Workers:
    """Where independent tasks run."""

    workers: int = 1
    """Number of processes on this machine that share the tasks."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://HOST:8786, whose workers share the tasks."""
    threads: int | None = None
    """CPU threads of a task; default: an equal share. The same number of threads gives the same bytes."""

    def __post_init__(self) -> None:
        for name, value in (("workers", self.workers), ("threads", self.threads)):
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}; it must be at least 1")
        if self.scheduler is not None and self.workers > 1:
            raise UserError("--workers is for this machine and --scheduler for a cluster; give one of them")
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError("each process of torchrun would do all tasks; use --workers or --scheduler instead")


class TaskPool(Generic[Context]):
    """Run functions `function(context, item, progress)`. Use it as a context manager.

    Args:
        options: where tasks run.
        context: what tasks of this process share, such as data that are loaded.
        make_context: makes that of a worker process, given its device: cuda:N, or None without GPUs.

    Raises:
        UserError: no scheduler answers at the address.
    """

    def __init__(self, options: Workers, context: Context, make_context: Callable[[str | None], Context]):
        self.options, self.context = options, context
        task = functools.partial(_run_task, functools.partial(_context, uuid.uuid4().hex, make_context))
        self._workers: _Processes | _Cluster | None = None
        if options.scheduler is not None:
            self._workers = _Cluster(options.scheduler, options.threads, task)
        elif options.workers > 1:
            threads = options.threads or max(1, torch.get_num_threads() // options.workers)
            self._workers = _Processes(options.workers, threads, task)

    def __enter__(self) -> TaskPool[Context]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._workers is not None:
            self._workers.close()

    def run(
        self,
        function: Callable[[Context, Item, Progress], None],
        items: Sequence[Item],
        progress: Progress = no_progress,
    ) -> Iterator[tuple[Item, str | None]]:
        """Yield every item when its task ends, in any order, with what went wrong: a message, or None.

        Args:
            progress: passed on to tasks of this process; those of workers report nothing.

        Raises:
            KeyboardInterrupt: Ctrl-C or another signal; a training has been saved, and the same tasks continue it.
        """
        if self._workers is not None:
            yield from _run_in_workers(self._workers, function, items)
            return
        before = torch.get_num_threads()
        torch.set_num_threads(self.options.threads or before)
        try:
            for item in items:
                yield item, _error_of(function, self.context, item, progress)
        finally:
            torch.set_num_threads(before)


def _run_in_workers(
    workers: _Processes | _Cluster, function: Callable, items: Sequence[Item]
) -> Iterator[tuple[Item, str | None]]:
    """Give every worker a task, and the next one when it ends; tasks whose worker is lost are tried again."""
    waiting, running = deque((item, 0) for item in items), dict[Future, tuple[Any, Item, int]]()
    try:
        while waiting or running:
            available, busy = workers.available(), {worker for worker, *_ in running.values()}
            free: list[Any] = [worker for worker in available if worker not in busy]
            for worker in free[: len(waiting)]:
                if running and waiting[0][1] and isinstance(workers, _Processes):
                    break  # on this machine it is tried again by itself, with all the memory
                item, losses = waiting.popleft()
                running[workers.submit(worker, function, item)] = worker, item, losses
            if not running:
                time.sleep(POLL_S)
            done, _ = wait(running, POLL_S, FIRST_COMPLETED)
            for task in [task for task, (worker, *_) in running.items() if task in done or worker not in available]:
                worker, item, losses = running.pop(task)
                if not _is_lost(task):
                    error = task.exception()
                    yield item, f"{type(error).__name__}: {error}" if error else task.result()
                    continue
                workers.stop(worker, task)
                if losses + 1 < TRIES:
                    waiting.append((item, losses + 1))
                else:
                    yield item, LOST
    except KeyboardInterrupt:
        workers.interrupt()
        for task in running:
            task.cancel()
        wait(running, STOP_S)
        raise
    finally:
        for task, (worker, *_) in running.items():
            workers.stop(worker, task)


def _is_lost(task: Future) -> bool:
    """Return whether a task, which has ended or whose worker is gone, has no result because its worker died."""
    if not task.done() or task.cancelled():
        return True
    error = task.exception()
    if isinstance(error, (BrokenProcessPool, KeyboardInterrupt)):  # loky's; the worker alone got a signal
        return True
    return type(error).__name__ == "KilledWorker"  # Dask's


class _Processes:
    """Processes of this machine. Each has an executor of its own, so that one that dies breaks no other."""

    def __init__(self, count: int, threads: int, task: Callable):
        self._count, self._threads, self._task = count, threads, task
        self._executors: dict[int, Any] = {}

    def available(self) -> range:
        return range(self._count)

    def submit(self, worker: int, function: Callable, item: Any) -> Future[str | None]:
        from joblib.externals.loky import ProcessPoolExecutor

        task = self._task, self._threads, worker, function, item
        try:
            return self._executors[worker].submit(*task)
        except (KeyError, BrokenProcessPool):  # not started yet, or killed since
            libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
            settings = {"initializer": exit_with_parent, "env": dict.fromkeys(libraries, str(self._threads))}
            self._executors[worker] = ProcessPoolExecutor(1, **settings)
            return self._executors[worker].submit(*task)

    def stop(self, worker: int, task: Future) -> None:
        self._executors.pop(worker).shutdown(kill_workers=True)

    def interrupt(self) -> None:
        """Make tasks save their training and end. Only a terminal's Ctrl-C reaches all processes by itself."""
        for executor in self._executors.values():
            for process in list(executor._processes):  # loky has no public way to them
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)

    def close(self) -> None:
        for executor in self._executors.values():
            executor.shutdown(kill_workers=True)


class _Cluster:
    """Workers of a Dask cluster: one task at a time each, whose threads are those of the worker."""

    def __init__(self, scheduler: str, threads: int | None, task: Callable):
        try:
            from distributed import Client
        except ImportError as error:
            raise UserError(f"--scheduler needs Dask ({error}); pip install 'fovblur[cluster]'") from error
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # its failures are reported in one line
        try:
            client = Client(scheduler, timeout=CONNECT_S)
        except (OSError, ValueError) as error:
            remedy = "start one with 'dask scheduler', and workers with 'dask worker ADDRESS'"
            raise UserError(f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); {remedy}") from error
        if not client.nthreads():
            log = logging.getLogger(__name__)
            log.warning("%s has no workers yet; start some with 'dask worker %s'", scheduler, scheduler)
        self._scheduler, self._threads, self._client = scheduler, threads, client
        self._task = functools.partial(_run_on_cluster, os.getcwd(), task)
        self._workers: dict[str, int] = {}  # threads by address

    def available(self) -> dict[str, int]:
        try:
            self._workers = self._client.nthreads()
        except OSError as error:
            raise UserError(f"--scheduler {self._scheduler}: {error}; the same command continues") from error
        return self._workers

    def submit(self, worker: str, function: Callable, item: Any) -> Future[str | None]:
        peers = [other for other in self._workers if other.rpartition(":")[0] == worker.rpartition(":")[0]]
        task = self._task, self._threads or self._workers[worker], sorted(peers).index(worker), function, item
        return self._client.get_executor(workers=[worker], pure=False).submit(*task)

    def stop(self, worker: str, task: Future) -> None:
        task.cancel()

    def interrupt(self) -> None:
        """Do nothing: tasks that are cancelled end by themselves, see `_run_on_cluster`."""

    def close(self) -> None:
        self._client.close()


def _error_of(function: Callable, context: Any, item: Any, progress: Progress) -> str | None:
    """Run a task; returns what went wrong, as a traceback if it is no fault of the user's."""
    try:
        function(context, item, progress)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except Exception:
        return traceback.format_exc()
    return None


@functools.lru_cache(maxsize=1)
def _context(pool: str, make_context: Callable[[str | None], Any], device: str | None) -> Any:
    """Return the context of a pool in this worker, which may outlive the pool."""
    tune_allocator()
    return make_context(device)


def _run_task(
    context: Callable, threads: int, number: int, function: Callable, item: Any, progress: Progress = no_progress
) -> str | None:
    """Run a task in a worker, which is the `number`th of its machine."""
    torch.set_num_threads(threads)
    gpus = torch.cuda.device_count()
    return _error_of(function, context(f"cuda:{number % gpus}" if gpus else None), item, progress)


class _Cancelled(BaseException):
    """The command that asked for a task has been stopped."""


_one_at_a_time = threading.Lock()  # random numbers and the number of threads are those of a process


def _run_on_cluster(folder: str, run_task: Callable, *task: Any) -> str | None:
    """Run a task in a worker of a Dask cluster, in the folder of the command, so that relative paths hold."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def stop_if_cancelled(*_: object) -> None:
        if key not in worker.state.tasks or worker.state.tasks[key].state != "executing":
            raise _Cancelled

    with _one_at_a_time:
        stop_if_cancelled()
        try:
            os.chdir(folder)
        except OSError as error:
            return f"{folder}: {error.strerror} on {worker.address}; all machines must see the folder by this path"
        return run_task(*task, stop_if_cancelled)
