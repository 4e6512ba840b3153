"""The blur in plain PyTorch, written as its formula: slow, differentiable, the oracle of every test."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fovblur.foveated_blur.params import BlurGradients, BlurParams


def foveated_blur(images: Tensor, params: BlurParams, out_dtype: torch.dtype) -> Tensor:
    """Return y = W x + (1 - W) G(x, sigma), normalised and converted; sigma's dtype is the one it is computed in."""
    sigma, kernel_size, gain, fixation, mean, std, falloff, decay = params
    _, _, height, width = images.shape
    x = images.to(sigma.dtype)
    weight = gain[:, None, None] * acuity(falloff, decay, fixation, height, width)
    samples = []
    for i, size in enumerate(kernel_size.tolist()):
        radius = 0 if sigma[i] == 0 else size // 2
        if radius == 0:
            samples.append(x[i])
            continue
        blurred = gaussian(x[i], sigma[i], radius)
        blended = weight[i] * x[i] + (1 - weight[i]) * blurred
        samples.append(torch.where((weight[i] == 0) & ~x[i].isfinite(), blurred, blended))  # 0 * inf is not NaN here
    y = torch.stack(samples)
    if mean is not None and std is not None:
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        y = (y / scale - mean[:, None, None]) / std[:, None, None]
    if out_dtype == torch.uint8:
        y = y.nan_to_num(0.0).round().clamp(0, 255)
    return y.to(out_dtype)


def gaussian(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur (C, H, W) with a separable Gaussian whose weights sum to 1, border REFLECT_101."""
    taps = gaussian_taps(sigma, radius)
    return correlate(correlate(x, taps, -2), taps, -1)


def gaussian_taps(sigma: Tensor, radius: int) -> Tensor:
    """Return the 2 radius + 1 weights of a Gaussian, which sum to 1."""
    offsets = torch.arange(-radius, radius + 1, dtype=sigma.dtype, device=sigma.device)
    taps = torch.exp(-0.5 * (offsets / sigma) ** 2)
    taps = taps.clamp(min=torch.finfo(torch.float32).tiny)  # an infinite pixel stays so: 0 * inf would be NaN
    return taps / taps.sum()


def correlate(x: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Return the weighted sum of the neighbours along one dimension of (C, H, W), border REFLECT_101."""
    n, radius = x.shape[dim], len(taps) // 2
    padded = x.index_select(dim, reflected_indices(n, radius, x.device))
    return sum(tap * padded.narrow(dim, t, n) for t, tap in enumerate(taps))


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
    distance = torch.hypot(y - cy, x - cx)
    is_default = (cy == height // 2) & (cx == width // 2)
    farthest_y = torch.where(is_default, height - 1 - cy, torch.maximum(cy.abs(), (height - 1 - cy).abs()))
    farthest_x = torch.where(is_default, width - 1 - cx, torch.maximum(cx.abs(), (width - 1 - cx).abs()))
    reach = torch.hypot(farthest_y, farthest_x)
    u = torch.where(distance < reach, distance / reach, (distance > 0).to(distance.dtype))
    return falloff_curve(falloff, decay, u)


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
        return math.log(b) + 1 - torch.log(u + b)
    return brachistochrone(u)


def brachistochrone(u: Tensor) -> Tensor:
    """Return the cycloid x = r (s - sin s), y = 1 - r (1 - cos s) from (0, 1) to (1, 0), by bisection in float64."""
    r = 0.5729
    x = u.double()
    low, high = torch.zeros_like(x), torch.full_like(x, math.pi)
    for _ in range(60):
        s = (low + high) / 2
        below = r * (s - s.sin()) < x
        low, high = torch.where(below, s, low), torch.where(below, high, s)
    return (1 - r * (1 - low.cos())).to(u.dtype)


def reference_forward(images: Tensor, out: Tensor, params: BlurParams) -> None:
    """Blur images (B, C, H, W) into `out`."""
    out.copy_(foveated_blur(images, params, out.dtype))


def reference_backward(grad: Tensor, images: Tensor, grads: BlurGradients, params: BlurParams) -> None:
    """Fill `grads` for the gradient (B, C, H, W) of the result."""
    sigma, kernel_size, gain, fixation, _, std, falloff, decay = params
    grad_images, grad_sigma, grad_gain = grads
    _, _, height, width = images.shape
    x, grad = images.to(sigma.dtype), grad.to(sigma.dtype)
    if std is not None:
        grad = grad / (std[:, None, None] * (255.0 if images.dtype == torch.uint8 else 1.0))
    f = acuity(falloff, decay, fixation, height, width)
    for i, size in enumerate(kernel_size.tolist()):
        radius = 0 if sigma[i] == 0 else size // 2
        through_blur = (1 - gain[i] * f[i]) * grad[i]
        if grad_images is not None:
            spread = through_blur if radius == 0 else gaussian_adjoint(through_blur, sigma[i], radius)
            grad_images[i] = grad[i] - through_blur + spread
        if grad_sigma is not None:
            grad_sigma[i] = 0 if radius == 0 else (through_blur * gaussian_derivative(x[i], sigma[i], radius)).sum()
        if grad_gain is not None:
            grad_gain[i] = 0 if radius == 0 else (grad[i] * f[i] * (x[i] - gaussian(x[i], sigma[i], radius))).sum()


def gaussian_adjoint(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Apply the transpose of :func:`gaussian`.

    Under REFLECT_101 an inner pixel appears twice as often as a border pixel, so that the blur is symmetric once border
    pixels count half: A^T = E A E^-1 with E = diag(1/2, 1, ..., 1, 1/2).
    """
    share = border_share(x.shape[-2], x)[:, None] * border_share(x.shape[-1], x)
    return share * gaussian(x / share, sigma, radius)


def border_share(n: int, like: Tensor) -> Tensor:
    """Return the diagonal of E, (n,), in the dtype and on the device of `like`."""
    share = torch.ones(n, dtype=like.dtype, device=like.device)
    share[0] = share[-1] = 0.5
    return share


def gaussian_derivative(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Return the derivative of :func:`gaussian` in sigma, whose taps are t_i (i^2 - sum_j t_j j^2) / sigma^3."""
    taps = gaussian_taps(sigma, radius)
    squares = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device) ** 2
    slopes = taps * (squares - (taps * squares).sum()) / sigma**3
    return correlate(correlate(x, taps, -2), slopes, -1) + correlate(correlate(x, slopes, -2), taps, -1)
