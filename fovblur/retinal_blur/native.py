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


def cuda_forward(images: Tensor, out: Tensor, params: LevelParams) -> None:
    """Blend images into `out` on the current stream of their device."""
    with torch.cuda.device(images.device):
        stream = torch.cuda.current_stream(images.device).cuda_stream
        launch_forward(backends.load_native("cuda"), stream, images, out, params)


def launch_forward(module: ModuleType, stream: int, images: Tensor, out: Tensor, params: LevelParams) -> None:
    """Launch the blend on a cudaStream_t of the current device."""
    module.blend_levels(level_params(module, images, params), describe(module, out), stream)


def level_params(module: ModuleType, images: Tensor, params: LevelParams):
    """Return the struct that both modules take. It borrows the tensors' memory: they must outlive the call."""
    return module.LevelParams(
        shape=tuple(images.shape),
        images=describe(module, images),
        level=(params.level.data_ptr(), params.level.stride()),
        border=BORDERS.index(params.border),
        sigma=params.sigmas,
        kernel_size=params.kernel_sizes,
        variance=params.variances,
    )
