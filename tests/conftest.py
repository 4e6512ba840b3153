"""Fixtures of all tests. Without a GPU, Triton runs in its interpreter; random tests print their seed."""

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def seed(request) -> int:
    """A seed that differs from run to run, printed when the test fails; FOVBLUR_TEST_SEED repeats a run."""
    value = int(os.environ.get("FOVBLUR_TEST_SEED", random.SystemRandom().randrange(2**31)))
    print(f"FOVBLUR_TEST_SEED={value}")
    torch.manual_seed(value)
    np.random.seed(value)
    return value


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, as processes of a grid or bank have; the fastest for small products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def registries(monkeypatch) -> None:
    """Empty the registries of methods and encoders; they are restored afterwards."""
    from bvsa_core import encoders, methods

    for registry in (encoders, methods):
        monkeypatch.setattr(registry, "_registered", {})
