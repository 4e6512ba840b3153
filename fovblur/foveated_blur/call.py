"""One call of the blur: from the arguments as they are given to parameters of every image, and to the op."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fovblur import backends
from fovblur.dtypes import accumulation_dtype
from fovblur.foveated_blur import reference, validation
from fovblur.foveated_blur.autograd import differentiable_blur
from fovblur.foveated_blur.op import foveated_blur_out_op
from fovblur.foveated_blur.params import BlurParams, Values
from fovblur.foveated_blur.sizes import kernel_size_from_sigma, opencv_kernel_size, sigma_from_kernel_size
from fovblur.sharding import by_sample, is_distributed
from fovblur.tracing import is_transformed, is_under_a_mode

PER_IMAGE, SHARED = ("sigma", "kernel_size", "gain", "fixation", "weight"), ("mean", "std")  # fields of BlurParams


class Arguments(NamedTuple):
    """The arguments of :func:`fovblur.foveated_blur`, but for the images and `out`."""

    sigma: Values | None
    kernel_size: Values | None
    gain: Values
    decay: float
    falloff: str
    fixation: Values | None
    weight: Values | Sequence[Values] | None
    mean: Values | None
    std: Values | None
    border: str
    rule: str | None
    out_dtype: torch.dtype | None
    backend: str | None

    @property
    def normalises(self) -> bool:
        """Return whether the result is (y - mean) / std."""
        return self.mean is not None or self.std is not None

    def size_of(self, sigma, dtype: torch.dtype):
        """Return the kernel size of a sigma by the rule that is asked for, for images of a dtype."""
        return opencv_kernel_size(sigma, dtype) if self.rule else kernel_size_from_sigma(sigma)


def blur(images: Tensor, arguments: Arguments, out: Tensor | None = None) -> Tensor:
    """Blur images (..., C, H, W) that are checked."""
    shape = images.shape
    params = params_of(images, arguments)
    given = out.dtype if isinstance(out, Tensor) and arguments.out_dtype is None else arguments.out_dtype
    out_dtype = validation.out_dtype(given, images, arguments.normalises)
    if out is not None:
        validation.check_out(out, images, out_dtype)
    if arguments.weight is not None:
        params = params._replace(weight=validation.weight(arguments.weight, images, params.sigma.dtype))
    flat = images if images.ndim == 4 else images.reshape(math.prod(shape[:-3]), *shape[-3:])
    if out is not None:
        return _blur_into(out, flat, params, arguments.backend)
    largest_size = largest_size_of(arguments, images.dtype)
    if not is_distributed(flat):
        blurred = blur_batch(flat, params, out_dtype, arguments.backend, largest_size)
        return blurred if len(shape) == 4 else blurred.reshape(shape)

    def blur_local(images: Tensor, *tensors: Tensor | None) -> Tensor:
        own: dict[str, Any] = dict(zip((*PER_IMAGE, *SHARED), tensors))
        return blur_batch(images, params._replace(**own), out_dtype, arguments.backend, largest_size)

    along, whole = ([getattr(params, name) for name in names] for names in (PER_IMAGE, SHARED))
    blurred = by_sample(blur_local, flat, along, whole)
    return blurred if len(shape) == 4 else blurred.reshape(shape)


def params_of(images: Tensor, arguments: Arguments) -> BlurParams:
    """Return the parameters of every image, without a weight; several fixations of an image are (B, F, 2) in them."""
    height, width = images.shape[-2:]
    if torch.jit.is_tracing():  # where sizes are tensors
        height, width = int(height), int(width)
    dtype = accumulation_dtype(images.dtype)
    validation.check_rule(arguments.rule)
    sigma, kernel_size = arguments.sigma, arguments.kernel_size
    if kernel_size is not None:
        sizes = validation.per_axis("kernel_size", kernel_size, images, torch.int32)
    if sigma is not None:
        sigmas = validation.per_axis("sigma", sigma, images, dtype)
        if kernel_size is None:
            sizes = _sizes_of(sigmas, arguments, images)
    elif kernel_size is not None:  # of sizes that can be served, so that an error names kernel_size
        sigmas = sigma_from_kernel_size(sizes.clamp(1, validation.LARGEST_KERNEL_SIZE).to(dtype))
    else:
        raise ValueError("sigma and kernel_size are both missing; give at least one of them")
    if sigmas.ndim != sizes.ndim:
        sigmas, sizes = (torch.stack(reference.axes(each), 1) for each in (sigmas, sizes))
    gain = validation.per_sample("gain", arguments.gain, images, dtype)
    decay = validation.decay(arguments.decay)
    validation.check_falloff(arguments.falloff)
    validation.check_border(arguments.border)
    fixation = (height // 2, width // 2) if arguments.fixation is None else arguments.fixation
    fixation = validation.fixation(fixation, images, dtype)
    means = stds = None
    if arguments.normalises:
        means = validation.per_channel("mean", 0.0 if arguments.mean is None else arguments.mean, images, dtype)
        stds = validation.per_channel("std", 1.0 if arguments.std is None else arguments.std, images, dtype)
    backends.check_name(arguments.backend)
    tables = arguments.rule == "opencv" and sigma is None
    options = arguments.falloff, decay, arguments.border, tables
    return BlurParams(sigmas, sizes, gain, fixation, means, stds, None, *options)


def _sizes_of(sigmas: Tensor, arguments: Arguments, images: Tensor) -> Tensor:
    """Return the kernel sizes of sigmas, without tensor operations if sigma is given as numbers: that is faster."""
    sigma, dtype = arguments.sigma, images.dtype
    given = sigma if isinstance(sigma, tuple) else (sigma,)
    if torch.compiler.is_compiling() or not all(isinstance(each, numbers.Real) for each in given):
        return arguments.size_of(sigmas, dtype)
    sizes = tuple(arguments.size_of(each, dtype) for each in given)
    return validation.per_axis("kernel_size", sizes if isinstance(sigma, tuple) else sizes[0], images, torch.int32)


def with_acuity_map(params: BlurParams, images: Tensor) -> BlurParams:
    """Return parameters with the largest acuity of several fixations (B, F, 2) as a weight map."""
    fixations = params.fixation
    if fixations.ndim == 2:
        return params
    validation.check_known("fixation", fixations)
    maps = (reference.acuity(params.falloff, params.decay, each, *images.shape[-2:]) for each in fixations.unbind(1))
    return params._replace(weight=functools.reduce(torch.maximum, maps), fixation=fixations[:, 0].contiguous())


def blur_batch(
    images: Tensor,
    params: BlurParams,
    out_dtype: torch.dtype,
    backend: str | None,
    largest_size: int | None = None,
) -> Tensor:
    """Blur images (B, C, H, W) by the op, or by the reference's plain operations if it is asked for by name."""
    params = with_acuity_map(params, images)
    if not backends.is_reference(backend):
        return differentiable_blur(images, *params, out_dtype, backend or "")
    if not torch.compiler.is_compiling() and not is_under_a_mode():
        validation.check_values(params, images)
    return reference.foveated_blur(images, params, out_dtype, largest_size)


