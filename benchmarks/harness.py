"""Shared by the suites: rows, memory, and the limits of the machine."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Row:
    """The result of one provider on one case."""

    suite: str
    case: str
    provider: str
    median_s: float
    spread: float  # interquartile range over the median
    peak_bytes: int  # beside the inputs
    ratio_to_best_of_ours: float  # above 1: slower than the fastest of ours on this case
    limit_s: float | None  # least time that memory and arithmetic allow on this machine, measured in the same run
    times_limit: float | None
    machine: dict
    versions: dict


@dataclass(frozen=True)
class Limits:
    """The best rates of this machine, measured in the same run."""

    copy_bytes_per_s: float  # read plus written
    fma_per_s: float  # float32 multiply-adds of a large matrix product
    half_fma_per_s: float  # in float16; a CPU computes in float32

    def seconds(self, bytes_moved: int, fma: int, *, half: bool = False) -> float:
        """Return the least time for moving these bytes and computing these multiply-adds."""
        return max(bytes_moved / self.copy_bytes_per_s, fma / (self.half_fma_per_s if half else self.fma_per_s))


def measure_limits(device: torch.device) -> Limits:
    """Time the copy of a buffer larger than any cache, and the product of two matrices."""
    source = torch.rand((64 if device.type == "cpu" else 1024) * 2**20, device=device)
    target = torch.empty_like(source)
    n = 2048 if device.type == "cpu" else 8192
    a, b = torch.rand(n, n, device=device), torch.rand(n, n, device=device)
    copy, product = _best(lambda: target.copy_(source), device), _best(lambda: a @ b, device)
    halves = a.half(), b.half()
    half_product = product if device.type == "cpu" else _best(lambda: torch.mm(*halves), device)
    return Limits(2 * source.nbytes / copy, n**3 / product, n**3 / half_product)


def _best(function: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(12):
        start = clock_of(device)()
        function()
        times.append(clock_of(device)() - start)
    return min(times)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Return a clock in seconds that first waits for the device."""
    if device.type == "cpu":
        return time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Return the most memory that a call adds, its result included; -1 if the system does not report it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not os.path.exists("/proc/self/statm"):
        return -1
    before, peak, done = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = function()
        peak = max(peak, _resident())
        del result
    finally:
        done.set()
        watcher.join()
    return max(0, peak - before)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def machine(device: torch.device) -> dict:
    """Describe the machine."""
    facts = {"processor": _processor(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory}
    return facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


PACKAGES = (
    "fovblur",
    "torch",
    "torchvision",
    "triton",
    "kornia",
    "opencv-python-headless",
    "pillow",
    "nvidia-dali",
    "scipy",
    "faiss-cpu",
    "numpy",
)


def versions() -> dict:
    """Return the versions of the packages that are timed and installed."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        for distribution in (name, f"{name}-cuda120", f"{name}-cuda130"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                installed[name] = metadata.version(distribution)
    return installed


def rows_of(report: dict, device: torch.device) -> list[Row]:
    """Convert pytest-benchmark's report; extra_info holds suite, case, provider, ours, peak_bytes and limit_s."""
    here, with_versions = machine(device), versions()
    timed = [(benchmark["extra_info"], benchmark["stats"]) for benchmark in report["benchmarks"]]
    best: dict[tuple[str, str], float] = {}
    for info, stats in timed:
        if info["ours"]:
            key = (info["suite"], info["case"])
            best[key] = min(best.get(key, stats["median"]), stats["median"])
    return [
        Row(
            suite=info["suite"],
            case=info["case"],
            provider=info["provider"],
            median_s=stats["median"],
            spread=stats["iqr"] / stats["median"],
            peak_bytes=info["peak_bytes"],
            ratio_to_best_of_ours=stats["median"] / best[info["suite"], info["case"]],
            limit_s=info["limit_s"],
            times_limit=stats["median"] / info["limit_s"] if info["limit_s"] else None,
            machine=here,
            versions=with_versions,
        )
        for info, stats in timed
    ]


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the largest value of `other`."""
    return ((one.double() - other.double()).abs().max() / other.double().abs().max()).item()


def table(rows: Sequence[Row]) -> str:
    """Format rows as aligned text, one block per case, the fastest first."""
    lines = []
    for suite, case in dict.fromkeys((row.suite, row.case) for row in rows):
        lines += ["", f"{suite}: {case}"]
        for row in sorted((r for r in rows if (r.suite, r.case) == (suite, case)), key=lambda r: r.median_s):
            limit = f"{row.times_limit:6.2f} x limit" if row.times_limit else " " * 14
            memory = f"{row.peak_bytes / 2**20:8.1f} MiB" if row.peak_bytes >= 0 else " " * 12
            lines.append(
                f"  {row.provider:<28} {1e3 * row.median_s:10.3f} ms  +-{100 * row.spread:4.0f} %  "
                f"{row.ratio_to_best_of_ours:8.2f} x ours  {limit}  {memory}"
            )
    return "\n".join(lines)
