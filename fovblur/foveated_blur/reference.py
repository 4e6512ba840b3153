"""The blur in plain PyTorch, written as its formula: slow, differentiable, the oracle of every test."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fovblur.foveated_blur.params import BlurGradients, BlurParams

SHARP_SIGMA = 0.025  # pixels; below it, exp(-1 / (2 sigma^2)) is 0 in float64


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
    sigma, kernel_size, gain, fixation, mean, std, falloff, decay = params[:8]
    _, _, height, width = images.shape
    if images.numel() == 0:  # with gradients of 0
        return (images.to(sigma.dtype) + 0 * (sigma.sum() + gain.sum())).to(out_dtype)
    x = images.to(sigma.dtype)
    weight = (gain[:, None, None] * acuity(falloff, decay, fixation, height, width))[:, None]
    blurred = gaussian(x, gaussian_taps(sigma, kernel_size, largest_size))
    blended = weight * x + (1 - weight) * blurred
    blended = torch.where((weight == 0) & ~x.isfinite(), blurred, blended)  # 0 * inf is not NaN here
    y = torch.where(is_sharp(sigma, kernel_size), x, blended)
    if mean is not None and std is not None:
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        y = (y / scale - mean[:, None, None]) / std[:, None, None]
    if out_dtype == torch.uint8:
        y = y.nan_to_num(0.0).round().clamp(0, 255)
    return y.to(out_dtype)


def is_sharp(sigma: Tensor, kernel_size: Tensor) -> Tensor:
    """Return which samples are not blurred, (B, 1, 1, 1)."""
    return ((sigma == 0) | (kernel_size == 1))[:, None, None, None]


class Taps(NamedTuple):
    """Weights of every sample's Gaussian, from -radius to radius of the largest."""

    values: Tensor  # (B, 2 radius + 1)
    inside: Tensor  # (B, 2 radius + 1) those of the sample's own radius; the others touch no pixel


def gaussian_taps(sigma: Tensor, kernel_size: Tensor, largest_size: int | None = None) -> Taps:
    """Return the weights of Gaussians, which sum to 1; those of a negative or NaN sigma are NaN."""
    radius = (int(kernel_size.max()) if largest_size is None else largest_size) // 2
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    inside = offsets.abs() <= kernel_size[:, None] // 2
    valid = torch.where(sigma >= 0, sigma.clamp(min=SHARP_SIGMA), torch.nan)
    values = torch.exp(-0.5 * (offsets / valid[:, None]) ** 2)
    values = values.clamp(min=torch.finfo(torch.float32).tiny)  # an infinite pixel stays so: 0 * inf would be NaN
    values = torch.where(inside, values, 0)
    return Taps(values / values.sum(dim=1, keepdim=True), inside)


def gaussian(x: Tensor, taps: Taps) -> Tensor:
    """Blur (B, C, H, W) with separable Gaussians, border REFLECT_101."""
    return correlate(correlate(x, taps, -2), taps, -1)


def correlate(x: Tensor, taps: Taps, dim: int) -> Tensor:
    """Return the weighted sum of the neighbours along one dimension of (B, C, H, W), border REFLECT_101."""
    n, count = x.shape[dim], taps.values.shape[1]
    padded = x.index_select(dim, reflected_indices(n, count // 2, x.device))
    weights, inside = (each[:, :, None, None, None] for each in taps)
    result = torch.zeros_like(x)
    for t in range(count):
        result = result + torch.where(inside[:, t], weights[:, t] * padded.narrow(dim, t, n), 0)
    return result


def reflected_indices(n: int, radius: int, device: torch.device) -> Tensor:
    """Return the pixel, of n, at each position from -radius to n - 1 + radius under REFLECT_101."""
    if n == 1:
        return torch.zeros(2 * radius + 1, dtype=torch.int64, device=device)
    folded = torch.arange(-radius, n + radius, device=device).remainder(2 * n - 2)
    return torch.minimum(folded, 2 * n - 2 - folded)


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
    """Fill `grads` for the gradient (B, C, H, W) of the result."""
    sigma, kernel_size, gain, fixation, _, std, falloff, decay = params[:8]
    grad_images, grad_sigma, grad_gain = grads
    _, _, height, width = images.shape
    x, grad = images.to(sigma.dtype), grad.to(sigma.dtype)
    if std is not None:
        grad = grad / (std[:, None, None] * (255.0 if images.dtype == torch.uint8 else 1.0))
    f = acuity(falloff, decay, fixation, height, width)[:, None]
    taps, sharp = gaussian_taps(sigma, kernel_size), is_sharp(sigma, kernel_size)
    through_blur = (1 - gain[:, None, None, None] * f) * grad
    if grad_images is not None:
        grad_images.copy_(torch.where(sharp, grad, grad - through_blur + gaussian_adjoint(through_blur, taps)))
    if grad_sigma is not None:
        products = through_blur * gaussian_derivative(x, sigma, taps)
        grad_sigma.copy_(torch.where(sharp, 0, products).sum((1, 2, 3)))
    if grad_gain is not None:
        grad_gain.copy_(torch.where(sharp, 0, grad * f * (x - gaussian(x, taps))).sum((1, 2, 3)))


def gaussian_adjoint(x: Tensor, taps: Taps) -> Tensor:
    """Apply the transpose of :func:`gaussian`.

    Under REFLECT_101 an inner pixel appears twice as often as a border pixel, so that the blur is symmetric once border
    pixels count half: A^T = E A E^-1 with E = diag(1/2, 1, ..., 1, 1/2).
    """
    share = border_share(x.shape[-2], x)[:, None] * border_share(x.shape[-1], x)
    return share * gaussian(x / share, taps)


def border_share(n: int, like: Tensor) -> Tensor:
    """Return the diagonal of E, (n,), in the dtype and on the device of `like`."""
    share = torch.ones(n, dtype=like.dtype, device=like.device)
    share[0] = share[-1] = 0.5
    return share


def gaussian_derivative(x: Tensor, sigma: Tensor, taps: Taps) -> Tensor:
    """Return the derivative of :func:`gaussian` in sigma, whose taps are t_i (i^2 - sum_j t_j j^2) / sigma^3."""
    radius = taps.values.shape[1] // 2
    squares = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device) ** 2
    slopes = taps.values * (squares - (taps.values * squares).sum(1, keepdim=True)) / sigma[:, None] ** 3
    derivative = Taps(torch.where(sigma[:, None] < SHARP_SIGMA, 0, slopes), taps.inside)
    return correlate(correlate(x, taps, -2), derivative, -1) + correlate(correlate(x, derivative, -2), taps, -1)
