"""Processes that fill a bank, forked from one that has imported everything and computed nothing."""

import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist

from bvsa_core.distributed.processes import ProcessGroup
from bvsa_core.vision import shards
from bvsa_core.vision.bank import FeatureBank
from bvsa_core.vision.clip import load_clip
from bvsa_core.vision.views import Level, OnlineViews

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["open_clip", "bvsa_core.vision.bank", "bvsa_core.vision.tiny"])
IMAGES = 3  # of a shard


def start(function, *arguments: object) -> BaseProcess:
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def end(*processes: BaseProcess) -> list[int]:
    """Wait for processes; returns their exit codes."""
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def fill(
    folder: Path, paths: Sequence[Path], levels: Sequence[Level], counted: Path, rank: int = 0, world: int = 1
) -> None:
    """Fill a bank, and write how many features were computed for it."""
    torch.set_num_threads(1)
    shards.IMAGES = IMAGES
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}.meet", rank=rank, world_size=world)
    computed = count_features()
    FeatureBank(folder, load_clip(), paths).fill(levels, processes=ProcessGroup(rank, world))
    counted.write_text(json.dumps(sum(computed)))
    if world > 1:
        dist.destroy_process_group()


def count_features() -> list[int]:
    """Return a list to which every call of online views adds how many features it computes."""
    computed, original = [], OnlineViews.__call__

    def counting(self, indices, *blur):
        computed.append(len(indices))
        return original(self, indices, *blur)

    OnlineViews.__call__ = counting
    return computed


def fill_and_be_killed(folder: Path, paths: Sequence[Path], levels: Sequence[Level], method: str, nth: int) -> None:
    """Fill a bank until the nth file is renamed, or the nth shard is deleted, and be killed right before."""
    original, left = getattr(Path, method), [nth]

    def deadly(path, *arguments, **options):
        left[0] -= method == "replace" or ("-of-" in path.name and "partial" not in path.name)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(path, *arguments, **options)

    setattr(Path, method, deadly)
    fill(folder, paths, levels, folder.with_suffix(".counted"))