def _blur_into(out: Tensor, images: Tensor, params: BlurParams, backend: str | None) -> Tensor:
    """Blur images (B, C, H, W) into `out`, of any leading dimensions."""
    params = with_acuity_map(params, images)
    inputs = {"images": images, **{name: each for name, each in params._asdict().items() if isinstance(each, Tensor)}}
    validation.check_memory_of_out(out, inputs)
    learnt = any(each.requires_grad for each in (out, *inputs.values()))
    if is_transformed() or (torch.is_grad_enabled() and learnt):
        raise RuntimeError("out has no gradient; call without out, or under torch.no_grad()")
    leading = range(out.ndim - 4)
    joined = all(out.stride(i) == out.stride(i + 1) * out.shape[i + 1] for i in leading)  # else no view is flat
    target = out.reshape(images.shape) if joined else images.new_empty(images.shape, dtype=out.dtype)
    foveated_blur_out_op(images, *params, backend or "", target)
    if not joined:
        out.copy_(target.reshape(out.shape))
    return out


def largest_size_of(arguments: Arguments, dtype: torch.dtype) -> int | None:
    """Return the largest kernel size if the reference needs it and it is known without reading a tensor."""
    if not backends.is_reference(arguments.backend):
        return None
    sigma, kernel_size = arguments.sigma, arguments.kernel_size
    given = sigma if kernel_size is None else kernel_size
    numbers_given = given if isinstance(given, tuple) else (given,)
    is_known = (isinstance(each, numbers.Real) and 0 <= float(each) < math.inf for each in numbers_given)
    if not numbers_given or not all(is_known):
        return None
    largest = max(numbers_given)
    return int(largest) if kernel_size is not None else arguments.size_of(float(largest), dtype)
