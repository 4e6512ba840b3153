"""The blurs as torch.nn modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fovblur.foveated_blur.api import foveated_blur, gaussian_blur


class FoveatedBlur2d(nn.Module):
    """Blur images (..., C, H, W) with :func:`fovblur.foveated_blur`.

    The arguments are those of the function. An ``nn.Parameter`` given as ``sigma`` or ``gain`` is learnt; any other
    tensor becomes a buffer, which moves with the module.

    Examples:
        >>> blur = FoveatedBlur2d(kernel_size=5, gain=nn.Parameter(torch.tensor(0.5)))
        >>> blur(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
    """

    sigma: float | Tensor | None
    kernel_size: int | Tensor | None
    gain: float | Tensor
    fixation: Sequence[float] | Tensor | None
    mean: float | Sequence[float] | Tensor | None
    std: float | Sequence[float] | Tensor | None

    def __init__(
        self,
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
    ):
        super().__init__()
        _register(self, sigma=sigma, kernel_size=kernel_size, gain=gain, fixation=fixation, mean=mean, std=std)
        self.decay, self.falloff, self.out_dtype, self.backend = decay, falloff, out_dtype, backend

    def forward(self, images: Tensor) -> Tensor:
        """Return the blurred images (..., C, H, W)."""
        return foveated_blur(
            images,
            self.sigma,
            kernel_size=self.kernel_size,
            gain=self.gain,
            decay=self.decay,
            falloff=self.falloff,
            fixation=self.fixation,
            mean=self.mean,
            std=self.std,
            out_dtype=self.out_dtype,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Return the parameters that ``repr`` shows."""
        return _format(self, "sigma", "kernel_size", "gain", "decay", "falloff", "fixation")


class GaussianBlur2d(nn.Module):
    """Blur images (..., C, H, W) with :func:`fovblur.gaussian_blur`.

    Args:
        sigma: standard deviation in pixels, a number, (B,), or an ``nn.Parameter``, which is learnt. Default: computed
            from ``kernel_size``.
        kernel_size: odd width in pixels, an int or (B,). Default: computed from ``sigma``.
        backend: as for :func:`fovblur.foveated_blur`.

    Examples:
        >>> GaussianBlur2d(2.0)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
    """

    sigma: float | Tensor | None
    kernel_size: int | Tensor | None

    def __init__(
        self,
        sigma: float | Tensor | None = None,
        *,
        kernel_size: int | Tensor | None = None,
        backend: str | None = None,
    ):
        super().__init__()
        _register(self, sigma=sigma, kernel_size=kernel_size)
        self.backend = backend

    def forward(self, images: Tensor) -> Tensor:
        """Return the blurred images (..., C, H, W)."""
        return gaussian_blur(images, self.sigma, kernel_size=self.kernel_size, backend=self.backend)

    def extra_repr(self) -> str:
        """Return the parameters that ``repr`` shows."""
        return _format(self, "sigma", "kernel_size")


def _register(module: nn.Module, **values: object) -> None:
    """Set attributes of a module; tensors that are not learnt become buffers, which move with it."""
    for name, value in values.items():
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            module.register_buffer(name, value)
        else:
            setattr(module, name, value)


def _format(module: nn.Module, *names: str) -> str:
    """Format the attributes that are not None: numbers as they are, tensors by their shape."""
    shown = []
    for name in names:
        value = getattr(module, name)
        if isinstance(value, Tensor):
            value = f"{value.item():g}" if value.numel() == 1 else f"tensor{tuple(value.shape)}"
        if value is not None:
            shown.append(f"{name}={value}")
    return ", ".join(shown)
