"""Whether a call is made under a transform of torch.func, in forward mode or under a dispatch mode."""

from __future__ import annotations

import torch


def is_transformed() -> bool:
    """Return whether derivatives of custom ops are passed by: under transforms of torch.func and in forward mode."""
    if torch.compiler.is_compiling():
        return False
    innermost = torch._C._functorch.peek_interpreter_stack()
    if innermost is not None and innermost.key() == torch._C._functorch.TransformType.Functionalize:
        return False  # which knows no autograd functions, and needs none
    return torch.autograd.forward_ad._current_level >= 0 or innermost is not None


def is_under_a_mode() -> bool:
    """Return whether tensors that are made now may be those of a transform of torch.func or of a dispatch mode."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.peek_interpreter_stack() is not None
