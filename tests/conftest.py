"""Fixtures of all tests. Without a GPU, Triton runs in its interpreter; random tests print their seed."""

import os
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# In the background of a shell SIGINT is ignored, and processes that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Test files, or tests by the start of their names, that `pytest -m "not slow"` leaves to CI; with them all tests of GPU
# kernels, which run on the CPU.
SLOW = (
    "bvsa_core/cli/test_cli.py::test_a_run_repeats",
    "bvsa_core/cli/test_cli.py::test_demo_with_online",
    "bvsa_core/cli/test_cli.py::test_features_fill",
    "bvsa_core/cli/test_cli.py::test_flags_and_files_override",
    "bvsa_core/cli/test_data.py::test_training_on_the_store",
    "bvsa_core/cli/test_odd_run_folders.py",
    "bvsa_core/cli/test_report.py",
    "bvsa_core/cli/test_reproduce.py",
    "bvsa_core/cli/test_reproduce_page.py",
    "bvsa_core/cli/test_retrieve.py::test_a_run_with_fused",
    "bvsa_core/data/layouts/test_osf_raw.py",
    "bvsa_core/data/test_store.py::test_a_conversion_killed",
    "bvsa_core/distributed/",
    "bvsa_core/encoders/test_pretrained.py",
    "bvsa_core/io/test_fuzz.py",
    "bvsa_core/retrieval/test_search.py",
    "bvsa_core/training/test_checkpoint.py",
    "bvsa_core/training/test_intra_inter.py",
    "bvsa_core/training/test_run.py",
    "bvsa_core/training/test_targets.py",
    "bvsa_core/training/test_tuned_vision.py",
    "bvsa_core/vision/test_bank.py",
    "bvsa_core/vision/test_given_features.py::test_a_run_needs_no_image",
    "bvsa_core/vision/test_learnt_blur.py",
    "bvsa_core/vision/test_other_libraries.py",
    "bvsa_core/vision/test_tiny.py",
    "fovblur/test_cuda_compiled.py",
    "fovblur/test_foveated_blur.py::test_threads_of_a_block",
    "fovblur/test_gpu_native.py",
    "fovblur/test_gpu_resources.py",
    "fovblur/test_gradients.py",
    "fovblur/test_large.py",
    "fovblur/test_properties.py",
    "fovblur/test_ptx_kernels.py",
    "fovblur/test_sharding.py",
    "fovblur/test_similarity_properties.py",
    "fovblur/test_similarity_triton.py",
    "fovblur/test_triton_compiled.py",
    "fovblur/test_triton_options.py",
    "test_benchmarks.py",
    "test_build.py",
    "test_gpu_run.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in SLOW if not (Path(__file__).parent / name.partition("::")[0]).exists()]
    assert not missing, f"SLOW in {__file__} names {missing}, which are not there"
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        if name.startswith(SLOW) or re.search(r"[\[-](cuda|triton)[\]-]", name):
            item.add_marker("slow")


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
    from bvsa_core.vision import loading

    for registry in (encoders, methods, loading):
        monkeypatch.setattr(registry, "_registered", {})
