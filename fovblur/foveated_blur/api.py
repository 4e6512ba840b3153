"""The public functions of the blur."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from fovblur.foveated_blur import call, lists, validation
from fovblur.foveated_blur.params import Values

Images = TypeVar("Images", Tensor, list[Tensor])


def foveated_blur(
    images: Images,
    sigma: Values | None = None,
    *,
    kernel_size: Values | None = None,
    gain: Values = 0.5,
    decay: float = 3.0,
    falloff: str = "exp",
    fixation: Values | None = None,
    weight: Values | Sequence[Values] | None = None,
    mean: Values | None = None,
    std: Values | None = None,
    border: str = "reflect",
    rule: str | None = None,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Images:
    """Blur images as the eye does: sharp at the fixation, Gaussian away from it, with parameters for every sample.

    ``y = W x + (1 - W) G(x, sigma)`` with ``W = gain * f(min(1, d / D))``, where d is the distance of a pixel to the
    fixation and D the distance at which acuity is lowest. G is the separable Gaussian with weights that sum to 1, for
    any radius. From UBP (CVPR 2025), which BVSA (CVPR 2026) follows.

    Args:
        images: (..., C, H, W) uint8, float16, bfloat16, float32 or float64: one image, a batch (B, C, H, W), clips
            (B, T, C, H, W). The memory format is kept, unless leading dimensions can only be joined by a copy.
            Parameters of every image broadcast to the leading dimensions; they are tensors, or lists and arrays, which
            every call copies to the images' device. Or a list of N images (C, H, W) of one dtype and any sizes, whose
            leading dimension is then (N,).
        sigma: standard deviation of the Gaussian in pixels, a number or (...), at most 9830.7, or 8191 without a
            ``kernel_size``; 0 is the identity. A tuple (y, x), or (..., 2), has one for each axis. Default: computed
            from ``kernel_size`` by :func:`sigma_from_kernel_size`.
        kernel_size: odd width of the Gaussian in pixels, an int or integers (...), at most 65535; a tuple (y, x), or
            (..., 2), has one for each axis. Default: computed from ``sigma`` by :func:`kernel_size_from_sigma`. At
            least one of the two is needed.
        gain: weight of the sharp image at the fixation, in [0, 1], a number or (...). 0 blurs uniformly.
        decay: rate of the ``"exp"`` falloff, at least 0.
        falloff: f, ``"exp"`` (exp(-decay u)), ``"linear"``, ``"quadratic"``, ``"log"`` or ``"brachistochrone"``.
        fixation: (y, x) in pixels, two numbers, (2,) or (..., 2); it may lie outside the image. Default:
            (H // 2, W // 2), with D = sqrt((H - y - 1)^2 + (W - x - 1)^2). For any other fixation D is the largest
            distance to a pixel. Several fixations of an image are (..., F, 2): f is then the largest of theirs.
        weight: a map of your own in place of f, in [0, 1]: saliency, or a mask of objects. (H, W), (..., H, W) or
            (..., 1, H, W); for a list of images, a list of maps.
        mean: of the channels, a number or C numbers. Default: 0.
        std: of the channels, a number or C numbers. Default: 1. With mean or std, the result is (y - mean) / std: uint8
            images are first scaled to [0, 1], and ``out_dtype`` is then float32 by default.
        border: what lies beyond the image: ``"reflect"`` (the image mirrored at the middle of its border pixels, as in
            OpenCV's REFLECT_101), ``"symmetric"`` (mirrored at its edge), ``"replicate"`` (the border pixel),
            ``"constant"`` (0) or ``"circular"`` (the opposite side). SciPy calls them mirror, reflect, nearest,
            constant and wrap.
        rule: ``"opencv"`` chooses what is not given as ``cv2.GaussianBlur`` does: without ``sigma``, kernels of 3 to 9
            pixels are its tables; without ``kernel_size``, kernels of uint8 images hold three standard deviations on
            each side.
        out_dtype: dtype of the result. Default: that of ``out``, else that of the images. uint8 (rounded) only for
            uint8 images.
        out: tensor that the result is written to, of the images' shape, without gradients. Between its first and last
            element lie neither the images nor parameters.
        backend: ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"auto"``. Default: the environment variable
            FOVBLUR_BACKEND, else ``"auto"``, the fastest that serves the images' device.

    Returns:
        (..., C, H, W) in ``out_dtype``, or a list of images, accumulated in float32 (float64 for float64 images). On
        GPUs half types and uint8 are multiplied in half precision (triton: bfloat16 in tf32), which moves a uint8
        result by less than 0.38 of a level before it is rounded, so that it is within one level of the exact one. cuda
        multiplies uint8 exactly if the result is float32, unless ``torch.set_float32_matmul_precision`` allows tf32,
        which it does not by default; other borders, sigmas that differ by axis, maps, tables and lists of images it
        always multiplies in float32.

    Raises:
        TypeError, ValueError: a wrong type, shape, device or range; the message names the argument. Values of CUDA
            tensors are not read, because that would stall the stream; a negative or NaN sigma there gives NaN.
        RuntimeError: the requested backend cannot run; the message says why.

    A NaN pixel makes the blur's support NaN and nothing else. Differentiable in images, sigma, gain, fixation, weight,
    mean and std, any number of times, in forward mode too, and under ``torch.func.vmap``. The reference is composed of
    PyTorch's own operations, so that tracing and ONNX work with it, too. The batch of a DTensor stays sharded.

    Examples:
        >>> images = torch.rand(2, 3, 32, 32)
        >>> foveated_blur(images, kernel_size=[5, 9], gain=torch.tensor([1.0, 0.5])).shape
        torch.Size([2, 3, 32, 32])
        >>> [blurred.shape[-1] for blurred in foveated_blur([images[0], images[1, :, :, :20]], (2.0, 0.5))]
        [32, 20]
    """
    if weight is not None and fixation is not None:
        raise ValueError("weight stands in place of the falloff around a fixation; give one of the two")
    arguments = call.Arguments(
        sigma, kernel_size, gain, decay, falloff, fixation, weight, mean, std, border, rule, out_dtype, backend
    )
    if isinstance(images, list):
        if out is not None:
            raise TypeError("out is for a tensor of images; the result of a list is a new list")
        return lists.blur_list(images, arguments)
    validation.check_images(images)
    return call.blur(images, arguments, out)


def gaussian_blur(
    images: Images,
    sigma: Values | None = None,
    *,
    kernel_size: Values | None = None,
    border: str = "reflect",
    rule: str | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Images:
    """Blur every image with its own Gaussian: :func:`foveated_blur` with gain 0.

    Args:
        images: (..., C, H, W), or a list of images, as for :func:`foveated_blur`.
        sigma: standard deviation in pixels, a number, (...), a tuple (y, x) or (..., 2). Default: computed from
            ``kernel_size``.
        kernel_size: odd width in pixels, an int, (...), a tuple (y, x) or (..., 2). Default: computed from ``sigma``.
        border: as for :func:`foveated_blur`.
        rule: as for :func:`foveated_blur`.
        out: as for :func:`foveated_blur`.
        backend: as for :func:`foveated_blur`.

    Returns:
        (..., C, H, W) in the dtype and memory format of the images, or a list of images.

    Examples:
        >>> gaussian_blur(torch.ones(1, 1, 4, 4), 2.0).allclose(torch.ones(1, 1, 4, 4))
        True
    """
    return foveated_blur(
        images, sigma, kernel_size=kernel_size, gain=0.0, border=border, rule=rule, out=out, backend=backend
    )
