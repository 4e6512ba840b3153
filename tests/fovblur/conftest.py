from backends_under_test import implementation  # noqa: F401  (a fixture)
