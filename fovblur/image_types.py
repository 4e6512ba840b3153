"""A blur of tensors applied to whatever torchvision calls an image; the result is of the same kind."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fovblur.dtypes import DTYPES, names

# Modes of PIL that torchvision turns into tensors and back: each channel is blurred, alpha too.
PIL_MODES = ("L", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F")


def is_image(inpt: Any) -> bool:
    """Return whether an input is a PIL image, a plain tensor, or a tv_tensors.Image or Video."""
    if isinstance(inpt, Tensor):
        tv_tensors = sys.modules.get("torchvision.tv_tensors")
        if tv_tensors is None or not isinstance(inpt, tv_tensors.TVTensor):
            return True
        return isinstance(inpt, (tv_tensors.Image, tv_tensors.Video))
    return _is_pil(inpt)


def blur_image(inpt: Any, blur: Callable[[Tensor], Tensor]) -> Any:
    """Apply `blur`, of images (N, C, H, W) of a type in DTYPES, to one input for which :func:`is_image` holds.

    Other integer types are blurred in floating point and rounded.

    Raises:
        TypeError: a tensor of complex numbers, or of a float type that PyTorch does not compute in.
        ValueError: a tensor of fewer than three dimensions, or a PIL image whose mode has no channels to blur.
    """
    if isinstance(inpt, Tensor):
        return _blur_tensor(inpt, blur)
    from torchvision.transforms.v2 import functional as F

    if inpt.mode not in PIL_MODES:
        raise ValueError(f"a PIL image of mode {inpt.mode} has no channels to blur; pass image.convert('RGB')")
    return F.to_pil_image(_blur_tensor(F.pil_to_tensor(inpt), blur), mode=inpt.mode)


def _blur_tensor(inpt: Tensor, blur: Callable[[Tensor], Tensor]) -> Tensor:
    if inpt.ndim < 3:
        raise ValueError(f"inpt has shape {tuple(inpt.shape)}; it must be (..., C, H, W)")
    images = inpt.as_subclass(Tensor)
    images = images.reshape(math.prod(images.shape[:-3]), *images.shape[-3:])
    if images.dtype in DTYPES:
        blurred = blur(images)
    elif images.is_complex() or images.is_floating_point():
        raise TypeError(f"inpt is {images.dtype}; it must hold integers or booleans, or be one of {names(DTYPES)}")
    else:
        exact = torch.float64 if images.dtype.itemsize > 2 else torch.float32
        blurred = blur(images.to(exact)).round().to(images.dtype)
    blurred = blurred.reshape(inpt.shape)
    tv_tensors = sys.modules.get("torchvision.tv_tensors")
    if tv_tensors is not None and isinstance(inpt, tv_tensors.TVTensor):
        return tv_tensors.wrap(blurred, like=inpt)
    return blurred


def _is_pil(inpt: Any) -> bool:
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(inpt, pil.Image)
