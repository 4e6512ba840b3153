import os

import pytest
import torch
import triton_interpreter
from backends_under_test import implementation  # noqa: F401  (a fixture)
from gpu_kernels import gpu_resources  # noqa: F401  (likewise)
from gpu_streams import backend  # noqa: F401  (likewise)

if os.environ.get("TRITON_INTERPRET") == "1":
    triton_interpreter.use_deterministic_dot()


@pytest.fixture(autouse=True)
def torch_settings():
    """Restore the number of threads and the matmul precision, which tests may set."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
