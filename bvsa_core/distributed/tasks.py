"""Independent tasks: one after another in this process, on joblib's processes of this machine, or on a Dask cluster.

A task leaves files and computes only those that are missing. A lost worker therefore costs the task it was at, which is
tried again, and a command that was stopped continues.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import FrameType
from typing import Any, Generic, TypeVar

import torch

from bvsa_core.allocator import tune_allocator
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress, no_progress

Item = TypeVar("Item")
Context = TypeVar("Context")
CONNECT_S = 5  # wait for the scheduler's answer
STOP_S = 10  # time that workers have at Ctrl-C to save their training
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
        self.options, self.context, self.make_context = options, context, make_context
        self._name = uuid.uuid4().hex  # tells this pool's context from others in workers that outlive it
        self._client: Any = None

    def __enter__(self) -> TaskPool[Context]:
        if self.options.scheduler is not None:
            self._client = _connect(self.options.scheduler)
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

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
            KeyboardInterrupt: Ctrl-C; a training has been saved, and the same tasks continue it.
        """
        if self._client is not None:
            return self._run_on_cluster(function, items)
        if self.options.workers > 1:
            return self._run_in_processes(function, items)
        return self._run_here(function, items, progress)

    def _run_here(self, function: Callable, items: Sequence[Item], progress: Progress) -> Iterator:
        before = torch.get_num_threads()
        torch.set_num_threads(self.options.threads or before)
        try:
            for item in items:
                yield item, _error_of(function, self.context, item, progress)
        finally:
            torch.set_num_threads(before)

    def _run_in_processes(self, function: Callable, items: Sequence[Item]) -> Iterator:
        import joblib

        threads = self.options.threads or max(1, torch.get_num_threads() // self.options.workers)
        call = joblib.delayed(_run_in_worker)
        tasks, lost = dict(enumerate(items)), Counter[int]()
        waiting, alone = deque(tasks), deque[int]()
        while waiting or alone:
            queue = deque([alone.popleft()]) if alone else waiting
            started = list[int]()

            def calls(queue: deque[int] = queue, started: list[int] = started) -> Iterator:
                while queue:
                    started.append(number := queue.popleft())
                    yield call(self._name, self.make_context, threads, function, number, tasks[number])

            # Two workers even for one task: with one, joblib would run it in this process.
            workers = self.options.workers if queue is waiting else 2
            settings = {"return_as": "generator_unordered", "batch_size": 1, "pre_dispatch": "n_jobs"}
            try:
                with _stoppable(joblib.Parallel(workers, "loky", **settings)(calls())) as results:
                    for number, error in results:
                        yield tasks.pop(number), error
            except BrokenProcessPool:  # whichever task it was: each that was at work is tried again by itself
                lost.update(started)
                for number in tasks.keys() & set(started):
                    if lost[number] < TRIES:
                        alone.append(number)
                    else:
                        yield tasks.pop(number), LOST

    def _run_on_cluster(self, function: Callable, items: Sequence[Item]) -> Iterator:
        """Give every worker one task at a time, whatever its number of threads: these are the threads of the task."""
        from distributed import wait

        folder = os.getcwd()
        waiting, running = deque((item, 0) for item in items), dict[Any, tuple[str, Item, int]]()
        try:
            while waiting or running:
                workers = self._client.nthreads()
                busy = {address for address, _, _ in running.values()}
                for address in sorted(workers.keys() - busy)[: len(waiting)]:
                    item, lost = waiting.popleft()
                    peers = sorted(other for other in workers if other.rpartition(":")[0] == address.rpartition(":")[0])
                    place = self.options.threads or workers[address], peers.index(address), folder
                    task = self._name, self.make_context, *place, function, item
                    future = self._client.submit(_run_on_cluster_worker, *task, workers=[address], pure=False)
                    running[future] = address, item, lost
                if not running:
                    time.sleep(POLL_S)
                    continue
                with contextlib.suppress(asyncio.TimeoutError):
                    wait(list(running), timeout=POLL_S, return_when="FIRST_COMPLETED")
                for future in list(running):
                    address, item, lost = running[future]
                    if future.status == "pending" and address in workers:
                        continue
                    del running[future]
                    if future.status == "finished":
                        yield item, future.result()
                    elif future.status == "error" and type(error := future.exception()).__name__ != "KilledWorker":
                        yield item, f"{type(error).__name__}: {error}"
                    else:  # the worker is lost
                        self._client.cancel([future])
                        if lost + 1 < TRIES:
                            waiting.append((item, lost + 1))
                        else:
                            yield item, LOST
        except OSError as error:
            raise UserError(f"--scheduler {self.options.scheduler}: {error}; the same command continues") from error
        finally:
            if running:
                self._client.cancel(list(running))


def _connect(address: str) -> Any:
    """Return a client of a Dask scheduler.

    Raises:
        UserError: it cannot be reached.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError(f"--scheduler needs Dask ({error}); pip install 'fovblur[cluster]'") from error
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # its failures are reported in one line
    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--scheduler {address}: no Dask scheduler answers there ({error}); start one with 'dask scheduler', "
            "and workers with 'dask worker ADDRESS'"
        ) from error
    if not client.nthreads():
        logging.getLogger(__name__).warning("%s has no workers yet; start some with 'dask worker %s'", address, address)
    return client


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


_contexts: dict[str, Any] = {}  # of this worker process, by the name of the pool: one at most


def _context(pool: str, make_context: Callable[[str | None], Any], number: int) -> Any:
    """Return the context of a pool in this worker, which is the `number`th of its machine."""
    if pool not in _contexts:
        tune_allocator()
        _contexts.clear()
        gpus = torch.cuda.device_count()
        _contexts[pool] = make_context(f"cuda:{number % gpus}" if gpus else None)
    return _contexts[pool]


def _run_in_worker(
    pool: str, make_context: Callable, threads: int, function: Callable, number: int, item: Any
) -> tuple[int, str | None]:
    """Run a task in a process of joblib's."""
    if not _contexts:
        exit_with_parent()
    torch.set_num_threads(threads)
    worker = int(multiprocessing.current_process().name.rpartition("-")[2])  # LokyProcess-N
    try:
        return number, _error_of(function, _context(pool, make_context, worker), item, no_progress)
    except KeyboardInterrupt:  # the training is saved
        os._exit(130)


def exit_with_parent() -> None:
    """Make this worker exit on Ctrl-C, which the parent reports, and when the parent dies, which joblib does not do."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    parent = os.getppid()

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _stoppable(results: Any) -> Iterator[Any]:
    """Stop the tasks of joblib's generator at the end; at Ctrl-C, which workers receive too, let them save first."""

    def wait(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        end = time.monotonic() + STOP_S
        for worker in multiprocessing.active_children():
            worker.join(max(0, end - time.monotonic()))
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, wait)
    try:
        yield results
    finally:
        signal.signal(signal.SIGINT, before)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib's, about results that nobody took
            results.close()


class _Cancelled(BaseException):
    """The command that asked for a task has been stopped."""


_one_at_a_time = threading.Lock()  # random numbers and the number of threads are those of a process


def _run_on_cluster_worker(
    pool: str, make_context: Callable, threads: int, number: int, folder: str, function: Callable, item: Any
) -> str | None:
    """Run a task in a worker of a Dask cluster, in the folder of the command, so that relative paths hold."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def stop_if_cancelled(*_: object) -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state != "executing":
            raise _Cancelled

    with _one_at_a_time:
        stop_if_cancelled()
        try:
            os.chdir(folder)
        except OSError as error:
            return f"{folder}: {error.strerror} on {worker.address}; all machines must see the folder by this path"
        torch.set_num_threads(threads)
        return _error_of(function, _context(pool, make_context, number), item, stop_if_cancelled)
