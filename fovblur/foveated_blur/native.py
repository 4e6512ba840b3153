"""The compiled kernels of fovblur._cpu and fovblur._cuda, called with addresses and strides."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from fovblur import backends
from fovblur.dtypes import DTYPES
from fovblur.foveated_blur.params import BlurGradients, BlurParams, listed_images
from fovblur.foveated_blur.validation import BORDERS, FALLOFFS


def cpu_forward(images: Tensor, out: Tensor, params: BlurParams) -> None:
    """Blur images into `out`, both (B, C, H, W) of any strides."""
    module = backends.load_native("cpu")
    module.foveated_blur(blur_params(module, images, params), describe(module, out), torch.get_num_threads())


def cpu_backward(grad: Tensor, images: Tensor, grads: BlurGradients, params: BlurParams) -> None:
    """Fill `grads` for the gradient of the result."""
    module = backends.load_native("cpu")
    gradients = blur_gradients(module, grad, grads)
    module.foveated_blur_backward(blur_params(module, images, params), gradients, torch.get_num_threads())


def cpu_forward_list(
    images: Sequence[Tensor],
    out: Sequence[Tensor],
    params: BlurParams,
    weights: Sequence[Tensor] | None = None,
) -> None:
    """Blur images (C, H, W) of any sizes into `out` at once; the arguments are those of :func:`cuda_forward_list`."""
    module = backends.load_native("cpu")
    table = listed_images(images, out, weights)
    native = blur_params(module, images[0][None], params, (len(images), *images[0].shape))
    module.foveated_blur_list(native, table.data_ptr(), DTYPES.index(out[0].dtype), torch.get_num_threads())


def cuda_forward(images: Tensor, out: Tensor, params: BlurParams) -> None:
    """Blur images into `out` on the current stream of their device."""
    with torch.cuda.device(images.device):
        stream = torch.cuda.current_stream(images.device).cuda_stream
        launch_forward(backends.load_native("cuda"), stream, images, out, params)


def cuda_backward(grad: Tensor, images: Tensor, grads: BlurGradients, params: BlurParams) -> None:
    """Fill `grads` on the current stream of the images' device."""
    with torch.cuda.device(images.device):
        stream = torch.cuda.current_stream(images.device).cuda_stream
        launch_backward(backends.load_native("cuda"), stream, grad, images, grads, params)


def cuda_forward_list(
    images: Sequence[Tensor],
    out: Sequence[Tensor],
    params: BlurParams,
    weights: Sequence[Tensor] | None = None,
) -> None:
    """Blur images (C, H, W) of any sizes into `out` in one launch, on the current stream of their device.

    Args:
        images: One or more, of one dtype and any strides.
        out: As images, of one dtype.
        params: of the images; without a weight.
        weights: Maps (H, W) of the images, float32, in place of the falloff.
    """
    device = images[0].device
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        launch_forward_list(backends.load_native("cuda"), stream, images, out, params, weights)


def launch_forward(module: ModuleType, stream: int, images: Tensor, out: Tensor, params: BlurParams) -> None:
    """Launch the blur on a cudaStream_t of the current device."""
    module.foveated_blur(blur_params(module, images, params), describe(module, out), stream)


def launch_forward_list(
    module: ModuleType,
    stream: int,
    images: Sequence[Tensor],
    out: Sequence[Tensor],
    params: BlurParams,
    weights: Sequence[Tensor] | None = None,
) -> None:
    """Launch the blur of a list on a cudaStream_t of the current device, by a table of descriptors."""
    tiles = [module.tiles_of_an_image(*image.shape) for image in images]
    table = listed_images(images, out, weights, tiles)
    largest = (max(image.shape[axis] for image in images) for axis in range(3))
    native = blur_params(module, images[0][None], params, (len(images), *largest))
    module.foveated_blur_list(native, table.data_ptr(), sum(tiles), DTYPES.index(out[0].dtype), stream)


def launch_backward(
    module: ModuleType, stream: int, grad: Tensor, images: Tensor, grads: BlurGradients, params: BlurParams
) -> None:
    """Launch the gradients on a cudaStream_t; those of sigma and gain are sums over tiles, added up by PyTorch."""
    native = blur_params(module, images, params)
    tiles = module.parameter_gradient_tiles(native, describe(module, grad))
    totals = (grads.sigma, grads.gain)
    partial = [None if total is None else total.new_empty(*total.shape, tiles) for total in totals]
    gradients = blur_gradients(module, grad, BlurGradients(grads.images, *partial))
    module.foveated_blur_backward(native, gradients, stream)
    for total, part in zip(totals, partial):
        if total is not None and part is not None:
            torch.sum(part, dim=-1, out=total)


def describe(module: ModuleType, images: Tensor):
    """Return address, dtype and strides of images (B, C, H, W) as the module's struct."""
    return module.Images(images.data_ptr(), DTYPES.index(images.dtype), images.stride())


def blur_params(module: ModuleType, images: Tensor, params: BlurParams, shape: tuple[int, ...] | None = None):
    """Return the struct that both modules take. It borrows the tensors' memory: they must outlive the call.

    The shape is that of the images, if it is not given.
    """
    per_sample = lambda tensor: (tensor.data_ptr(), tensor.stride(0))  # noqa: E731
    return module.BlurParams(
        shape=tuple(shape or images.shape),
        images=describe(module, images),
        sigma=per_sample(params.sigma),
        kernel_size=per_sample(params.kernel_size),
        per_axis=params.sigma.ndim == 2,
        tables=params.tables,
        border=BORDERS.index(params.border),
        gain=per_sample(params.gain),
        fixation=per_sample(params.fixation),
        falloff=FALLOFFS.index(params.falloff),
        decay=params.decay,
        weight=(0, (0, 0, 0)) if params.weight is None else (params.weight.data_ptr(), params.weight.stride()),
        mean=_address(params.mean),
        std=_address(params.std),
        scale=1 / 255 if images.dtype == torch.uint8 else 1.0,
        allow_tf32=torch.get_float32_matmul_precision() != "highest",
    )


def blur_gradients(module: ModuleType, grad: Tensor, grads: BlurGradients):
    """Return the struct of where the gradients go."""
    return module.BlurGradients(
        grad=describe(module, grad),
        grad_images=module.Images(0, 0, (0, 0, 0, 0)) if grads.images is None else describe(module, grads.images),
        grad_sigma=_address(grads.sigma),
        grad_gain=_address(grads.gain),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
