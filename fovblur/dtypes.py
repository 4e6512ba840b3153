"""Element types, as Python and the compiled modules number them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# In the order of csrc/common's enum DType, which passes their index.
DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def names(dtypes: Sequence[torch.dtype]) -> str:
    """For messages: "float16, float32"."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
