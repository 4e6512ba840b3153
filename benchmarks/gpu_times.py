"""Device times of the GPU kernels beside a copy of the same bytes, cuBLAS, kornia and torchvision.

    python -m benchmarks.gpu_times blur-cuda similarity-cuda --json FILE

Each result is compared with the float64 reference. Times are those of CUDA events around single calls, with a cold L2
cache. A row is appended to FILE, as one line of JSON, before the next one begins. A row that fails, that takes too
long, or after which the device no longer answers, is recorded as failed, and the others are measured in a new process.
Rows that FILE has are not measured again. On a CPU, small cases rehearse the run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

import fovblur
from benchmarks import bench_blur, bench_similarity
from benchmarks.harness import largest_difference, machine, measure_limits, versions
from fovblur import backends

COPY, PRODUCTS = "copy of the same bytes", "its cuBLAS products"
CHECKED = 2  # samples that are compared
ROW_SECONDS = 40
# Largest error relative to the largest value, or in grey levels; gradients and similarities take twice as much.
ERROR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2, torch.uint8: 1.0}
TF32_ERROR = 2e-3


@dataclass(frozen=True)
class Blur:
    """A call of the blur, or the gradient of its images or of its sigmas and gains."""

    dtype: torch.dtype
    what: str = "forward"
    kernel_sizes: tuple[int, ...] = (51,)
    to_half: bool = False  # normalised
    batch: int = 1024
    side: int = 224

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        form = " to normalised float16" if self.to_half else ""
        sizes = " ".join(map(str, self.kernel_sizes))
        return f"{self.what}, {self.batch} x 3 x {self.side} x {self.side} {name}{form}, k {sizes}"


@dataclass(frozen=True)
class Similarity:
    """A matrix or top-k."""

    case: bench_similarity.Case
    tf32: bool = False

    def __str__(self) -> str:
        return f"{self.case}{' by tf32' if self.tf32 else ''}"


@dataclass(frozen=True)
class Call:
    """What is timed, how far it is from the reference, and what it is compared with."""

    function: Callable[[], object]
    error: Callable[[object], float]
    tolerance: float
    beside: str
    other: Callable[[], float]  # its seconds


HALF, SINGLE, BYTE = torch.float16, torch.float32, torch.uint8
IMAGES, PARAMETERS = "gradient of the images", "gradient of sigma and gain"
BLURS = [
    Blur(HALF),
    Blur(BYTE, to_half=True),
    Blur(SINGLE),
    Blur(HALF, IMAGES),
    Blur(SINGLE, IMAGES),
    Blur(HALF, PARAMETERS),
    Blur(SINGLE, PARAMETERS),
    Blur(torch.bfloat16),
    Blur(BYTE),
    Blur(HALF, kernel_sizes=(45, 51, 57)),
    Blur(HALF, kernel_sizes=(101,)),
    Blur(BYTE, to_half=True, kernel_sizes=(101,)),
    Blur(SINGLE, kernel_sizes=(101,)),
    Blur(HALF, batch=64),
    Blur(SINGLE, batch=64, side=96, kernel_sizes=(21,)),
]
BESIDE_PEERS = [Blur(SINGLE, batch=64), Blur(HALF, batch=64), Blur(SINGLE, IMAGES, batch=64)]
SIMILARITIES = [
    Similarity(bench_similarity.Case(16_384, 16_384, 1024, HALF)),
    Similarity(bench_similarity.Case(16_384, 16_384, 1024, torch.bfloat16)),
    Similarity(bench_similarity.Case(1024, 1_000_000, 1024, HALF, k=10)),
    Similarity(bench_similarity.Case(1024, 1_000_000, 1024, HALF, k=10, gate=0.0)),
    Similarity(bench_similarity.Case(8192, 8192, 1024, SINGLE)),
    Similarity(bench_similarity.Case(8192, 8192, 1024, SINGLE), tf32=True),
    Similarity(bench_similarity.Case(200, 200, 1024, SINGLE)),
]
PROFILED = [Blur(HALF), Blur(SINGLE), Blur(HALF, IMAGES), SIMILARITIES[2]]
PEERS = ("kornia", "torchvision loop")
GROUPS: dict[str, list[tuple[Blur | Similarity, str]]] = {
    "blur-cuda": [(case, "cuda") for case in BLURS],
    "blur-triton": [(case, "triton") for case in BLURS],
    "similarity-cuda": [(case, "cuda") for case in SIMILARITIES],
    "similarity-triton": [(case, "triton") for case in SIMILARITIES],
    "peers": [
        *((case, name) for case in BESIDE_PEERS for name in ("cuda", *PEERS)),
        *((case, "eager PyTorch") for case in SIMILARITIES[:3]),
    ],
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_times", description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--json", type=Path, help="file that rows are appended to, one a line")
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--profile", action="store_true", help="only run four kernels, once each, for Nsight Compute")
    chosen = parser.parse_args()
    if unknown := set(chosen.groups) - set(GROUPS):
        parser.error(f"no group {', '.join(sorted(unknown))}; choose of {', '.join(GROUPS)}")
    if not chosen.profile and not (chosen.groups and chosen.json):
        parser.error("give at least one GROUP and --json FILE, or --profile")
    if chosen.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is available; --device cpu rehearses")
    if chosen.profile:
        profile(chosen.device)
        return 0
    return measure(chosen.groups, chosen.json, chosen.device)


def measure(groups: list[str], file: Path, device: torch.device) -> int:
    """Append the rows of the groups, and print them; 1 if one failed."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["group"], row["case"], row["provider"]) for row in rows if "case" in row}
    with file.open("a") as target:
        if not rows:
            append(target, header(device))
        for group in groups:
            for case, provider in cases_of(group, device):
                row = {"group": group, "case": str(case), "provider": provider}
                if tuple(row.values()) not in done:
                    with restarted_if_stuck(target, row):
                        row |= measured(case, provider, device)
                        if device.type == "cuda":
                            torch.cuda.synchronize(device)
                    append(target, row)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    mine = [row for row in rows if row.get("group") in groups]
    print("\n".join(map(line_of, mine)))
    failed, skipped = (sum(key in row for row in mine) for key in ("failed", "skipped"))
    print(f"{len(mine)} rows: {failed} failed, {skipped} skipped")
    return 1 if failed or not mine else 0


