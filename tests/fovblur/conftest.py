import os

import pytest
import torch
import triton_interpreter
from backends_under_test import implementation, served_dtype  # noqa: F401  (fixtures)
from gpu_kernels import gpu_resources  # noqa: F401  (likewise)
from similarity_under_test import similarity  # noqa: F401  (likewise)

if os.environ.get("TRITON_INTERPRET") == "1":
    triton_interpreter.use_deterministic_dot()


@pytest.fixture(autouse=True)
def torch_settings():
    """Restore the number of threads and the matmul precision, which tests may set."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
