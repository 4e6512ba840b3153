"""Lists of images of different sizes, blurred in one call: by one launch of cuda, unless gradients are needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fovblur import backends
from fovblur.foveated_blur import native, validation
from fovblur.foveated_blur.call import Arguments, blur_batch, params_of, with_one_fixation
from fovblur.foveated_blur.params import BlurParams
from fovblur.tracing import is_transformed, is_under_a_mode


def blur_list(images: Sequence[Tensor], arguments: Arguments) -> list[Tensor]:
    """Blur images (C, H, W) of one dtype, each with its own parameters."""
    _check(images)
    if not images:
        return []
    count = len(images)
    like = images[0][:, :1, :1].expand(count, -1, -1, -1)  # has the leading dimension, channels, dtype and device
    if arguments.fixation is None:
        centres = [(image.shape[1] // 2, image.shape[2] // 2) for image in images]
        arguments = arguments._replace(fixation=centres)
    params = params_of(like, arguments)
    out_dtype = validation.out_dtype(arguments.out_dtype, like, arguments.normalises)
    own = [_of_image(params, index) for index in range(count)]
    if arguments.weight is not None:
        own = _with_weights(own, arguments.weight, images)
    if not _is_recorded([*images, *params, *(each.weight for each in own)]):
        backend = backends.resolve(arguments.backend, "foveated_blur", like.device, like.dtype)
        if backend == "cuda":
            own = [with_one_fixation(each, image[None]) for each, image in zip(own, images)]
            return _blur_at_once(images, params, own, out_dtype)
    blurred = (blur_batch(image[None], each, out_dtype, arguments.backend) for image, each in zip(images, own))
    return [each[0] for each in blurred]


def _is_recorded(inputs: Sequence[object]) -> bool:
    """Return whether a call is differentiated or traced, which needs the op."""
    if torch.compiler.is_compiling() or is_transformed() or is_under_a_mode():
        return True
    return torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in inputs)


def _blur_at_once(
    images: Sequence[Tensor], params: BlurParams, own: Sequence[BlurParams], out_dtype: torch.dtype
) -> list[Tensor]:
    """Blur a list by one launch of the CUDA kernels; images without a pixel are left out."""
    blurred = [torch.empty_like(image, dtype=out_dtype) for image in images]
    there = [index for index, image in enumerate(images) if image.numel() > 0]
    params = params._replace(fixation=torch.cat([each.fixation for each in own]))
    if len(there) < len(images):
        params = params._replace(
            sigma=params.sigma[there],
            kernel_size=params.kernel_size[there],
            gain=params.gain[there],
            fixation=params.fixation[there],
        )
    weights = [each.weight[0] for each in own if each.weight is not None]
    if there:
        validation.check_values(params, images[0])
        native.cuda_forward_list(
            [images[index] for index in there],
            [blurred[index] for index in there],
            params,
            [weights[index] for index in there] if weights else None,
        )
    return blurred


def _of_image(params: BlurParams, index: int) -> BlurParams:
    """Return the parameters of one image."""
    chosen = {name: getattr(params, name)[index : index + 1] for name in ("sigma", "kernel_size", "gain", "fixation")}
    return params._replace(**chosen)


def _with_weights(own: Sequence[BlurParams], weight: object, images: Sequence[Tensor]) -> list[BlurParams]:
    if not isinstance(weight, Sequence) or len(weight) != len(images):
        raise TypeError(f"weight must be a list of {len(images)} maps, one for each image of the list")
    maps = [validation.weight(each, image[None], own[0].sigma.dtype) for each, image in zip(weight, images)]
    return [params._replace(weight=each) for params, each in zip(own, maps)]


def _check(images: Sequence[Tensor]) -> None:
    for index, image in enumerate(images):
        name = f"images[{index}]"
        if not isinstance(image, Tensor):
            raise TypeError(f"{name} is a {type(image).__name__}; it must be a torch.Tensor of shape (C, H, W)")
        if image.ndim != 3:
            raise ValueError(f"{name} has shape {tuple(image.shape)}; images of a list must be (C, H, W)")
        validation.check_images(image)
        first = images[0]
        if (image.dtype, image.device, len(image)) != (first.dtype, first.device, len(first)):
            ours, theirs = (f"{each.dtype} on {each.device} with {len(each)} channels" for each in (image, first))
            raise ValueError(f"{name} is {ours} and images[0] {theirs}; images of a list must agree in these")