def append(target, row: dict) -> None:
    print(json.dumps(row), file=target, flush=True)


def header(device: torch.device) -> dict:
    """Return what rows depend on: card, driver, versions, commit, date, settings, and the best rates of the device."""
    driver = printed("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    settings = {name: value for name, value in os.environ.items() if name.startswith("FOVBLUR_")}
    with contextlib.suppress(ImportError):
        settings["build"] = backends.build_info()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": os.environ.get("COMMIT") or printed("git", "describe", "--always", "--dirty"),
        "driver": driver,
        "machine": machine(device),
        "versions": {**versions(), "cuda": torch.version.cuda},
        "limits": asdict(measure_limits(device)),
        "settings": settings,
    }


def printed(*command: str) -> str | None:
    """Return what a command prints, or None if there is no such command or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def cases_of(group: str, device: torch.device) -> list[tuple[Blur | Similarity, str]]:
    return GROUPS[group] if device.type == "cuda" else [rehearsed(*pair) for pair in GROUPS[group]]


def rehearsed(case: Blur | Similarity, provider: str) -> tuple[Blur | Similarity, str]:
    """Return a small case that rehearses the table with the CPU's kernels."""
    if isinstance(case, Blur):
        case = replace(case, batch=2, side=64, kernel_sizes=(9,))
    else:
        case = replace(case, case=replace(case.case, recordings=20, images=50, width=16))
    return case, "cpu" if provider in ("cuda", "triton") else provider


@contextlib.contextmanager
def restarted_if_stuck(target, row: dict) -> Iterator[None]:
    """Record an exception as the failure of a row; go on in a new process if the row hangs or breaks the device."""

    def go_on(reason: str) -> None:
        append(target, {**row, "failed": reason})
        os.execv(sys.executable, sys.orig_argv)

    watch = threading.Timer(ROW_SECONDS, go_on, [f"took more than {ROW_SECONDS} s"])
    watch.daemon = True
    watch.start()
    try:
        yield
    except Exception as error:  # whatever a kernel, a compiler or a peer may raise
        row["failed"] = f"{type(error).__name__}: {str(error)[:500]}"
        try:
            torch.cuda.synchronize() if torch.cuda.is_available() else None
        except RuntimeError:
            watch.cancel()
            go_on(row["failed"])
    finally:
        watch.cancel()


