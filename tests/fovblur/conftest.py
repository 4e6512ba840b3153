import os

import triton_interpreter
from backends_under_test import implementation, served_dtype  # noqa: F401  (fixtures)
from gpu_kernels import gpu_resources  # noqa: F401  (likewise)
from similarity_under_test import similarity  # noqa: F401  (likewise)

if os.environ.get("TRITON_INTERPRET") == "1":
    triton_interpreter.use_deterministic_dot()
