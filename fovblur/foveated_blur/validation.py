"""Argument checks and conversions of the public functions; the messages name the argument, its value and a remedy."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from fovblur.dtypes import DTYPES
from fovblur.dtypes import names as _names
from fovblur.foveated_blur.params import BlurParams, Values
from fovblur.tracing import is_under_a_mode

# In the order of csrc/foveated_blur/blur_math.h's enum Falloff, which is passed by index.
FALLOFFS = ("exp", "linear", "quadratic", "log", "brachistochrone")
BORDERS = ("reflect", "symmetric", "replicate", "constant", "circular")  # of enum Border, there too
LARGEST_KERNEL_SIZE = 65535
LARGEST_SIGMA = 9830.7  # just above sigma_from_kernel_size(LARGEST_KERNEL_SIZE)
LARGEST_DECAY = 2e38  # times log2(e) it is a float32; infinity times a distance of 0 would be NaN
SMALLEST_STD = torch.finfo(torch.float32).tiny  # 1 / std of anything smaller would be infinite

_RANGES = {
    "sigma": (f"a finite number of pixels, from 0 to {LARGEST_SIGMA:g}", lambda v: (v >= 0) & (v <= LARGEST_SIGMA)),
    "kernel_size": (
        f"odd, from 1 to {LARGEST_KERNEL_SIZE}; without one, sigma can be at most 8191",
        lambda v: (v >= 1) & (v <= LARGEST_KERNEL_SIZE) & (v % 2 == 1),
    ),
    "gain": ("within [0, 1]", lambda v: (v >= 0) & (v <= 1)),
    "fixation": ("finite (y, x) pixels", lambda v: abs(v) <= 1e9),
    "weight": ("within [0, 1]", lambda v: (v >= 0) & (v <= 1)),
    "mean": ("finite", lambda v: abs(v) <= 3e38),
    "std": (
        f"finite and at least {SMALLEST_STD:.2g} in size",
        lambda v: (abs(v) <= 3e38) & (abs(v) >= SMALLEST_STD),
    ),
}
_FIT_INT32 = (torch.int32, torch.int16, torch.int8, torch.uint8)
_constants: dict[tuple, Tensor] = {}


def check_images(images: Tensor) -> None:
    """Raise TypeError or ValueError unless images is a dense tensor (..., C, H, W) of a supported dtype."""
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images is a {type(images).__name__}; pass a torch.Tensor of shape (..., C, H, W), or a list of images"
        )
    check_dense("images", images)
    if images.ndim < 3:
        hint = "; add the dimension of channels with images[None]" if images.ndim == 2 else ""
        raise ValueError(f"images has shape {tuple(images.shape)}; it must be (..., C, H, W){hint}")
    if images.ndim == 3 and _has_channels_last(images):
        hint = "; if it is (H, W, C), pass images.permute(2, 0, 1), else images[None]"
        raise ValueError(f"images has shape {tuple(images.shape)}; it must be (C, H, W){hint}")
    if images.dtype not in DTYPES:
        raise TypeError(f"images is {images.dtype}; it must be one of {_names(DTYPES)}")
    if _has_channels_last(images) and not torch.compiler.is_compiling():
        problem = f"images of shape {tuple(images.shape)} are taken as (..., C, H, W), {images.shape[-1]} pixels wide"
        warnings.warn(f"{problem}; if they are (..., H, W, C), pass images.movedim(-1, -3)", stacklevel=3)


def check_dense(name: str, value: Tensor) -> None:
    """Raise TypeError for a nested, sparse or quantized tensor."""
    if value.is_nested:
        raise TypeError(f"{name} is a nested tensor; pass a list, list({name}.unbind())")
    if value.layout != torch.strided or value.is_quantized:
        raise TypeError(f"{name} must be a dense tensor; pass {name}.to_dense() or {name}.dequantize()")


def _has_channels_last(images: Tensor) -> bool:
    """Return whether the last dimension looks like colours, and the one of the channels does not."""
    return images.shape[-1] in (3, 4) and images.shape[-3] > 4


def per_sample(name: str, value: Values, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a number, or values that broadcast to the leading dimensions of images, as one value an image, flat."""
    leading = images.shape[:-3]
    if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str):
        value = _from_host(name, value, images, "a number, or numbers for every image")
    if isinstance(value, Tensor):
        _check_tensor(name, value, images, integer=dtype == torch.int32)
        wanted = f"a number or {tuple(leading)}, one for each image"
        return _expand(name, _as_dtype(value, dtype), leading, wanted).reshape(math.prod(leading))
    number = _check_number(name, value, integer=dtype == torch.int32)
    return constant((number,), dtype, images).expand(math.prod(leading))


