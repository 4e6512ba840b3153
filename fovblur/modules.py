"""The blurs as torch.nn modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils import parametrize

from fovblur.dtypes import DTYPES
from fovblur.foveated_blur.api import foveated_blur, gaussian_blur
from fovblur.foveated_blur.params import Values
from fovblur.foveated_blur.sizes import sigma_from_kernel_size
from fovblur.foveated_blur.validation import is_pair
from fovblur.retinal_blur.api import retinal_blur


class FoveatedBlur2d(nn.Module):
    """Blur images (..., C, H, W) with :func:`fovblur.foveated_blur`.

    The arguments are those of the function, and ``learnable``. An ``nn.Parameter`` given as ``sigma``, ``gain``,
    ``fixation`` or ``weight`` is learnt as it is, and a step of the optimiser can lead out of its range; any other
    tensor becomes a buffer, which moves with the module.

    Args:
        learnable: which of ``"sigma"``, ``"gain"`` and ``"fixation"`` are learnt without ever leaving their ranges,
            from the value that is given: sigma as a softplus, gain as a sigmoid, fixation within a billion pixels. The
            attributes have the values; the parameters are ``parametrizations.NAME.original``. Save the state_dict:
            PyTorch does not pickle parametrised modules.

    Raises:
        ValueError: a name is unknown, or its start is missing or not within its range.

    Examples:
        >>> blur = FoveatedBlur2d(2.0, kernel_size=17, gain=0.5, learnable=("sigma", "gain"))
        >>> blur(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
        >>> [name for name, _ in blur.named_parameters()]
        ['parametrizations.sigma.original', 'parametrizations.gain.original']
    """

    sigma: Values | None
    kernel_size: Values | None
    gain: Values
    fixation: Values | None
    weight: Values | None
    mean: Values | None
    std: Values | None

    def __init__(
        self,
        sigma: Values | None = None,
        *,
        kernel_size: Values | None = None,
        gain: Values = 0.5,
        decay: float = 3.0,
        falloff: str = "exp",
        fixation: Values | None = None,
        weight: Values | None = None,
        mean: Values | None = None,
        std: Values | None = None,
        border: str = "reflect",
        rule: str | None = None,
        out_dtype: torch.dtype | None = None,
        backend: str | None = None,
        learnable: str | Sequence[str] = (),
    ):
        super().__init__()
        learnable = (learnable,) if isinstance(learnable, str) else tuple(dict.fromkeys(learnable))
        given = kernel_size if sigma is None else sigma
        if "sigma" in learnable and sigma is None and kernel_size is not None:
            sigma = sigma_from_kernel_size(torch.as_tensor(kernel_size))
        self.learns_pair = "sigma" in learnable and is_pair(given)
        starts = {"sigma": sigma, "gain": gain, "fixation": fixation}
        for name in learnable:
            if starts.get(name) is None:
                known = "learnt are sigma, gain and fixation, each from a value that is given"
                raise ValueError(f"learnable has {name!r}; {known}")
            starts[name] = nn.Parameter(torch.as_tensor(starts[name], dtype=torch.get_default_dtype()).clone())
        _register(self, **starts, kernel_size=kernel_size, weight=weight, mean=mean, std=std)
        for name in learnable:
            parametrize.register_parametrization(self, name, _RANGES[name]())
        self.decay, self.falloff, self.border, self.rule = decay, falloff, border, rule
        self.out_dtype, self.backend = out_dtype, backend

    def forward(self, images: Tensor) -> Tensor:
        """Return the blurred images (..., C, H, W)."""
        sigma: Any = self.sigma
        return foveated_blur(
            images,
            sigma.unbind() if self.learns_pair else sigma,
            kernel_size=self.kernel_size,
            gain=self.gain,
            decay=self.decay,
            falloff=self.falloff,
            fixation=self.fixation,
            weight=self.weight,
            mean=self.mean,
            std=self.std,
            border=self.border,
            rule=self.rule,
            out_dtype=self.out_dtype,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Return the parameters that ``repr`` shows."""
        return _format(self, "sigma", "kernel_size", "gain", "decay", "falloff", "fixation", "weight", "border", "rule")


_LARGEST_SIGMA = 8160.0  # the largest in bfloat16 that the op takes without a kernel size


class _Sigma(nn.Module):
    """Positive, by a softplus, and never larger than the op takes."""

    def forward(self, original: Tensor) -> Tensor:
        return softplus(original).clamp(max=_LARGEST_SIGMA)

    def right_inverse(self, sigma: Tensor) -> Tensor:
        if not sigma.is_meta and not ((sigma > 0) & (sigma <= _LARGEST_SIGMA)).all():
            raise ValueError(f"sigma is {sigma.tolist()}; it is learnt between 0 and {_LARGEST_SIGMA:g}")
        return sigma + torch.log(-torch.expm1(-sigma))


class _Gain(nn.Module):
    """Within [0, 1], by a sigmoid."""

    def forward(self, original: Tensor) -> Tensor:
        return original.sigmoid()

    def right_inverse(self, gain: Tensor) -> Tensor:
        if not gain.is_meta and not ((gain > 0) & (gain < 1)).all():
            raise ValueError(f"gain is {gain.tolist()}; it is learnt from between 0 and 1, which have no gradient")
        return gain.logit()


class _Fixation(nn.Module):
    """As far from the image as the op takes."""

    def forward(self, original: Tensor) -> Tensor:
        limit = min(1e9, torch.finfo(original.dtype).max)
        return original.clamp(-limit, limit)

    def right_inverse(self, fixation: Tensor) -> Tensor:
        return fixation


_RANGES = {"sigma": _Sigma, "gain": _Gain, "fixation": _Fixation}


class GaussianBlur2d(nn.Module):
    """Blur images (..., C, H, W) with :func:`fovblur.gaussian_blur`.

    Args:
        sigma: standard deviation in pixels, a number, (...), a tuple (y, x), (..., 2), or an ``nn.Parameter``, which
            is learnt. Default: computed from ``kernel_size``.
        kernel_size: odd width in pixels, an int, (...), a tuple (y, x) or (..., 2). Default: computed from ``sigma``.
        border: as for :func:`fovblur.foveated_blur`.
        rule: as for :func:`fovblur.foveated_blur`.
        backend: as for :func:`fovblur.foveated_blur`.

    Examples:
        >>> GaussianBlur2d(2.0)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
    """

    sigma: Values | None
    kernel_size: Values | None

    def __init__(
        self,
        sigma: Values | None = None,
        *,
        kernel_size: Values | None = None,
        border: str = "reflect",
        rule: str | None = None,
        backend: str | None = None,
    ):
        super().__init__()
        _register(self, sigma=sigma, kernel_size=kernel_size)
        self.border, self.rule, self.backend = border, rule, backend

    def forward(self, images: Tensor) -> Tensor:
        """Return the blurred images (..., C, H, W)."""
        return gaussian_blur(
            images,
            self.sigma,
            kernel_size=self.kernel_size,
            border=self.border,
            rule=self.rule,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Return the parameters that ``repr`` shows."""
        return _format(self, "sigma", "kernel_size", "border", "rule")


class RetinalBlur2d(nn.Module):
    """Blur images (..., C, H, W) with :func:`fovblur.retinal_blur`, whose arguments are those of the module.

    Args:
        pixels_per_degree: pixels in a degree of visual angle at the fixation.
        fixation: (y, x) in pixels, or an ``nn.Parameter``, which is learnt. Default: (H // 2, W // 2).
        options: the other keyword arguments of the function.

    Examples:
        >>> RetinalBlur2d(4.0)(torch.rand(2, 3, 48, 64)).shape
        torch.Size([2, 3, 48, 64])
    """

    fixation: Values | None

    def __init__(self, pixels_per_degree: float, *, fixation: Values | None = None, **options: Any):
        super().__init__()
        _register(self, fixation=fixation)
        self.pixels_per_degree, self.options = pixels_per_degree, options
        # Raises now what the function would raise later, without running a backend.
        dtype = options.get("out_dtype")
        image = torch.empty(1, 1, 1, 1, dtype=dtype if dtype in DTYPES else torch.float32, device="meta")
        retinal_blur(image, pixels_per_degree=pixels_per_degree, **options)

    def forward(self, images: Tensor) -> Tensor:
        """Return the blurred images (..., C, H, W)."""
        return retinal_blur(images, self.fixation, pixels_per_degree=self.pixels_per_degree, **self.options)

    def extra_repr(self) -> str:
        """Return the parameters that ``repr`` shows."""
        options = (f"{name}={value}" for name, value in self.options.items())
        return ", ".join([_format(self, "pixels_per_degree", "fixation"), *options])


def _register(module: nn.Module, **values: object) -> None:
    """Set attributes of a module; tensors that are not learnt become buffers, which move with it."""
    for name, value in values.items():
        if isinstance(value, (tuple, list)) and any(isinstance(x, Tensor) and x.requires_grad for x in value):
            problem = f"{name} is a {type(value).__name__} of tensors, which a module does not learn"
            raise TypeError(f"{problem}; pass one tensor, or numbers, and name it in learnable")
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
            value = f"{value.item():g}" if value.numel() == 1 and not value.is_meta else f"tensor{tuple(value.shape)}"
        if value is not None:
            shown.append(f"{name}={value}")
    return ", ".join(shown)
