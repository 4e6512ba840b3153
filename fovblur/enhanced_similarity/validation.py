"""Argument checks and conversions of the public functions; the messages name the argument, its value and a remedy."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from fovblur.dtypes import DTYPES, accumulation_dtype, names

EMBEDDING_DTYPES = tuple(dtype for dtype in DTYPES if dtype.is_floating_point)


def check_embeddings(brain_image: Tensor, image: Tensor, brain_text: Tensor, text: Tensor) -> None:
    """Raise TypeError or ValueError unless the embeddings fit together: (N, D), (M, D), (N, E), (M, E)."""
    _check_matrix("brain_image", brain_image, "(N, D)")
    _check_matrix("image", image, "(M, D)")
    _check_matrix("brain_text", brain_text, "(N, E)")
    _check_matrix("text", text, "(M, E)")
    if brain_image.dtype not in EMBEDDING_DTYPES:
        raise TypeError(f"brain_image is {brain_image.dtype}; it must be one of {names(EMBEDDING_DTYPES)}")
    for name, other in (("image", image), ("brain_text", brain_text), ("text", text)):
        if other.dtype != brain_image.dtype:
            raise TypeError(f"{name} is {other.dtype} and brain_image {brain_image.dtype}; all must be of one dtype")
        if other.device != brain_image.device:
            raise ValueError(
                f"{name} is on {other.device} and brain_image on {brain_image.device}; they must be on one device"
            )
    _check_shared("image", image, "brain_image", brain_image, 1)
    _check_shared("brain_text", brain_text, "brain_image", brain_image, 0)
    _check_shared("text", text, "image", image, 0)
    _check_shared("text", text, "brain_text", brain_text, 1)


def gate(name: str, value: Tensor | None, of_name: str, of: Tensor) -> Tensor | None:
    """Return a gate in the dtype that is accumulated in, one value for each row of the embeddings `of`."""
    if value is None:
        return None
    rows = of.shape[0]
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; pass None or a torch.Tensor of shape ({rows},)")
    if value.ndim != 1 or value.shape[0] != rows:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be ({rows},), one for each row of {of_name}")
    if value.is_complex() or value.is_quantized or value.layout != torch.strided:
        raise TypeError(f"{name} is {value.layout} {value.dtype}; it must be dense and hold real numbers or booleans")
    if value.device != of.device:
        raise ValueError(
            f"{name} is on {value.device} and {of_name} on {of.device}; move it with {name}.to({of_name}.device)"
        )
    return value.to(accumulation_dtype(of.dtype))


def check_k(k: int, image: Tensor) -> None:
    """Raise TypeError or ValueError unless k is an int from 1 to the number of images."""
    if isinstance(k, (bool, torch.SymBool)) or not isinstance(k, (numbers.Integral, torch.SymInt)):
        raise TypeError(f"k is {k!r} ({type(k).__name__}); it must be an int")
    if k < 1 or k > image.shape[0]:
        raise ValueError(f"k is {k}; it must be from 1 to {image.shape[0]}, the number of rows of image")


def _check_matrix(name: str, value: Tensor, shape: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; pass a torch.Tensor of shape {shape}")
    if value.ndim != 2:
        hint = f"; add a dimension with {name}[None]" if value.ndim == 1 else ""
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be {shape}{hint}")
    if value.layout != torch.strided or value.is_quantized:
        raise TypeError(f"{name} must be a dense tensor; pass {name}.to_dense() or {name}.dequantize()")


def _check_shared(name: str, value: Tensor, other_name: str, other: Tensor, dim: int) -> None:
    if value.shape[dim] != other.shape[dim]:
        what = ("rows", "columns")[dim]
        message = f"{name} has shape {tuple(value.shape)} and {other_name} {tuple(other.shape)}"
        raise ValueError(f"{message}; their numbers of {what} must be the same")
