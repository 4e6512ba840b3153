"""The public functions of the blur: defaults, checks, and one call of the op."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

from fovblur import backends
from fovblur.dtypes import accumulation_dtype
from fovblur.foveated_blur import reference, validation
from fovblur.foveated_blur.autograd import differentiable_blur
from fovblur.foveated_blur.params import BlurParams, Values
from fovblur.tracing import is_under_a_mode


def sigma_from_kernel_size(k):
    """Return OpenCV's standard deviation for an odd kernel size: 0.3 ((k - 1) / 2 - 1) + 0.8.

    For 3 to 9 pixels ``cv2.GaussianBlur(image, (k, k), 0)`` itself takes tables, which differ a little from this
    Gaussian.

    Args:
        k: width in pixels, a number or a tensor.

    Returns:
        Standard deviation in pixels, a number or a tensor like k.

    Examples:
        >>> round(sigma_from_kernel_size(51), 6)
        8.0
    """
    return 0.3 * ((k - 1) * 0.5 - 1) + 0.8


def kernel_size_from_sigma(sigma):
    """Return the kernel size that holds four standard deviations on each side, SciPy's default: 2 round(4 sigma) + 1.

    Args:
        sigma: standard deviation in pixels, a number or a tensor.

    Returns:
        Odd width in pixels, an int or an int32 tensor. Halves round up, as in SciPy.

    Examples:
        >>> kernel_size_from_sigma(8.0)
        65
    """
    if isinstance(sigma, Tensor):
        return 2 * torch.floor(4 * sigma.detach() + 0.5).to(torch.int32) + 1
    return 2 * math.floor(4 * sigma + 0.5) + 1


def foveated_blur(
    images: Tensor,
    sigma: Values | None = None,
    *,
    kernel_size: Values | None = None,
    gain: Values = 0.5,
    decay: float = 3.0,
    falloff: str = "exp",
    fixation: Values | None = None,
    mean: Values | None = None,
    std: Values | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Blur images as the eye does: sharp at the fixation, Gaussian away from it, with parameters for every sample.

    ``y = W x + (1 - W) G(x, sigma)`` with ``W = gain * f(min(1, d / D))``, where d is the distance of a pixel to the
    fixation and D the distance at which acuity is lowest. G is the separable Gaussian with weights that sum to 1 and a
    reflected border (OpenCV's REFLECT_101), for any radius. From UBP (CVPR 2025), which BVSA (CVPR 2026) follows.

    Args:
        images: (..., C, H, W) uint8, float16, bfloat16, float32 or float64, in any memory format, which is kept: one
            image, a batch (B, C, H, W), clips (B, T, C, H, W). Parameters of every image broadcast to the leading
            dimensions; they are tensors, or lists and arrays, which every call copies to the images' device.
        sigma: standard deviation of the Gaussian in pixels, a number or (...), at most 9830.7, or 8191 without a
            ``kernel_size``; 0 is the identity. Default: computed from ``kernel_size`` by
            :func:`sigma_from_kernel_size`.
        kernel_size: odd width of the Gaussian in pixels, an int or integers (...), at most 65535. Default:
            computed from ``sigma`` by :func:`kernel_size_from_sigma`. At least one of the two is needed.
        gain: weight of the sharp image at the fixation, in [0, 1], a number or (...). 0 blurs uniformly.
        decay: rate of the ``"exp"`` falloff, at least 0.
        falloff: f, ``"exp"`` (exp(-decay u)), ``"linear"``, ``"quadratic"``, ``"log"`` or ``"brachistochrone"``.
        fixation: (y, x) in pixels, two numbers, (2,) or (..., 2); it may lie outside the image. Default:
            (H // 2, W // 2), with D = sqrt((H - y - 1)^2 + (W - x - 1)^2). For any other fixation D is the largest
            distance to a pixel.
        mean: of the channels, a number or C numbers. Default: 0.
        std: of the channels, a number or C numbers. Default: 1. With mean or std, the result is (y - mean) / std: uint8
            images are first scaled to [0, 1], and ``out_dtype`` is then float32 by default.
        out_dtype: dtype of the result. Default: that of the images. uint8 (rounded) only for uint8 images.
        backend: ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"auto"``. Default: the environment variable
            FOVBLUR_BACKEND, else ``"auto"``, the fastest that serves the images' device.

    Returns:
        (..., C, H, W) in ``out_dtype``, accumulated in float32 (float64 for float64 images). On GPUs half types and
        uint8 are multiplied in half precision (triton: bfloat16 in tf32), which moves a uint8 result by less than 0.38
        of a level before it is rounded, so that it is within one level of the exact one. cuda multiplies uint8 exactly
        if the result is float32, unless ``torch.set_float32_matmul_precision`` allows tf32, which it does not by
        default.

    Raises:
        TypeError, ValueError: a wrong type, shape, device or range; the message names the argument. Values of CUDA
            tensors are not read, because that would stall the stream; a negative or NaN sigma there gives NaN.
        RuntimeError: the requested backend cannot run; the message says why.

    A NaN pixel makes the blur's support NaN and nothing else. Differentiable in images, sigma, gain, fixation, mean and
    std, any number of times, in forward mode too, and under ``torch.func.vmap``. The reference is composed of PyTorch's
    own operations, so that tracing and ONNX work with it, too.

    Examples:
        >>> images = torch.rand(2, 3, 32, 32)
        >>> foveated_blur(images, kernel_size=[5, 9], gain=torch.tensor([1.0, 0.5])).shape
        torch.Size([2, 3, 32, 32])
    """
    validation.check_images(images)
    shape = images.shape
    height, width = images.shape[-2:]
    if torch.jit.is_tracing():  # where sizes are tensors
        height, width = int(height), int(width)
    dtype = accumulation_dtype(images.dtype)
    largest_size = _largest_size(sigma, kernel_size)
    if kernel_size is not None:
        sizes = validation.per_sample("kernel_size", kernel_size, images, torch.int32)
    if sigma is not None:
        sigmas = validation.per_sample("sigma", sigma, images, dtype)
        if kernel_size is None:
            sizes = kernel_size_from_sigma(sigmas)
    elif kernel_size is not None:  # of sizes that can be served, so that an error names kernel_size
        sigmas = sigma_from_kernel_size(sizes.clamp(1, validation.LARGEST_KERNEL_SIZE).to(dtype))
    else:
        raise ValueError("sigma and kernel_size are both missing; give at least one of them")
    gain = validation.per_sample("gain", gain, images, dtype)
    decay = validation.decay(decay)
    validation.check_falloff(falloff)
    fixation = validation.fixation((height // 2, width // 2) if fixation is None else fixation, images, dtype)
    normalise = mean is not None or std is not None
    means = stds = None
    if normalise:
        means = validation.per_channel("mean", 0.0 if mean is None else mean, images, dtype)
        stds = validation.per_channel("std", 1.0 if std is None else std, images, dtype)
    out_dtype = validation.out_dtype(out_dtype, images, normalise)
    backends.check_name(backend)
    images = images if images.ndim == 4 else images.reshape(math.prod(shape[:-3]), *shape[-3:])
    if backends.is_reference(backend):
        params = BlurParams(sigmas, sizes, gain, fixation, means, stds, falloff, decay)
        if not torch.compiler.is_compiling() and not is_under_a_mode():
            validation.check_values(params, images)
        blurred = reference.foveated_blur(images, params, out_dtype, largest_size)
    else:
        parameters = sigmas, sizes, gain, fixation, means, stds, falloff, decay
        blurred = differentiable_blur(images, *parameters, out_dtype, backend or "")
    return blurred if len(shape) == 4 else blurred.reshape(shape)


def _largest_size(sigma: Values | None, kernel_size: Values | None) -> int | None:
    """Return the largest kernel size if it is known without reading a tensor."""
    if isinstance(kernel_size, numbers.Integral):
        return int(kernel_size)
    if kernel_size is None and isinstance(sigma, numbers.Real) and math.isfinite(sigma):
        return kernel_size_from_sigma(float(sigma))
    return None


def gaussian_blur(
    images: Tensor,
    sigma: Values | None = None,
    *,
    kernel_size: Values | None = None,
    backend: str | None = None,
) -> Tensor:
    """Blur every image with its own Gaussian: :func:`foveated_blur` with gain 0.

    Args:
        images: (..., C, H, W), as for :func:`foveated_blur`.
        sigma: standard deviation in pixels, a number or (...). Default: computed from ``kernel_size``.
        kernel_size: odd width in pixels, an int or (...). Default: computed from ``sigma``.
        backend: as for :func:`foveated_blur`.

    Returns:
        (..., C, H, W) in the dtype and memory format of the images.

    Examples:
        >>> gaussian_blur(torch.ones(1, 1, 4, 4), 2.0).allclose(torch.ones(1, 1, 4, 4))
        True
    """
    return foveated_blur(images, sigma, kernel_size=kernel_size, gain=0.0, backend=backend)
