"""The gradient of images under the border replicate, the only one whose blur is not symmetric up to a scaling.

It serves the backends that have no kernel for it, which are all but the CPU's.

Along one dimension, the first pixel also has all the weight that falls before it, and the last what falls behind it.
So A differs from the blur C under the border constant, which is symmetric, in its first and last column alone:
``A^T g`` is ``C g`` except at the first and the last pixel, where it is ``<A e_0, g>`` and ``<A e_(n-1), g>``. In two
dimensions this is done for rows and for columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fovblur.foveated_blur import reference
from fovblur.foveated_blur.params import BlurParams


def image_gradient_under_replicate(
    forward: Callable[[Tensor, Tensor, BlurParams], None], grad: Tensor, grad_images: Tensor, params: BlurParams
) -> None:
    """Fill the gradient of images (B, C, H, W) by calls of a backend's forward, for the gradient of the result."""
    sigma, kernel_size, gain, std = params.sigma, params.kernel_size, params.gain, params.std
    height, width = grad.shape[-2:]
    grad = grad.to(sigma.dtype)
    if std is not None:
        grad = grad / std[:, None, None]
    through_blur = (1 - gain[:, None, None, None] * reference.sharpness(params, height, width)[:, None]) * grad
    sigmas, sizes = reference.axes(sigma), reference.axes(kernel_size)

    def blur(images: Tensor, border: str, axes: tuple[int, ...]) -> Tensor:
        own_sigma = torch.stack([own if axis in axes else torch.zeros_like(own) for axis, own in enumerate(sigmas)], 1)
        own_size = torch.stack([own if axis in axes else torch.ones_like(own) for axis, own in enumerate(sizes)], 1)
        plain = params._replace(gain=torch.zeros_like(gain), mean=None, std=None, weight=None, border=border)
        blurred = torch.empty_like(images)
        forward(images, blurred, plain._replace(sigma=own_sigma, kernel_size=own_size))
        return blurred

    gathered = blur(through_blur, "constant", (0, 1))
    first_and_last = torch.arange(2, device=grad.device)
    edge_rows, edge_columns = first_and_last * (height - 1), first_and_last * (width - 1)
    columns_of_a = blur(_edge_pixels(height, edge_rows, grad).mT.contiguous(), "replicate", (0,))[:, 0].mT
    rows_of_a = blur(_edge_pixels(width, edge_columns, grad), "replicate", (1,))[:, 0]
    of_rows = _weighted_sums(columns_of_a, through_blur)  # (B, C, 2, W)
    of_columns = _weighted_sums(rows_of_a, through_blur.mT)  # (B, C, 2, H)
    gathered[..., edge_columns] = blur(of_columns.mT.contiguous(), "constant", (0,))
    gathered[..., edge_rows, :] = blur(of_rows, "constant", (1,))
    gathered[..., edge_rows[:, None], edge_columns] = _weighted_sums(rows_of_a, of_rows.mT).mT
    grad_images.copy_(torch.where(reference.is_sharp(params), grad, grad - through_blur + gathered))


def _edge_pixels(n: int, edges: Tensor, like: Tensor) -> Tensor:
    """Return rows of n pixels with a 1 at the first and at the last, (B, 1, 2, n)."""
    rows = torch.arange(n, device=like.device) == edges[:, None]
    return rows.to(like.dtype).expand(len(like), 1, 2, n).contiguous()


def _weighted_sums(weights: Tensor, values: Tensor) -> Tensor:
    """Return the sums (B, C, 2, m) over values (B, C, n, m) by weights (B, 2, n); weights of 0 touch nothing."""
    sums = [
        torch.where(each == 0, 0, each * values).sum(2, keepdim=True)
        for each in (weights[:, None, edge, :, None] for edge in (0, 1))
    ]
    return torch.cat(sums, 2)
