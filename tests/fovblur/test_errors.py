"""Holding it wrong: each way gets an error that names the argument, what it got and what is allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fovblur

IMAGES = torch.rand(2, 3, 8, 8)

CASES = [
    (dict(images=np.zeros((1, 1, 4, 4))), TypeError, "images is a ndarray; pass a torch.Tensor"),
    (
        dict(images=torch.rand(3, 8, 8)),
        ValueError,
        r"images has shape \(3, 8, 8\); it must be \(B, C, H, W\); add the batch",
    ),
    (
        dict(images=torch.zeros(1, 1, 4, 4, dtype=torch.int64)),
        TypeError,
        "images is torch.int64; it must be one of uint8",
    ),
    (dict(images=torch.zeros(1, 1, 4, 4).to_sparse()), TypeError, "dense tensor"),
    (dict(sigma=None), ValueError, "sigma and kernel_size are both missing"),
    (dict(sigma="8"), TypeError, "sigma is '8' \\(str\\); it must be a number or a tensor"),
    (dict(sigma=True), TypeError, "sigma is True"),
    (dict(sigma=-1.0), ValueError, "sigma is -1.0; it must be a finite number of pixels"),
    (dict(sigma=float("nan")), ValueError, "sigma is nan"),
    (dict(sigma=float("inf")), ValueError, "sigma is inf"),
    (dict(sigma=1e9), ValueError, "from 0 to 8190.75"),
    (
        dict(sigma=torch.rand(3)),
        ValueError,
        r"sigma has shape \(3,\); it must be a number or \(2,\), one for each image",
    ),
    (dict(sigma=torch.tensor([1.0, -2.0])), ValueError, r"sigma\[1\] is -2; it must be"),
    (dict(sigma=torch.tensor([1.0, float("nan")])), ValueError, r"sigma\[1\] is nan"),
    (dict(sigma=torch.tensor([True, False])), TypeError, "sigma is a tensor of torch.bool"),
    (
        dict(sigma=torch.rand(2, device="meta")),
        ValueError,
        r"sigma is on meta and images on cpu; move it with sigma.to",
    ),
    (dict(kernel_size=50), ValueError, "kernel_size is 50; it must be odd"),
    (dict(kernel_size=-3), ValueError, "kernel_size is -3"),
    (dict(kernel_size=51.0), TypeError, "kernel_size is 51.0 \\(float\\); it must be an int"),
    (
        dict(kernel_size=torch.tensor([51.0, 45.0])),
        TypeError,
        "kernel_size is a tensor of torch.float32; it must hold integers",
    ),
    (dict(kernel_size=torch.tensor([51, 44])), ValueError, r"kernel_size\[1\] is 44; it must be odd"),
    (dict(kernel_size=70001), ValueError, "from 1 to 65535"),
    (dict(gain=1.5), ValueError, r"gain is 1.5; it must be within \[0, 1\]"),
    (dict(gain=torch.tensor([0.5, -0.1])), ValueError, r"gain\[1\] is -0.1"),
    (dict(decay=-1.0), ValueError, "decay is -1.0; it must be finite and at least 0"),
    (dict(decay="fast"), TypeError, "decay is a str"),
    (dict(falloff="gauss"), ValueError, "falloff is 'gauss'; it must be one of exp, linear"),
    (dict(fixation=3), TypeError, r"fixation is 3; it must be two numbers \(y, x\)"),
    (dict(fixation=(1.0, 2.0, 3.0)), TypeError, "fixation is"),
    (dict(fixation=torch.rand(3, 2)), ValueError, r"fixation has shape \(3, 2\); it must be \(2,\) or \(2, 2\)"),
    (dict(fixation=(float("nan"), 1.0)), ValueError, "fixation is nan"),
    (dict(mean=(0.5, 0.5), std=1.0), ValueError, "mean has 2 values; images has 3 channels"),
    (dict(std=0.0), ValueError, "std is 0.0; it must be finite and not 0"),
    (dict(std=torch.tensor([1.0, 0.0, 1.0])), ValueError, r"std\[1\] is 0"),
    (
        dict(mean=torch.rand(2)),
        ValueError,
        r"mean has shape \(2,\); it must be a number or \(3,\), one for each channel",
    ),
    (dict(out_dtype=torch.int32), TypeError, "out_dtype is torch.int32"),
    (dict(out_dtype=torch.uint8), ValueError, "out_dtype uint8 is for uint8 images without mean and std"),
    (dict(out_dtype=torch.float64), ValueError, "out_dtype float64 is for float64 images"),
    (dict(backend="opencl"), ValueError, "backend is 'opencl'; choose one of auto, reference, cpu, triton, cuda"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), CASES, ids=[repr(c[0])[:60] for c in CASES])
def test_bad_arguments(arguments, error, message):
    call = {"images": IMAGES, "sigma": 1.0, **arguments}
    if "kernel_size" in arguments:
        call["sigma"] = None
    with pytest.raises(error, match=message):
        fovblur.foveated_blur(**call)
