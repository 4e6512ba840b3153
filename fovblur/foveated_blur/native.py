"""The compiled kernels, called with addresses and strides: fovblur._cpu and fovblur._cuda."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fovblur import backends
from fovblur.foveated_blur import checks


def cpu_forward(images: Tensor, out: Tensor, *parameters) -> None:
    module = backends.load_native("cpu")
    module.foveated_blur(blur_params(module, images, out, *parameters), torch.get_num_threads())


def cuda_forward(images: Tensor, out: Tensor, *parameters) -> None:
    module = backends.load_native("cuda")
    with torch.cuda.device(images.device):
        stream = torch.cuda.current_stream(images.device).cuda_stream
        module.foveated_blur(blur_params(module, images, out, *parameters), stream)


def blur_params(
    module: ModuleType,
    images: Tensor,
    out: Tensor,
    sigma: Tensor,
    kernel_size: Tensor,
    gain: Tensor,
    fixation: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    falloff: str,
    decay: float,
):
    """The struct both modules take. It borrows the tensors' memory: they must outlive the call."""
    return module.BlurParams(
        shape=tuple(images.shape),
        images=(images.data_ptr(), checks.DTYPES.index(images.dtype), images.stride()),
        out=(out.data_ptr(), checks.DTYPES.index(out.dtype), out.stride()),
        sigma=(sigma.data_ptr(), sigma.stride(0)),
        kernel_size=(kernel_size.data_ptr(), kernel_size.stride(0)),
        gain=(gain.data_ptr(), gain.stride(0)),
        fixation=(fixation.data_ptr(), fixation.stride(0)),
        falloff=checks.FALLOFFS.index(falloff),
        decay=decay,
        mean=0 if mean is None else mean.data_ptr(),
        std=0 if std is None else std.data_ptr(),
        scale=1 / 255 if images.dtype == torch.uint8 else 1.0,
    )
