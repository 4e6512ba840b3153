"""Cells dealt to processes of this machine, and what was wrong with those that failed."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch

from bvsa_core import allocator
from bvsa_core.distributed.processes import exit_with_parent
from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import RunDataCache, complete, run_cell
from bvsa_core.experiments.grid import Cell
from bvsa_core.progress import Progress, no_progress


def run_serial(
    cells: Sequence[Cell], root: Path, bench: RunDataCache, progress: Progress, threads: int | None = None
) -> dict[str, str]:
    """Run cells one after another. Returns what was wrong with those that failed, by cell."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    failures = {}
    try:
        for done, cell in enumerate(cells):
            progress("cells", done, len(cells))
            part = lambda _, epoch, epochs, done=done: progress("cells", done + epoch / epochs, len(cells))  # noqa: E731
            if told := run_one(cell, root, bench, part):
                failures[str(cell)] = told
    finally:
        torch.set_num_threads(before)
    progress("cells", len(cells), len(cells))
    return failures


def run_parallel(
    cells: Sequence[Cell], root: Path, workers: int, progress: Progress, threads: int | None = None
) -> dict[str, str]:
    """Run cells in so many processes, which share threads and GPUs. Returns what was wrong with those that failed."""
    waiting = [cell for cell in cells if not complete(cell, root)]
    done, failures = len(cells) - len(waiting), dict[str, str]()
    progress("cells", done, len(cells))
    if not waiting:
        return failures
    threads = threads or max(1, torch.get_num_threads() // workers)
    workers = min(workers, len(waiting))
    spawn = multiprocessing.get_context("spawn")
    devices = spawn.SimpleQueue()  # one for each worker
    for number in range(workers):
        devices.put(f"cuda:{number % torch.cuda.device_count()}" if torch.cuda.is_available() else None)
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker, initargs=(threads, devices)) as pool:
        futures = {pool.submit(_work, cell, root): cell for cell in waiting}
        try:
            for future in as_completed(futures):
                if told := _told(future):
                    failures[str(futures[future])] = told
                done += 1
                progress("cells", done, len(cells))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {str(cell): failures[str(cell)] for cell in cells if str(cell) in failures}


def _told(future: Future) -> str | None:
    try:
        return future.result()
    except BrokenProcessPool:
        return "a worker died, perhaps for lack of memory; use fewer --workers"


_bench: RunDataCache  # of a worker


def _start_worker(threads: int, devices: SimpleQueue) -> None:
    global _bench
    allocator.tune_allocator()
    torch.set_num_threads(threads)
    _bench = RunDataCache(devices.get())
    exit_with_parent()


def _work(cell: Cell, root: Path) -> str | None:
    try:
        return run_one(cell, root, _bench)
    except KeyboardInterrupt:  # the training has kept where it stands
        os._exit(130)


def run_one(cell: Cell, root: Path, bench: RunDataCache, progress: Progress = no_progress) -> str | None:
    """Run a cell; returns what was wrong, the whole traceback where it is no fault of the user's."""
    try:
        run_cell(cell, root, bench, progress)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except Exception:
        return traceback.format_exc()
    return None
