from backends_under_test import implementation  # noqa: F401  (a fixture)
from gpu_kernels import gpu_resources  # noqa: F401  (likewise)
from similarity_under_test import similarity  # noqa: F401  (likewise)
