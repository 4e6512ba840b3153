"""Lists of images of different sizes: one call of an op, or one for each image if gradients are needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fovblur import backends
from fovblur.foveated_blur import validation
from fovblur.foveated_blur.call import Arguments, blur_batch, largest_size_of, params_of, with_acuity_map
from fovblur.foveated_blur.op import foveated_blur_list_op
from fovblur.foveated_blur.params import BlurParams
from fovblur.tracing import is_transformed


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
    weights = _weights(arguments.weight, images, params)
    if backends.is_reference(arguments.backend) or _is_differentiated(images, params, weights):
        own = (params.of_image(index, weights[index] if weights else None) for index in range(count))
        how = out_dtype, arguments.backend, largest_size_of(arguments, like.dtype)
        return [blur_batch(image[None], each, *how)[0] for image, each in zip(images, own)]
    if params.fixation.ndim == 3:
        own = (with_acuity_map(params.of_image(index), image[None]) for index, image in enumerate(images))
        weights = [each.weight[0] for each in own if each.weight is not None]
        params = params._replace(fixation=params.fixation[:, 0].contiguous())
    *tensors, _, falloff, decay, border, tables = params
    options = falloff, decay, border, tables, out_dtype, arguments.backend or ""
    return foveated_blur_list_op(images, *tensors, weights, *options)


def _is_differentiated(images: Sequence[Tensor], params: BlurParams, weights: Sequence[Tensor]) -> bool:
    """Return whether the call may have derivatives, or is one of many under vmap."""
    tensors = (each for each in (*images, *params, *weights) if isinstance(each, Tensor))
    return is_transformed() or (torch.is_grad_enabled() and any(each.requires_grad for each in tensors))


def _weights(weight: object, images: Sequence[Tensor], params: BlurParams) -> list[Tensor]:
    """Return the maps (H, W) that are given, one for each image, or none."""
    if weight is None:
        return []
    if not isinstance(weight, Sequence) or len(weight) != len(images):
        raise TypeError(f"weight must be a list of {len(images)} maps, one for each image of the list")
    return [validation.weight(own, image[None], params.sigma.dtype)[0] for own, image in zip(weight, images)]


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
