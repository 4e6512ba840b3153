"""What every backend of the blur takes; csrc/foveated_blur/params.h declares the same structs for the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

Values: TypeAlias = float | Sequence[Any] | np.ndarray | Tensor  # a number, or numbers for every image or channel


class BlurParams(NamedTuple):
    """Parameters of one call, on the images' device; floats in the dtype that the blur accumulates in."""

    sigma: Tensor  # (B,) pixels, or (B, 2) along y and x, the last stride 1
    kernel_size: Tensor  # of sigma's shape, int32, odd
    gain: Tensor  # (B,)
    fixation: Tensor  # (B, 2) (y, x) pixels, the last stride 1
    mean: Tensor | None  # (C,) contiguous; None with std None: the result is not normalised
    std: Tensor | None  # (C,)
    weight: Tensor | None  # (B, H, W), of any strides, in place of the falloff
    falloff: str
    decay: float
    border: str = "reflect"
    tables: bool = False  # kernel sizes 3 to 9 take OpenCV's tables

    def of_image(self, index: int, weight: Tensor | None = None) -> BlurParams:
        """Return the parameters of a batch of one image, with a map (H, W) if one is given."""
        own = {name: getattr(self, name)[index : index + 1] for name in ("sigma", "kernel_size", "gain", "fixation")}
        return self._replace(weight=None if weight is None else weight[None], **own)


class BlurGradients(NamedTuple):
    """Tensors that a backward fills; None: not needed."""

    images: Tensor | None  # (B, C, H, W)
    sigma: Tensor | None  # as sigma
    gain: Tensor | None  # (B,)
