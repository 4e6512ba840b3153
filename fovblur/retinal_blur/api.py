"""The public function of the retinal blur: defaults, checks, the level map, and one call of the op."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fovblur import backends
from fovblur.dtypes import accumulation_dtype
from fovblur.foveated_blur import validation as blur_validation
from fovblur.foveated_blur.params import Values
from fovblur.retinal_blur import reference, validation
from fovblur.retinal_blur.autograd import differentiable_blend
from fovblur.retinal_blur.op import level_params
from fovblur.retinal_blur.retina import Retina, distance_to_fixation
from fovblur.sharding import by_sample


def retinal_blur(
    images: Tensor,
    fixation: Values | None = None,
    *,
    pixels_per_degree: float,
    viewing_distance: float | None = None,
    half_resolution: float = 2.3,
    frequency_decay: float = 0.106,
    contrast_threshold: float = 1 / 64,
    levels: int = 12,
    border: str = "reflect",
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Blur images as the retina samples them: sharp at the fixation, and the wider the farther from it.

    A grating of f cycles per degree at an eccentricity of e degrees is visible from a contrast of
    ``CT0 exp(alpha f (e + e2) / e2)`` on (Geisler and Perry 1998; Perry and Geisler 2002). So nothing finer than
    ``f_c(e) = e2 ln(1 / CT0) / (alpha (e + e2))`` is visible, and every pixel is blurred by a Gaussian of its own that
    halves the amplitude of f_c. The display, whose finest grating has two pixels a cycle, counts as such a Gaussian,
    too, and is taken off: ``sigma^2 = ln 2 / (2 pi^2) max(0, T^2 - 2^2)``, where T is the cycle of f_c in pixels. So
    sigma grows smoothly from 0, where the eye sees all that the display shows.

    In one pass over the images every pixel blends the two of a few Gaussians that are next to its own, by the shares
    that give its variance. The documentation has a table of how far that is from a Gaussian for every pixel, by
    ``scripts/retinal_error.py``: with 12 levels at most 0.006 of the images' range for edges, and 0.01 for white noise.

    Args:
        images: (..., C, H, W), as for :func:`fovblur.foveated_blur`.
        fixation: (y, x) in pixels, two numbers, (2,) or (..., 2); or several, (F, 2) for one image and (..., F, 2), of
            which the nearest counts. Default: (H // 2, W // 2).
        pixels_per_degree: pixels in a degree of visual angle at the fixation.
        viewing_distance: of the eye from a flat display, in pixels, opposite the fixation: then e = atan(d / distance),
            and pixels per degree grow with e. Default: every degree has ``pixels_per_degree`` pixels, e = d /
            pixels_per_degree.
        half_resolution: e2, the eccentricity in degrees at which f_c is half that of the fovea.
        frequency_decay: alpha, by which sensitivity falls with frequency, in degrees.
        contrast_threshold: CT0, the least visible contrast, below 1.
        levels: how many Gaussians are blended, from 2 to 32. They are spaced for an even error from the blur at the
            fixation to that at a distance of the image's diagonal, which is also the largest.
        border: as for :func:`fovblur.foveated_blur`.
        out_dtype: dtype of the result. Default: that of the images. uint8 only for uint8 images.
        backend: as for :func:`fovblur.foveated_blur`.

    Returns:
        (..., C, H, W) in ``out_dtype``, accumulated in float32 (float64 for float64 images).

    Raises:
        TypeError, ValueError: a wrong type, shape, device or range; the message names the argument.
        RuntimeError: the requested backend cannot run; the message says why.

    A NaN pixel makes those pixels NaN whose two Gaussians reach it, and nothing else. Differentiable in images and
    fixation, any number of times, in forward mode too, and under ``torch.func.vmap``. The batch of a DTensor stays
    sharded.

    Examples:
        >>> images = torch.rand(2, 3, 48, 64)
        >>> retinal_blur(images, (10.0, 20.0), pixels_per_degree=4.0).shape
        torch.Size([2, 3, 48, 64])
    """
    if isinstance(images, list):
        raise TypeError("images is a list; retinal_blur takes one tensor (..., C, H, W): call it for every image")
    blur_validation.check_images(images)
    levels = validation.levels(levels)
    distance = None if viewing_distance is None else validation.positive("viewing_distance", viewing_distance)
    model = Retina(
        validation.positive("pixels_per_degree", pixels_per_degree),
        distance,
        validation.positive("half_resolution", half_resolution),
        validation.positive("frequency_decay", frequency_decay),
        validation.positive("contrast_threshold", contrast_threshold, below=1),
    )
    blur_validation.check_border(border)
    backends.check_name(backend)
    out_dtype = blur_validation.out_dtype(out_dtype, images, normalise=False)
    shape = images.shape
    height, width = shape[-2:]
    if torch.jit.is_tracing():  # where sizes are tensors
        height, width = int(height), int(width)
    dtype = accumulation_dtype(images.dtype)
    fixations = blur_validation.fixation((height // 2, width // 2) if fixation is None else fixation, images, dtype)
    images = images if images.ndim == 4 else images.reshape(math.prod(shape[:-3]), *shape[-3:])

    def blur_local(images: Tensor, fixations: Tensor) -> Tensor:
        blur_validation.check_fixation(fixations, images)
        variance = _variance_map(fixations, model, images)
        if backends.is_reference(backend) and not torch.compiler.is_dynamo_compiling():  # which has symbols for sizes
            params = level_params(images, variance, model, levels, border)
            return reference.blend_levels(images, params, out_dtype)
        return differentiable_blend(images, variance, model, levels, border, out_dtype, backend or "")

    blurred = by_sample(blur_local, images, (fixations,), ())
    return blurred if len(shape) == 4 else blurred.reshape(shape)


def _variance_map(fixation: Tensor, model: Retina, images: Tensor) -> Tensor:
    """Return the variance of every pixel's Gaussian, (B, H, W); samples that share a fixation share its memory."""
    batch, _, height, width = images.shape
    own = fixation[:1] if fixation.stride(0) == 0 else fixation
    own = own if own.ndim == 3 else own[:, None]
    return model.variance(distance_to_fixation(own, height, width)).expand(batch, height, width)
