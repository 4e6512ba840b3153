"""Lists of images of different sizes, blurred in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fovblur.foveated_blur import validation
from fovblur.foveated_blur.call import Arguments, blur_batch, params_of
from fovblur.foveated_blur.params import BlurParams, Values


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
    weights = _weights(arguments.weight, count)
    blurred = []
    for index, (image, weight) in enumerate(zip(images, weights)):
        own = _of_image(params, index)
        if weight is not None:
            own = own._replace(weight=validation.weight(weight, image[None], own.sigma.dtype))
        blurred.append(blur_batch(image[None], own, out_dtype, arguments.backend)[0])
    return blurred


def _of_image(params: BlurParams, index: int) -> BlurParams:
    """Return the parameters of one image."""
    chosen = {name: getattr(params, name)[index : index + 1] for name in ("sigma", "kernel_size", "gain", "fixation")}
    return params._replace(**chosen)


def _weights(weight: object, count: int) -> Sequence[Values | None]:
    if weight is None:
        return [None] * count
    if not isinstance(weight, Sequence) or len(weight) != count:
        raise TypeError(f"weight must be a list of {count} maps, one for each image of the list")
    return weight


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
