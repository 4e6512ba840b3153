"""The foveated blur as torchvision v2 transforms of tensors, tv_tensors and PIL images. Needs torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from torchvision import tv_tensors
    from torchvision.transforms import v2
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"fovblur.transforms needs torchvision ({missing}); pip install 'fovblur[train]'"
    ) from missing

from fovblur.foveated_blur.api import foveated_blur
from fovblur.image_types import blur_image, is_image
from fovblur.modules import FoveatedBlur2d, GaussianBlur2d

__all__ = ["FoveatedBlur", "FoveatedBlur2d", "GaussianBlur2d", "RandomFoveatedBlur"]


class FoveatedBlur(v2.Transform):
    """Blur images with :func:`fovblur.foveated_blur`.

    Takes tensors (..., C, H, W), tv_tensors.Image and Video, and PIL images, and returns the same type; every channel
    is blurred, alpha too. Other tv_tensors, such as boxes, masks and key points, are returned unchanged.

    Args:
        sigma: standard deviation in pixels, a number or (y, x); the other arguments are numbers, as for the function.
        kernel_size: odd width in pixels, an int or (y, x).
        gain: weight of the sharp image at the fixation.
        decay: rate of the "exp" falloff.
        falloff: curve of acuity.
        fixation: (y, x) in pixels.
        border: what lies beyond the image.

    Examples:
        >>> FoveatedBlur(kernel_size=5)(torch.rand(3, 16, 16)).shape
        torch.Size([3, 16, 16])
    """

    def __init__(
        self,
        sigma: float | tuple[float, float] | None = None,
        *,
        kernel_size: int | tuple[int, int] | None = None,
        gain: float = 0.5,
        decay: float = 3.0,
        falloff: str = "exp",
        fixation: Sequence[float] | None = None,
        border: str = "reflect",
    ):
        super().__init__()
        self.sigma, self.kernel_size, self.gain = sigma, kernel_size, gain
        self.decay, self.falloff, self.fixation, self.border = decay, falloff, fixation, border
        self.blur(torch.zeros(1, 1, 1, 1), {})  # raises now what the function would raise later

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Blur one input of the transform."""
        return blur_image(inpt, lambda images: self.blur(images, params)) if is_image(inpt) else inpt

    def blur(self, images: Tensor, params: dict[str, Any]) -> Tensor:
        """Blur images (B, C, H, W)."""
        return foveated_blur(
            images,
            self.sigma,
            kernel_size=self.kernel_size,
            gain=self.gain,
            decay=self.decay,
            falloff=self.falloff,
            fixation=self.fixation,
            border=self.border,
        )


class RandomFoveatedBlur(FoveatedBlur):
    """Blur images with random sigma, gain and fixation, drawn for every image of a batch.

    The frames of a tv_tensors.Video share one draw, as do images that are passed to the transform together.

    Args:
        sigma: smallest and largest standard deviation in pixels, drawn uniformly.
        gain: smallest and largest weight of the sharp image at the fixation.
        fixation: None for the centre, "uniform" for a random pixel position.
        decay: rate of the "exp" falloff.
        falloff: curve of acuity.
        border: what lies beyond the image.

    Examples:
        >>> RandomFoveatedBlur((0.5, 8.0), fixation="uniform")(torch.rand(4, 3, 16, 16)).shape
        torch.Size([4, 3, 16, 16])
    """

    def __init__(
        self,
        sigma: tuple[float, float] = (0.1, 8.0),
        *,
        gain: tuple[float, float] = (0.0, 1.0),
        decay: float = 3.0,
        falloff: str = "exp",
        fixation: str | None = None,
        border: str = "reflect",
    ):
        for name, value, largest in (("sigma", sigma, 1e3), ("gain", gain, 1.0)):
            ends = tuple(value) if isinstance(value, (Sequence, np.ndarray)) else ()
            is_pair = len(ends) == 2 and all(isinstance(each, Real) for each in ends)
            if not is_pair or not 0 <= ends[0] <= ends[1] <= largest:
                raise ValueError(f"{name} is {value!r}; it must be (least, largest) within [0, {largest:g}]")
        if fixation not in (None, "uniform"):
            raise ValueError(f"fixation is {fixation!r}; it must be None or 'uniform'")
        super().__init__(sigma[1], gain=gain[1], decay=decay, falloff=falloff, border=border)
        self.sigma_range, self.gain_range, self.random_fixation = tuple(sigma), tuple(gain), fixation == "uniform"

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw uniform numbers (images of the largest batch, 4) for sigma, gain, and the fixation's y and x."""
        counts = [
            x.shape[:-3].numel() for x in flat_inputs if isinstance(x, Tensor) and x.ndim > 3 and not self._shares(x)
        ]
        return {"uniform": torch.rand(max(counts, default=1), 4)}

    @staticmethod
    def _shares(inpt: Any) -> bool:
        return isinstance(inpt, tv_tensors.Video) or not is_image(inpt)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Blur one input of the transform; the frames of a video share the first row of numbers."""
        return super().transform(inpt, {"uniform": params["uniform"][:1]} if self._shares(inpt) else params)

    def blur(self, images: Tensor, params: dict[str, Any]) -> Tensor:
        """Blur images (B, C, H, W) with the numbers drawn for them."""
        if not params:
            return super().blur(images, params)
        drawn = params["uniform"][: len(images)].to(images.device)
        drawn = drawn.expand(len(images), 4) if len(drawn) == 1 else drawn
        between = lambda column, bounds: bounds[0] + (bounds[1] - bounds[0]) * drawn[:, column]  # noqa: E731
        extent = torch.tensor([images.shape[2] - 1, images.shape[3] - 1], device=images.device)
        return foveated_blur(
            images,
            between(0, self.sigma_range),
            gain=between(1, self.gain_range),
            decay=self.decay,
            falloff=self.falloff,
            fixation=drawn[:, 2:] * extent if self.random_fixation else None,
            border=self.border,
        )
