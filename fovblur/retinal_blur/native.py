"""The compiled kernels of fovblur._cpu and fovblur._cuda, called with addresses and strides."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fovblur import backends
from fovblur.foveated_blur.native import describe
from fovblur.foveated_blur.validation import BORDERS
from fovblur.retinal_blur.params import LevelParams


def cpu_forward(images: Tensor, out: Tensor, params: LevelParams) -> None:
    """Blend images into `out`, both (B, C, H, W) of any strides."""
    module = backends.load_native("cpu")
    module.blend_levels(level_params(module, images, params), describe(module, out), torch.get_num_threads())


def level_params(module: ModuleType, images: Tensor, params: LevelParams):
    """Return the struct that both modules take. It borrows the tensors' memory: they must outlive the call."""
    return module.LevelParams(
        shape=tuple(images.shape),
        images=describe(module, images),
        level=(params.level.data_ptr(), params.level.stride()),
        border=BORDERS.index(params.border),
        sigma=params.sigmas,
        kernel_size=params.kernel_sizes,
    )
