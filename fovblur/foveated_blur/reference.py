"""The blur in plain PyTorch, written as its formula: slow, differentiable, the oracle of every test."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fovblur.foveated_blur.params import BlurGradients, BlurParams

SHARP_SIGMA = 0.025  # pixels; below it, exp(-1 / (2 sigma^2)) is 0 in float64
OPENCV_TABLES = (
    (64, 128, 64),
    (16, 64, 96, 64, 16),
    (8, 28, 56, 72, 56, 28, 8),
    (4, 13, 30, 51, 60, 51, 30, 13, 4),
)  # over 256


def foveated_blur(
    images: Tensor, params: BlurParams, out_dtype: torch.dtype, largest_size: int | None = None
) -> Tensor:
    """Return y = W x + (1 - W) G(x, sigma), normalised and converted; sigma's dtype is the one it is computed in.

    Args:
        images: (B, C, H, W).
        params: of the blur.
        out_dtype: dtype of the result.
        largest_size: the largest kernel size, where its value cannot be read, as in a tracer.
    """
    sigma, gain, mean, std = params.sigma, params.gain, params.mean, params.std
    if images.numel() == 0:  # with gradients of 0
        return (images.to(sigma.dtype) + 0 * (sigma.sum() + gain.sum())).to(out_dtype)
    x = images.to(sigma.dtype)
    weight = (gain[:, None, None] * sharpness(params, *images.shape[-2:]))[:, None]
    blurred = gaussian(x, taps_of_axes(params, largest_size), params.border)
    blended = weight * x + (1 - weight) * blurred
    blended = torch.where((weight == 0) & ~x.isfinite(), blurred, blended)  # 0 * inf is not NaN here
    y = torch.where(is_sharp(params), x, blended)
    if mean is not None and std is not None:
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        y = (y / scale - mean[:, None, None]) / std[:, None, None]
    if out_dtype == torch.uint8:
        y = y.nan_to_num(0.0).round().clamp(0, 255)
    return y.to(out_dtype)


def is_sharp(params: BlurParams) -> Tensor:
    """Return which samples are not blurred, (B, 1, 1, 1)."""
    sharp = (params.sigma == 0) | (params.kernel_size == 1)
    return (sharp.all(1) if sharp.ndim == 2 else sharp)[:, None, None, None]


class Taps(NamedTuple):
    """Weights of every sample's Gaussian, from -radius to radius of the largest."""

    values: Tensor  # (B, 2 radius + 1)
    inside: Tensor  # (B, 2 radius + 1) those of the sample's own radius; the others touch no pixel


def axes(parameter: Tensor) -> tuple[Tensor, Tensor]:
    """Return sigma or the kernel size along y and along x, each (B,)."""
    return (parameter[:, 0], parameter[:, 1]) if parameter.ndim == 2 else (parameter, parameter)


def taps_of_axes(params: BlurParams, largest_size: int | None = None) -> tuple[Taps, Taps]:
    """Return the weights along y and along x."""
    sizes = zip(axes(params.sigma), axes(params.kernel_size))
    along_y, along_x = (gaussian_taps(*each, largest_size, params.tables) for each in sizes)
    return along_y, along_x


