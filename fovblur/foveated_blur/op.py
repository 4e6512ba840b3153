"""The op ``fovblur::foveated_blur`` and its backward: declarations, fakes, and dispatch to the backend that runs them.

`autograd.py` gives them their derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fovblur import backends
from fovblur.foveated_blur import native, reference, validation
from fovblur.foveated_blur.params import BlurGradients, BlurParams
from fovblur.foveated_blur.replicate import image_gradient_under_replicate


@torch.library.custom_op("fovblur::foveated_blur", mutates_args=())
def foveated_blur_op(
    images: Tensor,
    sigma: Tensor,
    kernel_size: Tensor,
    gain: Tensor,
    fixation: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    weight: Tensor | None,
    falloff: str,
    decay: float,
    border: str,
    tables: bool,
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """Blur images (B, C, H, W); the parameters are those of BlurParams, and backend "" stands for None."""
    params = BlurParams(sigma, kernel_size, gain, fixation, mean, std, weight, falloff, decay, border, tables)
    out = torch.empty_like(images, dtype=out_dtype)
    _blur(images, out, params, backend)
    return out


@foveated_blur_op.register_fake
def _(images, *parameters):
    *_, out_dtype, _ = parameters
    return torch.empty_like(images, dtype=out_dtype)


@torch.library.custom_op("fovblur::foveated_blur_out", mutates_args=("out",))
def foveated_blur_out_op(
    images: Tensor,
    sigma: Tensor,
    kernel_size: Tensor,
    gain: Tensor,
    fixation: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    weight: Tensor | None,
    falloff: str,
    decay: float,
    border: str,
    tables: bool,
    backend: str,
    out: Tensor,
) -> None:
    """Blur images (B, C, H, W) into `out`, whose dtype is that of the result."""
    params = BlurParams(sigma, kernel_size, gain, fixation, mean, std, weight, falloff, decay, border, tables)
    _blur(images, out, params, backend)


def _blur(images: Tensor, out: Tensor, params: BlurParams, backend: str) -> None:
    validation.check_values(params, images)
    forward, _ = _functions(backends.resolve(backend or None, "foveated_blur", images.device, images.dtype))
    if out.numel() > 0:
        forward(images, out, params)


@foveated_blur_out_op.register_fake
def _(*_arguments):
    return None


@torch.library.custom_op("fovblur::foveated_blur_list", mutates_args=())
def foveated_blur_list_op(
    images: Sequence[Tensor],
    sigma: Tensor,
    kernel_size: Tensor,
    gain: Tensor,
    fixation: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    weights: Sequence[Tensor],
    falloff: str,
    decay: float,
    border: str,
    tables: bool,
    out_dtype: torch.dtype,
    backend: str,
) -> list[Tensor]:
    """Blur images (C, H, W) of any sizes, one or more, with maps (H, W) or with none; it has no derivatives."""
    params = BlurParams(sigma, kernel_size, gain, fixation, mean, std, None, falloff, decay, border, tables)
    validation.check_values(params, images[0])
    for weight in weights:
        validation.check_known("weight", weight)
    out = [torch.empty_like(image, dtype=out_dtype) for image in images]
    chosen = backends.resolve(backend or None, "foveated_blur", images[0].device, images[0].dtype)
    # A CUDA graph cannot repeat the copy of the table that a launch for the whole list reads.
    if chosen == "reference" or (images[0].is_cuda and torch.cuda.is_current_stream_capturing()):
        forward, _ = _functions(chosen)
        for index, (image, result) in enumerate(zip(images, out)):
            if image.numel() > 0:
                forward(image[None], result[None], params.of_image(index, weights[index] if weights else None))
    else:
        _list_function(chosen)(images, out, params, weights or None)
    return out


@foveated_blur_list_op.register_fake
def _(images, *parameters):
    *_, out_dtype, _ = parameters
    return [torch.empty_like(image, dtype=out_dtype) for image in images]


@torch.library.custom_op("fovblur::foveated_blur_backward", mutates_args=())
def foveated_blur_backward_op(
    grad: Tensor,
    images: Tensor,
    sigma: Tensor,
    kernel_size: Tensor,
    gain: Tensor,
    fixation: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    weight: Tensor | None,
    falloff: str,
    decay: float,
    border: str,
    tables: bool,
    backend: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of images, sigma and gain; those that are not needed are empty."""
    chosen = backends.resolve(backend or None, "foveated_blur", images.device, images.dtype)
    forward, backward = _functions(chosen)
    grads = _empty_gradients(images, sigma, gain, needs)
    if images.numel() == 0:
        for each in grads:
            each.zero_()
    elif any(needs):
        params = BlurParams(sigma, kernel_size, gain, fixation, mean, std, weight, falloff, decay, border, tables)
        needed = BlurGradients(*(grad if need else None for grad, need in zip(grads, needs)))
        if border == "replicate" and needed.images is not None and chosen != "cpu":
            image_gradient_under_replicate(forward, grad, needed.images, params)
            needed = needed._replace(images=None)
        if any(each is not None for each in needed):
            backward(grad, images, needed, params)
        if needs[1]:  # taps beside the middle one vanish there, and sigma^-3 overflows
            grads[1].masked_fill_((sigma >= 0) & (sigma < reference.SHARP_SIGMA), 0)
    return grads


@foveated_blur_backward_op.register_fake
def _(grad, images, sigma, kernel_size, gain, *others):
    *_, needs = others
    return _empty_gradients(images, sigma, gain, needs)


def _empty_gradients(images: Tensor, sigma: Tensor, gain: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    of_images = torch.empty_like(images) if needs[0] else images.new_empty(0)
    return of_images, sigma.new_empty(sigma.shape if needs[1] else 0), gain.new_empty(gain.shape if needs[2] else 0)


def _functions(backend: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return a backend's forward and backward. Triton is imported only when it is used."""
    if backend == "triton":
        from fovblur.foveated_blur import triton

        return triton.triton_forward, triton.triton_backward
    if backend == "reference":
        return reference.reference_forward, reference.reference_backward
    return {
        "cpu": (native.cpu_forward, native.cpu_backward),
        "cuda": (native.cuda_forward, native.cuda_backward),
    }[backend]


def _list_function(backend: str) -> Callable[..., None]:
    """Return a compiled backend's forward of lists."""
    if backend == "triton":
        from fovblur.foveated_blur import triton_general

        return triton_general.triton_forward_list
    return {"cpu": native.cpu_forward_list, "cuda": native.cuda_forward_list}[backend]
