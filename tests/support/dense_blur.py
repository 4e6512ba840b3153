"""The blur with every option as products of dense float64 matrices, whose borders are those of numpy.pad."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fovblur.foveated_blur import reference
from fovblur.foveated_blur.params import BlurParams
from fovblur.retinal_blur.params import LevelParams

MODES = {
    "reflect": "reflect", "symmetric": "symmetric", "replicate": "edge", "constant": "constant", "circular": "wrap",
}  # fmt: skip
TABLES = {
    3: (1 / 4, 1 / 2, 1 / 4),
    5: (1 / 16, 1 / 4, 3 / 8, 1 / 4, 1 / 16),
    7: (1 / 32, 7 / 64, 7 / 32, 9 / 32, 7 / 32, 7 / 64, 1 / 32),
    9: tuple(x / 256 for x in (4, 13, 30, 51, 60, 51, 30, 13, 4)),
}


def taps(sigma: Tensor, kernel_size: int, tables: bool) -> Tensor:
    """Return the normalised kernel, (kernel_size,), differentiable in sigma."""
    if tables and kernel_size in TABLES:
        return torch.tensor(TABLES[kernel_size], dtype=torch.float64)
    offsets = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
    if kernel_size == 1 or sigma == 0:
        return (offsets == 0).double()
    window = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return window / window.sum()


def matrix(weights: Tensor, n: int, border: str) -> Tensor:
    """Return the (n, n) matrix that filters n pixels."""
    radius = len(weights) // 2
    pixels = np.arange(1, n + 1)  # 0 stands for the zeros of a constant border
    padded = np.pad(pixels, radius, mode=MODES[border])
    windows = torch.from_numpy(np.lib.stride_tricks.sliding_window_view(padded, len(weights)).copy())
    return (torch.nn.functional.one_hot(windows, n + 1)[..., 1:].double() * weights[:, None]).sum(1)


def blur(images: Tensor, params: BlurParams) -> Tensor:
    """Return w x + (1 - w) A_y x A_x^T, not normalised, differentiable in images, sigma and gain."""
    weight, sigma = params.weight, params.sigma.double()
    if weight is None:
        weight = reference.acuity(params.falloff, params.decay, params.fixation.double(), *images.shape[-2:])
    results = []
    for i, image in enumerate(images.double()):
        sides = [
            matrix(taps(s, int(k), params.tables), n, params.border)
            for s, k, n in zip(sigma[i].expand(2), params.kernel_size[i].expand(2), image.shape[-2:])
        ]
        w = params.gain[i].double() * weight[i].double()
        results.append(w * image + (1 - w) * (sides[0] @ image @ sides[1].T))
    return torch.stack(results)


def blend_of_levels(images: Tensor, params: LevelParams) -> Tensor:
    """Return the sum of the blurs of all levels, each weighted by max(0, 1 - |level - k|)."""
    total = torch.zeros_like(images, dtype=torch.float64)
    for k, (sigma, size) in enumerate(zip(params.sigmas, params.kernel_sizes)):
        weights = taps(torch.tensor(sigma, dtype=torch.float64), size, False)
        along_y, along_x = (matrix(weights, n, params.border) for n in images.shape[-2:])
        weight = (1 - (params.level.double() - k).abs()).clamp(min=0)[:, None]
        total += weight * (along_y @ images.double() @ along_x.T)
    return total


def gradients(grad: Tensor, images: Tensor, params: BlurParams) -> tuple[Tensor, ...]:
    """Return the gradients of images, sigma and gain for that of the result."""
    leaves = [x.double().requires_grad_() for x in (images, params.sigma, params.gain)]
    y = blur(leaves[0], params._replace(sigma=leaves[1], gain=leaves[2]))
    return torch.autograd.grad(y, leaves, grad.double(), allow_unused=True, materialize_grads=True)


def random_params(count: int, sizes: Sequence[int], per_axis: bool = True, weight=None, **options) -> BlurParams:
    """Return parameters of a batch whose kernel sizes are among `sizes`."""
    shape = (count, 2) if per_axis else (count,)
    kernel_size = torch.tensor(sizes)[torch.randint(len(sizes), shape)].int()
    sigma = (0.4 + torch.rand(shape)) * kernel_size / 5
    gain, fixation = torch.rand(count), 20 * torch.rand(count, 2)
    return BlurParams(sigma, kernel_size, gain, fixation, None, None, weight, "exp", 3.0, **options)
