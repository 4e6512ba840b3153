"""What every backend of the blur takes; csrc/foveated_blur/params.h declares the same structs for the kernels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
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


def listed_images(
    images: Sequence[Tensor],
    out: Sequence[Tensor],
    weights: Sequence[Tensor] | None,
    tiles: Sequence[int] | None = None,
) -> Tensor:
    """Return what the kernels read of a list, on its device: a row of 15 int64 for each image, csrc's ListedImage.

    The fields of a row are the image's address (0) and strides (1 to 3), those of the result (4, 5 to 7), channels,
    height and width (8 to 10), address and strides of the map (11, 12 and 13), and the tiles of earlier images (14).

    Args:
        images: One or more, (C, H, W).
        out: The results.
        weights: Maps (H, W), or None.
        tiles: The number of tiles in each image, for kernels that make them.
    """
    maps = [(0, 0, 0)] * len(images) if weights is None else [(each.data_ptr(), *each.stride()) for each in weights]
    first_tiles = itertools.accumulate(([0] * len(images) if tiles is None else tiles)[:-1], initial=0)
    rows = [
        (image.data_ptr(), *image.stride(), result.data_ptr(), *result.stride(), *image.shape, *weight, tile)
        for image, result, weight, tile in zip(images, out, maps, first_tiles, strict=True)
    ]
    table = torch.tensor(rows, dtype=torch.int64)
    return table.pin_memory().to(images[0].device, non_blocking=True) if images[0].is_cuda else table
