"""Fixtures of the suites: the device, its limits, and `time_provider`, which times and records a provider."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.harness import Limits, clock_of, measure_limits, peak_bytes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where the suites run")


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def limits(device) -> Limits:
    return measure_limits(device)


@pytest.fixture
def time_provider(benchmark, device) -> Callable:
    """Return a function that times a provider with pytest-benchmark and records suite, case, provider, ours, limit_s.

    `least` is the smallest number of rounds, used if they take longer than `seconds` in all.
    """

    def run(function: Callable[[], object], *, seconds: float = 2.0, least: int = 5, **info) -> None:
        clock = clock_of(device)
        function()  # warm-up: compile, tune, allocate
        start = clock()
        function()
        once = clock() - start
        iterations = max(1, min(100, int(0.02 / max(once, 1e-7)))) if device.type == "cuda" else 1
        rounds = max(least, min(50, int(seconds / (once * iterations))))
        benchmark._timer = clock
        benchmark.pedantic(function, rounds=rounds, iterations=iterations)
        benchmark.extra_info |= {"peak_bytes": peak_bytes(function, device), **info}

    return run
