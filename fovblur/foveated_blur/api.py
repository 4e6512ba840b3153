"""The public functions: defaults, checks, and one call of the op."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fovblur import backends
from fovblur.dtypes import accumulation_dtype
from fovblur.foveated_blur import validation
from fovblur.foveated_blur.op import foveated_blur_op


def sigma_from_kernel_size(k):
    """Standard deviation, in pixels, that OpenCV gives an odd kernel size: 0.3 ((k - 1) / 2 - 1) + 0.8.

    Takes a number or a tensor, and returns the same.

    >>> round(sigma_from_kernel_size(51), 6)
    8.0
    """
    return 0.3 * ((k - 1) * 0.5 - 1) + 0.8


def kernel_size_from_sigma(sigma):
    """Kernel size that holds four standard deviations to each side, scipy's default: 2 round(4 sigma) + 1.

    Takes a number or a tensor, and returns an int or an int32 tensor. Halves round up, as in scipy.

    >>> kernel_size_from_sigma(8.0)
    65
    """
    if isinstance(sigma, Tensor):
        return 2 * torch.floor(4 * sigma.detach() + 0.5).to(torch.int32) + 1
    return 2 * math.floor(4 * sigma + 0.5) + 1


def foveated_blur(
    images: Tensor,
    sigma: float | Tensor | None = None,
    *,
    kernel_size: int | Tensor | None = None,
    gain: float | Tensor = 0.5,
    decay: float = 3.0,
    falloff: str = "exp",
    fixation: Sequence[float] | Tensor | None = None,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Blur images as the eye does: sharp around the fixation point, Gaussian away from it, each sample in its own way.

    ``y = W x + (1 - W) G(x, sigma)`` with ``W = gain * f(min(1, d / D))``, d the distance of a pixel to the fixation
    and D the distance at which acuity has fallen to its least. G is the separable Gaussian with weights that sum to 1
    and a reflected border (OpenCV's REFLECT_101), for any radius. From UBP (CVPR 2025), which BVSA (CVPR 2026) follows.

    Args:
        images: (B, C, H, W) uint8, float16, bfloat16, float32 or float64, in any memory format, which is kept.
        sigma: standard deviation of the Gaussian in pixels, a number or (B,); 0 is the identity. Left out, it follows
            from ``kernel_size`` by :func:`sigma_from_kernel_size`.
        kernel_size: odd width of the Gaussian in pixels, an int or an integer tensor (B,), at most 65535. Left out, it
            follows from ``sigma`` by :func:`kernel_size_from_sigma`. At least one of the two is needed.
        gain: weight of the sharp image at the fixation, in [0, 1], a number or (B,). 0 blurs uniformly.
        decay: rate of the ``"exp"`` falloff, at least 0.
        falloff: f, ``"exp"`` (exp(-decay u)), ``"linear"``, ``"quadratic"``, ``"log"`` or ``"brachistochrone"``.
        fixation: (y, x) in pixels, two numbers or (2,) or (B, 2); it may lie outside the image. The default is
            (H // 2, W // 2), whose D is sqrt((H - y - 1)^2 + (W - x - 1)^2); that of another fixation is the largest
            distance from it to a pixel.
        mean, std: per channel, a number or C of them; the result is (y - mean) / std. uint8 images are scaled to
            [0, 1] first, and ``out_dtype`` is then float32 unless given.
        out_dtype: dtype of the result; without it, that of the images. uint8 (rounded) only for uint8 images.
        backend: ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"auto"``; without it, the environment
            variable FOVBLUR_BACKEND, else auto: the fastest that serves the images' device.

    Returns:
        (B, C, H, W) in ``out_dtype``. Accumulation is in float32 (float64 for float64 images).
        The triton and cuda backends multiply half types in half precision or tf32, and uint8 too: triton always, cuda on
        the way to a half type. Where ``torch.set_float32_matmul_precision`` allows tf32, which it does not by default,
        cuda multiplies float32 in it and uint8 in half precision.

    Raises:
        TypeError, ValueError: a wrong type, shape, device or range; the message names the argument. Values of CUDA
            tensors are not read, as that would stall the stream; a negative or NaN sigma there gives NaN.
        RuntimeError: a backend asked for by name cannot run; the message says why.

    A NaN in a pixel spreads over the blur's support and no further. Differentiable in images, sigma and gain.

    >>> images = torch.rand(2, 3, 32, 32)
    >>> foveated_blur(images, kernel_size=torch.tensor([5, 9]), gain=torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 3, 32, 32])
    """
    validation.check_images(images)
    height, width = images.shape[-2:]
    dtype = accumulation_dtype(images.dtype)
    if sigma is not None:
        sigma = validation.per_sample("sigma", sigma, images, dtype)
    if kernel_size is not None:
        kernel_size = validation.per_sample("kernel_size", kernel_size, images, torch.int32)
        if sigma is None:
            sigma = sigma_from_kernel_size(kernel_size.to(dtype))
    elif sigma is not None:
        kernel_size = kernel_size_from_sigma(sigma)
    else:
        raise ValueError("sigma and kernel_size are both missing; give at least one of them")
    gain = validation.per_sample("gain", gain, images, dtype)
    decay = validation.decay(decay)
    validation.check_falloff(falloff)
    fixation = validation.fixation((height // 2, width // 2) if fixation is None else fixation, images, dtype)
    normalise = mean is not None or std is not None
    if normalise:
        mean = validation.per_channel("mean", 0.0 if mean is None else mean, images, dtype)
        std = validation.per_channel("std", 1.0 if std is None else std, images, dtype)
    out_dtype = validation.out_dtype(out_dtype, images, normalise)
    backends.check_name(backend)
    return foveated_blur_op(
        images, sigma, kernel_size, gain, fixation, mean, std, falloff, decay, out_dtype, backend or ""
    )


def gaussian_blur(
    images: Tensor,
    sigma: float | Tensor | None = None,
    *,
    kernel_size: int | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Gaussian blur with a standard deviation of its own for every sample: :func:`foveated_blur` with gain 0.

    Args:
        images: (B, C, H, W), as for :func:`foveated_blur`.
        sigma: standard deviation in pixels, a number or (B,).
        kernel_size: odd width in pixels, an int or (B,). Each of the two gives the other where it is left out.
        backend: as for :func:`foveated_blur`.

    Returns:
        (B, C, H, W) in the dtype and memory format of the images.

    >>> gaussian_blur(torch.ones(1, 1, 4, 4), 2.0).allclose(torch.ones(1, 1, 4, 4))
    True
    """
    return foveated_blur(images, sigma, kernel_size=kernel_size, gain=0.0, backend=backend)
