"""Element types, numbered as in the compiled modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# In the order of csrc/common/dtype.h's enum DType, which is passed by index.
DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def names(dtypes: Sequence[torch.dtype]) -> str:
    """Return the names for a message: "float16, float32"."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which tensors of `dtype` are accumulated: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
