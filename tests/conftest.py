"""Fixtures of all tests. Without a GPU, Triton runs in its interpreter; random tests print their seed."""

from __future__ import annotations

import os
import random

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
