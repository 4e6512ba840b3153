"""The compiled kernels, called with addresses and strides: fovblur._cpu and fovblur._cuda."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fovblur import backends
from fovblur.dtypes import DTYPES
from fovblur.foveated_blur import validation


def cpu_forward(images: Tensor, out: Tensor, *parameters) -> None:
    module = backends.load_native("cpu")
    params = blur_params(module, images, *parameters)
    module.foveated_blur(params, describe(module, out), torch.get_num_threads())


def cpu_backward(
    grad: Tensor, images: Tensor, grads: tuple[Tensor | None, Tensor | None, Tensor | None], *parameters
) -> None:
    module = backends.load_native("cpu")
    params = blur_params(module, images, *parameters)
    module.foveated_blur_backward(params, blur_gradients(module, grad, *grads), torch.get_num_threads())


def cuda_forward(images: Tensor, out: Tensor, *parameters) -> None:
    module = backends.load_native("cuda")
    with torch.cuda.device(images.device):
        launch_forward(module, torch.cuda.current_stream(images.device).cuda_stream, images, out, *parameters)


def cuda_backward(
    grad: Tensor, images: Tensor, grads: tuple[Tensor | None, Tensor | None, Tensor | None], *parameters
) -> None:
    module = backends.load_native("cuda")
    with torch.cuda.device(images.device):
        launch_backward(module, torch.cuda.current_stream(images.device).cuda_stream, grad, images, grads, *parameters)


def launch_forward(module: ModuleType, stream: int, images: Tensor, out: Tensor, *parameters) -> None:
    module.foveated_blur(blur_params(module, images, *parameters), describe(module, out), stream)


def launch_backward(
    module: ModuleType,
    stream: int,
    grad: Tensor,
    images: Tensor,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    *parameters,
) -> None:
    params = blur_params(module, images, *parameters)
    grad_images, *of_parameters = grads
    tiles = module.parameter_gradient_tiles(params)
    partial = [None if total is None else total.new_empty(len(total), tiles) for total in of_parameters]
    module.foveated_blur_backward(params, blur_gradients(module, grad, grad_images, *partial), stream)
    for total, part in zip(of_parameters, partial):
        if total is not None and part is not None:
            torch.sum(part, dim=1, out=total)


def describe(module: ModuleType, images: Tensor):
    """Address, dtype and strides of (B, C, H, W) images."""
    return module.Images(images.data_ptr(), DTYPES.index(images.dtype), images.stride())


def blur_params(
    module: ModuleType,
    images: Tensor,
    sigma: Tensor,
    kernel_size: Tensor,
    gain: Tensor,
    fixation: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    falloff: str,
    decay: float,
):
    """The struct both modules take. It borrows the tensors' memory: they must outlive the call."""
    return module.BlurParams(
        shape=tuple(images.shape),
        images=describe(module, images),
        sigma=(sigma.data_ptr(), sigma.stride(0)),
        kernel_size=(kernel_size.data_ptr(), kernel_size.stride(0)),
        gain=(gain.data_ptr(), gain.stride(0)),
        fixation=(fixation.data_ptr(), fixation.stride(0)),
        falloff=validation.FALLOFFS.index(falloff),
        decay=decay,
        mean=0 if mean is None else mean.data_ptr(),
        std=0 if std is None else std.data_ptr(),
        scale=1 / 255 if images.dtype == torch.uint8 else 1.0,
        allow_tf32=torch.get_float32_matmul_precision() != "highest",
    )


def blur_gradients(
    module: ModuleType, grad: Tensor, grad_images: Tensor | None, grad_sigma: Tensor | None, grad_gain: Tensor | None
):
    """Where the gradients go; None is not wanted."""
    nowhere = module.Images(0, 0, (0, 0, 0, 0))
    return module.BlurGradients(
        grad=describe(module, grad),
        grad_images=nowhere if grad_images is None else describe(module, grad_images),
        grad_sigma=0 if grad_sigma is None else grad_sigma.data_ptr(),
        grad_gain=0 if grad_gain is None else grad_gain.data_ptr(),
    )