def measured(case: Blur | Similarity, provider: str, device: torch.device) -> dict:
    """Return error, times and the comparison of one row, or why it is left out."""
    package = provider.split()[0]
    if package in ("kornia", "torchvision") and find_spec(package) is None:
        return {"skipped": f"{package} is not installed"}
    call = call_of(case, provider, device)
    error = call.error(call.function())
    seconds, spread, calls = timed(call.function, device)
    other = call.other()
    facts = {"median_ms": 1e3 * seconds, "spread": spread, "calls": calls, "error": error}
    facts |= {"beside": call.beside, "beside_ms": 1e3 * other, "times": seconds / other}
    if not error <= call.tolerance:
        facts["failed"] = f"wrong: the error is {error:.1e}, more than {call.tolerance:.1e}"
    return facts


def call_of(case: Blur | Similarity, provider: str, device: torch.device) -> Call:
    tf32 = isinstance(case, Similarity) and case.tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    return blur_call(case, provider, device) if isinstance(case, Blur) else similarity_call(case, provider, device)


def blur_call(case: Blur, provider: str, device: torch.device) -> Call:
    torch.manual_seed(0)
    images = torch.rand(case.batch, 3, case.side, case.side, device=device)
    images = images.mul(255).round().to(BYTE) if case.dtype == BYTE else images.to(case.dtype)
    sizes = bench_blur.kernel_sizes(case.batch, case.kernel_sizes, device)
    options = bench_blur.TO_HALF if case.to_half else {}
    tolerance = ERROR[HALF if case.to_half else case.dtype]
    if provider in PEERS:
        leaf = images.requires_grad_(case.what == IMAGES)
        blur = bench_blur.PEERS[provider].make(leaf, sizes)
    else:
        sigma = fovblur.sigma_from_kernel_size(sizes.float()).requires_grad_(case.what == PARAMETERS)
        gain = torch.full_like(sigma, bench_blur.GAIN, requires_grad=case.what == PARAMETERS)
        leaf = images.requires_grad_(case.what == IMAGES)
        given = {"kernel_size": sizes, "gain": gain, "backend": provider}
        blur = lambda: fovblur.foveated_blur(leaf, sigma, **given, **options)  # noqa: E731
    out = blur()
    bytes_moved = images.nbytes + out.nbytes
    copy = functools.partial(copy_seconds, bytes_moved, device)
    if case.what == "forward":
        error = functools.partial(blur_error, images, sizes, case)
        return Call(blur, error, tolerance, COPY, copy)
    grad = torch.rand_like(out)
    leaves = [leaf] if case.what == IMAGES else [sigma, gain]
    function = lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)  # noqa: E731
    expected = exact_gradients(images, sizes, grad, case.what)
    return Call(function, functools.partial(gradient_error, grad, expected, case.what), 2 * tolerance, COPY, copy)


def blur_error(images: Tensor, sizes: Tensor, case: Blur, result: Tensor) -> float:
    """Return the error of a few samples: relative to the largest value, or in grey levels if they are uint8."""
    images, sizes, result = (x[:CHECKED].detach() for x in (images, sizes, result))
    unit = images.double() / 255 if case.to_half else images.double()
    options = {"mean": bench_blur.MEAN, "std": bench_blur.STD} if case.to_half else {}
    expected = fovblur.foveated_blur(unit, kernel_size=sizes, gain=bench_blur.GAIN, backend="reference", **options)
    if result.dtype == BYTE:
        return (result.double() - expected).abs().max().item()
    return largest_difference(result, expected)


def exact_gradients(images: Tensor, sizes: Tensor, grad: Tensor, what: str) -> tuple[Tensor, ...]:
    """Return the gradients of a few samples by the float64 reference."""
    few = [x[:CHECKED].detach() for x in (images, sizes, grad)]
    leaf, sizes, grad = few[0].double().requires_grad_(), few[1], few[2].double()
    sigma = fovblur.sigma_from_kernel_size(sizes.double()).requires_grad_()
    gain = torch.full_like(sigma, bench_blur.GAIN, requires_grad=True)
    out = fovblur.foveated_blur(leaf, sigma, kernel_size=sizes, gain=gain, backend="reference")
    return torch.autograd.grad(out, [leaf] if what == IMAGES else [sigma, gain], grad)