def gaussian_taps(sigma: Tensor, kernel_size: Tensor, largest_size: int | None = None, tables: bool = False) -> Taps:
    """Return the weights of Gaussians, which sum to 1; those of a negative or NaN sigma are NaN."""
    radius = (int(kernel_size.max()) if largest_size is None else largest_size) // 2
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    own_radius = torch.where(sigma == 0, 0, kernel_size // 2)[:, None]
    inside = offsets.abs() <= own_radius
    valid = torch.where(sigma >= 0, sigma.clamp(min=SHARP_SIGMA), torch.nan)
    values = torch.exp(-0.5 * (offsets / valid[:, None]) ** 2)
    values = values.clamp(min=torch.finfo(torch.float32).tiny)  # an infinite pixel stays so: 0 * inf would be NaN
    values = torch.where(inside, values, 0)
    values = values / values.sum(dim=1, keepdim=True)
    for table in OPENCV_TABLES if tables else ():
        of_radius = len(table) // 2
        there = [table[i + of_radius] / 256 if abs(i) <= of_radius else 0.0 for i in range(-radius, radius + 1)]
        values = torch.where(own_radius == of_radius, values.new_tensor(there), values)
    return Taps(values, inside)


def gaussian(x: Tensor, taps: tuple[Taps, Taps], border: str) -> Tensor:
    """Blur (B, C, H, W) with Gaussians along y and along x."""
    return correlate(correlate(x, taps[0], -2, border), taps[1], -1, border)


def correlate(x: Tensor, taps: Taps, dim: int, border: str) -> Tensor:
    """Return the weighted sum of the neighbours along one dimension of (B, C, H, W)."""
    n, count = x.shape[dim], taps.values.shape[1]
    if border == "constant":  # index -1 is a pixel of 0 behind the last
        x = torch.cat([x, torch.zeros_like(x.narrow(dim, 0, 1))], dim)
    padded = x.index_select(dim, border_indices(n, count // 2, border, x.device))
    weights, inside = (each[:, :, None, None, None] for each in taps)
    result = torch.zeros_like(x.narrow(dim, 0, n))
    for t in range(count):
        result = result + torch.where(inside[:, t], weights[:, t] * padded.narrow(dim, t, n), 0)
    return result


def border_indices(n: int, radius: int, border: str, device: torch.device) -> Tensor:
    """Return the pixel, of n, at each position from -radius to n - 1 + radius; n stands for a pixel of 0."""
    positions = torch.arange(-radius, n + radius, device=device)
    if border == "replicate" or (n == 1 and border != "constant"):
        return positions.clamp(0, n - 1)
    if border == "constant":
        return torch.where((positions >= 0) & (positions < n), positions, n)
    if border == "circular":
        return positions.remainder(n)
    if border == "symmetric":
        folded = positions.remainder(2 * n)
        return torch.minimum(folded, 2 * n - 1 - folded)
    folded = positions.remainder(2 * n - 2)
    return torch.minimum(folded, 2 * n - 2 - folded)


def sharpness(params: BlurParams, height: int, width: int) -> Tensor:
    """Return the weight map of a call, or acuity around its fixation, (B, H, W)."""
    if params.weight is not None:
        return params.weight
    return acuity(params.falloff, params.decay, params.fixation, height, width)


def acuity(falloff: str, decay: float, fixation: Tensor, height: int, width: int) -> Tensor:
    """Return f(min(1, d / D)) for every pixel, (B, H, W)."""
    cy, cx = fixation[:, 0, None, None], fixation[:, 1, None, None]
    y = torch.arange(height, dtype=fixation.dtype, device=fixation.device)[:, None]
    x = torch.arange(width, dtype=fixation.dtype, device=fixation.device)
    distance = length(y - cy, x - cx)
    is_default = (cy == height // 2) & (cx == width // 2)
    farthest_y = torch.where(is_default, height - 1 - cy, torch.maximum(cy.abs(), (height - 1 - cy).abs()))
    farthest_x = torch.where(is_default, width - 1 - cx, torch.maximum(cx.abs(), (width - 1 - cx).abs()))
    reach = length(farthest_y, farthest_x)
    u = torch.where(distance < reach, distance / reach, (distance > 0).to(distance.dtype))
    return falloff_curve(falloff, decay, u)


def length(y: Tensor, x: Tensor) -> Tensor:
    """Return sqrt(y^2 + x^2), with gradient 0 at 0; ONNX has no hypot."""
    squared = y**2 + x**2
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)


def falloff_curve(falloff: str, decay: float, u: Tensor) -> Tensor:
    """Return f(u), which falls from 1 at u = 0 to its least value at u = 1."""
    if falloff == "exp":
        return torch.exp(-decay * u)
    if falloff == "linear":
        return 1 - u
    if falloff == "quadratic":
        return 1 - u**2
    if falloff == "log":
        b = 1 / (math.e - 1)
        return (math.log(b) + 1 - torch.log(u + b)).clamp(min=0)  # below 0, it would turn the sign of an infinity
    return brachistochrone(u)


def brachistochrone(u: Tensor) -> Tensor:
    """Return the cycloid x = r (s - sin s), y = 1 - r (1 - cos s) from (0, 1) to (1, 0), by bisection in float64."""
    r = 0.5729
    x = u.double()
    low, high = torch.zeros_like(x), torch.full_like(x, math.pi)
    for _ in range(60):
        s = (low + high) / 2
        below = r * (s - s.sin()) < x.detach()
        low, high = torch.where(below, s, low), torch.where(below, high, s)
    s = low
    for _ in range(2):  # Newton's steps, which change nothing but give derivatives
        slope = r * (1 - s.cos())
        steep = slope > 1e-6
        s = torch.where(steep, s - (r * (s - s.sin()) - x) / torch.where(steep, slope, 1), s)
    return (1 - r * (1 - s.cos())).to(u.dtype)


def reference_forward(images: Tensor, out: Tensor, params: BlurParams) -> None:
    """Blur images (B, C, H, W) into `out`."""
    out.copy_(foveated_blur(images, params, out.dtype))


def reference_backward(grad: Tensor, images: Tensor, grads: BlurGradients, params: BlurParams) -> None:
    """Fill `grads` for the gradient (B, C, H, W) of the result; that of images not under the border replicate."""
    sigma, gain, std, border = params.sigma, params.gain, params.std, params.border
    grad_images, grad_sigma, grad_gain = grads
    x, grad = images.to(sigma.dtype), grad.to(sigma.dtype)
    if std is not None:
        grad = grad / (std[:, None, None] * (255.0 if images.dtype == torch.uint8 else 1.0))
    f = sharpness(params, *images.shape[-2:])[:, None]
    taps, sharp = taps_of_axes(params), is_sharp(params)
    through_blur = (1 - gain[:, None, None, None] * f) * grad
    if grad_images is not None:
        grad_images.copy_(torch.where(sharp, grad, grad - through_blur + gaussian_adjoint(through_blur, taps, border)))
    if grad_sigma is not None:
        slopes = tuple(slopes_of(own, each) for own, each in zip(axes(sigma), taps))
        along_y = correlate(correlate(x, slopes[0], -2, border), taps[1], -1, border)
        along_x = correlate(correlate(x, taps[0], -2, border), slopes[1], -1, border)
        sums = [torch.where(sharp, 0, through_blur * each).sum((1, 2, 3)) for each in (along_y, along_x)]
        grad_sigma.copy_(torch.stack(sums, 1) if sigma.ndim == 2 else sums[0] + sums[1])
    if grad_gain is not None:
        grad_gain.copy_(torch.where(sharp, 0, grad * f * (x - gaussian(x, taps, border))).sum((1, 2, 3)))


def gaussian_adjoint(x: Tensor, taps: tuple[Taps, Taps], border: str) -> Tensor:
    """Apply the transpose of :func:`gaussian` under any border but replicate.

    The blur is symmetric, except under the border reflect, where an inner pixel appears twice as often as a border
    pixel. There it is symmetric once border pixels count half: A^T = E A E^-1 with E = diag(1/2, 1, ..., 1, 1/2).
    """
    if border != "reflect":
        return gaussian(x, taps, border)
    share = border_share(x.shape[-2], x)[:, None] * border_share(x.shape[-1], x)
    return share * gaussian(x / share, taps, border)


def border_share(n: int, like: Tensor) -> Tensor:
    """Return the diagonal of E, (n,), in the dtype and on the device of `like`."""
    share = torch.ones(n, dtype=like.dtype, device=like.device)
    share[0] = share[-1] = 0.5
    return share


def slopes_of(sigma: Tensor, taps: Taps) -> Taps:
    """Return the derivatives of Gaussian taps in sigma, t_i (i^2 - sum_j t_j j^2) / sigma^3."""
    radius = taps.values.shape[1] // 2
    squares = torch.arange(-radius, radius + 1, dtype=sigma.dtype, device=sigma.device) ** 2
    slopes = taps.values * (squares - (taps.values * squares).sum(1, keepdim=True)) / sigma[:, None] ** 3
    return Taps(torch.where(sigma[:, None] < SHARP_SIGMA, 0, slopes), taps.inside)