def per_axis(name: str, value: Values, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return sigma or the kernel size as one value an image, flat, or as pairs (images, 2), along y and x.

    Pairs are a tuple of two numbers, or a tensor or nested lists of one dimension more than the leading ones.
    """
    leading = images.shape[:-3]
    count = math.prod(leading)
    if is_pair(value):
        if any(isinstance(each, Tensor) for each in value):
            return torch.stack([per_sample(name, each, images, dtype) for each in value], 1)
        pair = tuple(_check_number(name, each, integer=dtype == torch.int32) for each in value)
        return constant(pair, dtype, images).expand(count, 2)
    if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str):
        wanted = "a number, a tuple (y, x), or numbers or pairs (y, x) for every image"
        value = _from_host(name, value, images, wanted)
    is_of_pairs = isinstance(value, Tensor) and not value.is_nested and value.ndim == len(leading) + 1
    if not isinstance(value, Tensor) or not is_of_pairs or value.shape[-1] != 2:
        return per_sample(name, value, images, dtype)
    _check_tensor(name, value, images, integer=dtype == torch.int32)
    pairs = (*leading, 2)
    return _expand(name, _as_dtype(value, dtype).contiguous(), pairs, f"{tuple(leading)} or {pairs}").reshape(count, 2)


def is_pair(value: object) -> TypeGuard[tuple[Any, Any]]:
    """Return whether a value is a tuple of two numbers, along y and along x."""
    has_several = lambda each: each.ndim > 0 if isinstance(each, Tensor) else isinstance(each, Sequence)  # noqa: E731
    return isinstance(value, tuple) and len(value) == 2 and not any(map(has_several, value))


def weight(value: Values, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a map (H, W) or maps of every image, with or without a channel of 1, as a tensor (images, H, W)."""
    *leading, _, height, width = images.shape
    if not isinstance(value, (Tensor, np.ndarray)):
        raise TypeError(f"weight is a {type(value).__name__}; it must be a tensor or an array (H, W) or (..., H, W)")
    if isinstance(value, np.ndarray):
        value = _from_host("weight", value, images, "a map (H, W)")
    if value.dtype == torch.bool:
        value = value.to(dtype)
    _check_tensor("weight", value, images, integer=False)
    if value.ndim == len(leading) + 3 and value.shape[-3] == 1:
        value = value.squeeze(-3)
    maps = (*leading, height, width)
    wanted = f"({height}, {width}), {maps} or {(*leading, 1, height, width)}"
    if value.shape[-2:] != (height, width):  # expanding 1 to many pixels would hide a mistake
        raise ValueError(f"weight has shape {tuple(value.shape)}; it must be {wanted}")
    return _expand("weight", value.to(dtype), maps, wanted).reshape(math.prod(leading), height, width)


def check_border(value: str) -> None:
    """Raise ValueError for an unknown border."""
    if value not in BORDERS:
        raise ValueError(f"border is {value!r}; it must be one of {', '.join(BORDERS)}")


def check_rule(value: str | None) -> None:
    """Raise ValueError for an unknown rule."""
    if value not in (None, "opencv"):
        raise ValueError(f"rule is {value!r}; it must be None or 'opencv'")


def check_out(out: Tensor, images: Tensor, out_dtype: torch.dtype) -> None:
    """Raise TypeError or ValueError unless the result can be written to `out`."""
    if not isinstance(out, Tensor):
        raise TypeError(f"out is a {type(out).__name__}; pass a tensor of the images' shape")
    check_dense("out", out)
    if out.shape != images.shape:
        raise ValueError(f"out has shape {tuple(out.shape)}; it must be {tuple(images.shape)}, as images")
    if out.dtype != out_dtype or out.device != images.device:
        raise ValueError(f"out is {out.dtype} on {out.device}; the result is {out_dtype} on {images.device}")


def check_memory_of_out(out: Tensor, inputs: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `out` has memory of its own, which nothing that is read meanwhile shares."""
    if torch.compiler.is_compiling() or is_under_a_mode():  # where tensors have no addresses
        return
    shared = [name for name, each in inputs.items() if _overlap(out, each)]
    if shared or _overlaps_itself(out):
        problem = f"out shares memory with {shared[0]}" if shared else "elements of out share memory"
        raise ValueError(f"{problem}; pass a tensor with memory of its own")


def _overlaps_itself(tensor: Tensor) -> bool:
    """Return whether elements share memory; dimensions that are interleaved count as if they did."""
    span = 0  # from the first to the last element, over the dimensions of smaller strides
    for stride, size in sorted(zip(tensor.stride(), tensor.shape)):
        if size > 1 and stride <= span:
            return True
        span += stride * max(0, size - 1)
    return False


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Return whether the memory that two tensors span, from the first element to the last, overlaps."""
    starts = one.data_ptr(), other.data_ptr()
    if one.numel() == 0 or other.numel() == 0 or 0 in starts:  # subclasses that wrap other tensors have no address
        return False
    spans = [
        each.element_size() * (1 + sum(stride * (size - 1) for stride, size in zip(each.stride(), each.shape)))
        for each in (one, other)
    ]
    return starts[0] < starts[1] + spans[1] and starts[1] < starts[0] + spans[0]


def per_channel(name: str, value: Values, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a number, C numbers or a tensor (C,) as a contiguous tensor (C,) on the images' device."""
    channels = images.shape[-3]
    if isinstance(value, np.ndarray) and value.ndim <= 1 and not torch.compiler.is_compiling():
        value = value.tolist()  # numbers, whose tensor is kept
    if isinstance(value, np.ndarray) or (
        isinstance(value, Sequence) and any(isinstance(each, (Sequence, Tensor)) for each in value)
    ):
        value = _from_host(name, value, images, f"a number or {channels} numbers, one for each channel")
    if isinstance(value, Tensor):
        _check_tensor(name, value, images, integer=False)
        if value.ndim > 1 or (value.ndim == 1 and value.shape[0] != channels):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; it must be a number or ({channels},), one for each channel"
            )
        return value.to(dtype).expand(channels).contiguous()
    values = tuple(value) if isinstance(value, Sequence) else (value,) * channels
    if len(values) != channels:
        raise ValueError(f"{name} has {len(values)} values; images has {channels} channels")
    return constant(tuple(_check_number(name, each, integer=False) for each in values), dtype, images)


def fixation(value: Values, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return two numbers (y, x), or pairs for every image, as (images, 2), whose last stride is 1.

    Several pairs for every image, (..., F, 2), become (images, F, 2).
    """
    leading = images.shape[:-3]
    batch = math.prod(leading)
    pairs = (*leading, 2)
    wanted = f"(2,) or {pairs}, as (y, x) pixels, or (..., F, 2)"
    if isinstance(value, np.ndarray) or (
        isinstance(value, Sequence) and any(isinstance(each, (Sequence, np.ndarray, Tensor)) for each in value)
    ):
        value = _from_host("fixation", value, images, "two numbers (y, x), or pairs for every image")
    if isinstance(value, Tensor):
        _check_tensor("fixation", value, images, integer=False)
        if value.shape[-1:] != (2,):
            raise ValueError(f"fixation has shape {tuple(value.shape)}; it must be {wanted}")
        value = value.to(dtype).contiguous()
        if value.ndim != len(leading) + 2:
            return _expand("fixation", value, pairs, wanted).reshape(batch, 2)
        if value.shape[-2] == 0:
            raise ValueError(f"fixation has shape {tuple(value.shape)}, with no fixation; it must be {wanted}")
        several = (*leading, *value.shape[-2:])
        return _expand("fixation", value, several, wanted).reshape(batch, *value.shape[-2:])
    if not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(f"fixation is {value!r}; it must be two numbers (y, x) or a tensor of shape {wanted}")
    pair = tuple(_check_number("fixation", each, integer=False) for each in value)
    return constant(pair, dtype, images).expand(batch, 2)


def _from_host(name: str, value: Sequence | np.ndarray, images: Tensor, wanted: str) -> Tensor:
    """Return values in host memory, whose range is checked, as a tensor on the images' device."""
    try:  # NumPy keeps Python's floats as they are, and refuses tensors whose gradients would be lost
        host = torch.as_tensor(np.array(value), device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        remedy = "; join tensors with torch.stack" if "tensor(" in repr(value) else ""
        raise TypeError(f"{name} is {value!r}; it must be {wanted} ({error}){remedy}") from error
    if host.dtype in (torch.uint16, torch.uint32, torch.uint64):  # which PyTorch cannot compare
        host = host.to(torch.int64)
    if not host.is_complex() and host.dtype != torch.bool:  # which are refused by name
        check_known(name, host)
    return host.to(images.device)


def _as_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int32 and value.dtype not in _FIT_INT32:  # otherwise 2^32 + 3 would become 3
        limits = torch.iinfo(torch.int32)
        value = value.to(torch.int64).clamp(limits.min, limits.max)
    return value.to(dtype)


def _expand(name: str, value: Tensor, shape: Sequence[int], wanted: str) -> Tensor:
    try:
        return value.expand(shape)
    except RuntimeError as error:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be {wanted}") from error


def decay(value: float) -> float:
    """Return the decay rate as a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"decay is a {type(value).__name__}; it must be a number")
    if not 0 <= value <= LARGEST_DECAY:
        raise ValueError(f"decay is {value}; it must be finite and at least 0, and at most {LARGEST_DECAY:g}")
    return float(value)


def check_falloff(value: str) -> None:
    """Raise ValueError for an unknown falloff."""
    if value not in FALLOFFS:
        raise ValueError(f"falloff is {value!r}; it must be one of {', '.join(FALLOFFS)}")


def out_dtype(value: torch.dtype | None, images: Tensor, normalise: bool) -> torch.dtype:
    """Return the dtype of the result; default: that of the images, or float32 for normalised uint8."""
    if value is None:
        return torch.float32 if normalise and images.dtype == torch.uint8 else images.dtype
    if value not in DTYPES:
        raise TypeError(f"out_dtype is {value!r}; it must be one of {_names(DTYPES)}")
    if value == torch.uint8 and (normalise or images.dtype != torch.uint8):
        raise ValueError("out_dtype uint8 is for uint8 images without mean and std; choose a floating-point out_dtype")
    if value == torch.float64 and images.dtype != torch.float64:
        raise ValueError(
            "out_dtype float64 is for float64 images, as others are blurred in float32; pass images.double()"
        )
    return value


def check_values(params: BlurParams, images: Tensor) -> None:
    """Check the ranges of parameters in CPU memory. The op calls it, because tracers have no values."""
    for name, value in params._asdict().items():
        if not isinstance(value, Tensor) or value.device.type != "cpu":
            continue
        _check_range(name, value[:1] if value.stride(0) == 0 else value)
    if params.fixation.device.type == "cpu":
        _warn_of_fractions(params.fixation, images)


def check_fixation(value: Tensor, images: Tensor) -> None:
    """Check fixations (images, 2) or (images, F, 2) in CPU memory, unless a tracer or a transform has made them."""
    check_known("fixation", value)
    if value.device.type == "cpu" and not torch.compiler.is_compiling() and not is_under_a_mode():
        _warn_of_fractions(value, images)


def _warn_of_fractions(fixation: Tensor, images: Tensor) -> None:
    if min(images.shape[-2:]) <= 2 or fixation.numel() == 0:
        return
    y, x = fixation.flatten(0, -2)[0].tolist()
    if 0 < y < 1 and 0 < x < 1 and ((fixation > 0) & (fixation < 1)).all():
        problem = f"fixation ({y:g}, {x:g}) is in pixels, (y, x), and next to the corner"
        warnings.warn(f"{problem}; multiply fractions of the image by (H - 1, W - 1)", stacklevel=3)


def check_known(name: str, value: Tensor) -> None:
    """Check the range of a tensor in CPU memory, unless it is that of a tracer or a transform."""
    if value.device.type == "cpu" and not torch.compiler.is_compiling() and not is_under_a_mode():
        _check_range(name, value)


def _check_range(name: str, value: Tensor) -> None:
    meaning, allowed = _RANGES[name]
    if value.numel() == 1 and allowed(value.item()):  # many times faster than operations on tensors
        return
    inside = allowed(value)
    if not inside.all():
        where = (~inside).nonzero()[0].tolist()
        place = f"[{', '.join(map(str, where))}]" if value.numel() > 1 else ""
        raise ValueError(f"{name}{place} is {value[tuple(where)].item():g}; it must be {meaning}")


def constant(values: tuple[float, ...], dtype: torch.dtype, images: Tensor) -> Tensor:
    """Return numbers as a cached tensor on the images' device; copies would stall a GPU and break graph capture."""
    if torch.compiler.is_compiling() or _is_capturing(images):  # fills are captured, copies from the host are not
        return torch.stack([torch.full((), value, dtype=dtype, device=images.device) for value in values])
    # A tracer's fake tensor does not mix with cached real ones, and what is made under a mode may be no real one.
    if type(images) not in (Tensor, torch.nn.Parameter) or is_under_a_mode() or torch.jit.is_tracing():
        return torch.tensor(values, dtype=dtype, device=images.device)
    key = (values, dtype, images.device)
    made = _constants.get(key)  # another thread may clear them at any time
    if made is None:
        if len(_constants) >= 4096:
            _constants.clear()
        with torch.inference_mode(False):
            made = torch.tensor(values, dtype=dtype, device=images.device)
        if type(made) is Tensor:  # not under a mode of __torch_function__
            _constants[key] = made
    return made


def _is_capturing(images: Tensor) -> bool:
    """Return whether the current stream records a CUDA graph, whose memory must not be cached."""
    return images.is_cuda and torch.cuda.is_current_stream_capturing()


def _check_tensor(name: str, value: Tensor, images: Tensor, integer: bool) -> None:
    check_dense(name, value)
    if value.device != images.device:
        raise ValueError(
            f"{name} is on {value.device} and images on {images.device}; move it with {name}.to(images.device)"
        )
    is_integer = not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool
    if integer and not is_integer:
        raise TypeError(f"{name} is a tensor of {value.dtype}; it must hold integers")
    if not is_integer and not value.is_floating_point():
        raise TypeError(f"{name} is a tensor of {value.dtype}; it must hold real numbers")


def _check_number(name: str, value: object, integer: bool) -> Any:
    kind = numbers.Integral if integer else numbers.Real
    if isinstance(value, (bool, torch.SymBool)) or not isinstance(value, (kind, torch.SymInt, torch.SymFloat)):
        wanted = "an int or an integer tensor" if integer else "a number or a tensor"
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); it must be {wanted}")
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        return value
    meaning, allowed = _RANGES[name]
    if not allowed(value):
        raise ValueError(f"{name} is {value}; it must be {meaning}")
    return value