def gradient_error(grad: Tensor, expected: tuple[Tensor, ...], what: str, result: tuple[Tensor, ...]) -> float:
    """Return the error relative to the largest value, or for parameters, whose terms cancel, to the sum of |grad|."""
    if what == IMAGES:
        return largest_difference(result[0][:CHECKED], expected[0])
    scale = grad[:CHECKED].double().abs().sum().item() / CHECKED
    return max((one[:CHECKED].double() - other).abs().max().item() / scale for one, other in zip(result, expected))


def similarity_call(case: Similarity, provider: str, device: torch.device) -> Call:
    of, gate = case.case, torch.full((case.case.recordings, 1), case.case.gate, dtype=case.case.dtype, device=device)
    embeddings = bench_similarity.make_embeddings(of.recordings, of.images, of.width, of.dtype, device)
    brain_image, image, brain_text, text = embeddings
    given = {"row_gate": gate[:, 0].float(), "backend": provider}
    if provider == "eager PyTorch":
        function = bench_similarity.by_eager(of, embeddings, gate)
    elif of.k:
        function = lambda: fovblur.enhanced_topk(*embeddings, of.k, **given)  # noqa: E731
    else:
        function = lambda: fovblur.enhanced_similarity(*embeddings, **given)  # noqa: E731
    error = lambda result: bench_similarity.error_of(of, result, embeddings, gate)  # noqa: E731
    tolerance = 2 * (TF32_ERROR if case.tf32 else ERROR[of.dtype])

    def products() -> object:
        return brain_image @ image.T, brain_text @ text.T if of.gate else None

    return Call(function, error, tolerance, PRODUCTS, lambda: timed(products, device)[0])


def timed(function: Callable[[], object], device: torch.device) -> tuple[float, float, int]:
    """Return the median in seconds, the interquartile range over the median, and the number of calls."""
    for _ in range(2):
        function()  # compiles, tunes, allocates
    once = min(times(function, 2, device))
    patience = 0.2 if device.type == "cuda" else 0.01
    calls = max(5, min(100, int(patience / max(once, 1e-6))))
    seconds = times(function, calls, device)
    low, median, high = statistics.quantiles(seconds, n=4)
    return median, (high - low) / median, calls


def times(function: Callable[[], object], calls: int, device: torch.device) -> list[float]:
    """Return the seconds of each call; on a GPU without those of the host, which queues work while the GPU waits."""
    if device.type == "cpu":
        seconds = []
        for _ in range(calls):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
        return seconds
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
    larger_than_l2 = torch.empty(2**28, dtype=torch.uint8, device=device)
    for start, end in marks:
        larger_than_l2.zero_()
        torch.cuda._sleep(1_000_000)
        start.record()
        function()
        end.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) / 1e3 for start, end in marks]


@functools.cache
def copy_seconds(bytes_moved: int, device: torch.device) -> float:
    source = torch.randint(0, 256, (bytes_moved // 2,), dtype=BYTE, device=device)
    target = torch.empty_like(source)
    return timed(lambda: target.copy_(source), device)[0]


def profile(device: torch.device) -> None:
    """Run each call of PROFILED twice, the second time between cudaProfilerStart and cudaProfilerStop."""
    for case in PROFILED:
        pair = (case, "cuda") if device.type == "cuda" else rehearsed(case, "cuda")
        function = call_of(*pair, device).function
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            with torch.cuda.profiler.profile():
                function()
                torch.cuda.synchronize(device)
        print(f"profiled: {case}", flush=True)


def line_of(row: dict) -> str:
    """Format a row for people."""
    name = f"{row['provider']:<16} {row['case']:<72}"
    if reason := row.get("skipped"):
        return f"{name} left out: {reason}"
    result = f"failed: {row['failed']}" if "failed" in row else f"error {row['error']:.0e}"
    if "median_ms" not in row:
        return f"{name} {result}"
    return f"{name} {row['median_ms']:9.3f} ms {row['times']:6.2f} x {row['beside']:<22} {result}"


if __name__ == "__main__":
    sys.exit(main())
