"""Wrong arguments of the blur: every error names the argument, its value and what is allowed."""

import numpy as np
import pytest
import torch

import fovblur

IMAGES = torch.rand(2, 3, 8, 8)

CASES = {
    TypeError: [
        (dict(images=np.zeros((1, 1, 4, 4))), "images is a ndarray; pass a torch.Tensor"),
        (dict(images=torch.zeros(1, 1, 4, 4, dtype=torch.int64)), "images is torch.int64; it must be one of uint8"),
        (dict(images=torch.zeros(1, 1, 4, 4).to_sparse()), "images must be a dense tensor"),
        (dict(images=torch.zeros(1, 1, 4, 4).to_sparse_csr()), "images must be a dense tensor"),
        (
            dict(images=torch.nested.nested_tensor([torch.zeros(1, 4, 4)])),
            r"pass a list, list\(images.unbind",
        ),
        (dict(sigma=torch.ones(2).to_sparse()), "sigma must be a dense tensor; pass sigma.to_dense"),
        (dict(mean=torch.ones(3).to_sparse()), "mean must be a dense tensor"),
        (dict(weight=torch.ones(8, 8).to_sparse()), "weight must be a dense tensor"),
        (dict(sigma="8"), "sigma is '8' \\(str\\); it must be a number or a tensor"),
        (dict(sigma=True), "sigma is True"),
        (dict(sigma=[1.0, "8"]), r"sigma is \[1.0, '8'\]; it must be a number, a tuple \(y, x\), or numbers"),
        (dict(sigma=[True, False]), "sigma is a tensor of torch.bool"),
        (dict(kernel_size=np.array([3.0, 5.0])), "kernel_size is a tensor of torch.float64; it must hold int"),
        (dict(sigma=torch.tensor([True, False])), "sigma is a tensor of torch.bool"),
        (dict(sigma=[1.0, 1j]), "sigma is a tensor of torch.complex128; it must hold real numbers"),
        (dict(kernel_size=51.0), "kernel_size is 51.0 \\(float\\); it must be an int"),
        (dict(kernel_size=torch.tensor([51.0, 45.0])), "kernel_size is a tensor of torch.float32; it must hold int"),
        (dict(decay="fast"), "decay is a str"),
        (dict(fixation=3), r"fixation is 3; it must be two numbers \(y, x\)"),
        (dict(fixation=(1.0, 2.0, 3.0)), "fixation is"),
        (dict(out_dtype=torch.int32), "out_dtype is torch.int32"),
    ],
    ValueError: [
        (dict(images=torch.rand(8, 8)), r"images has shape \(8, 8\); it must be \(..., C, H, W\); add the dimension"),
        (
            dict(images=torch.rand(8, 9, 3)),
            r"images has shape \(8, 9, 3\).*; if it is \(H, W, C\), pass images.permute",
        ),
        (dict(kernel_size=torch.tensor([2**32 + 3, 3])), r"kernel_size\[0\] is 2.14748e\+09; it must be odd"),
        (dict(kernel_size=torch.tensor([3, 3 - 2**32])), r"kernel_size\[1\] is -2.14748e\+09"),
        (dict(sigma=None), "sigma and kernel_size are both missing"),
        (dict(sigma=-1.0), "sigma is -1.0; it must be a finite number of pixels"),
        (dict(sigma=float("nan")), "sigma is nan"),
        (dict(sigma=float("inf")), "sigma is inf"),
        (dict(sigma=1e9), "from 0 to 9830.7"),
        (dict(sigma=torch.rand(3)), r"sigma has shape \(3,\); it must be a number or \(2,\), one for each image"),
        (dict(sigma=torch.tensor([1.0, -2.0])), r"sigma\[1\] is -2; it must be"),
        (dict(sigma=torch.tensor([1.0, float("nan")])), r"sigma\[1\] is nan"),
        (dict(sigma=torch.rand(2, device="meta")), r"sigma is on meta and images on cpu; move it with sigma.to"),
        (dict(sigma=[1.0, -2.0]), r"sigma\[1\] is -2; it must be"),
        (dict(sigma=[1.0, 2.0, 3.0]), r"sigma has shape \(3,\); it must be a number or \(2,\)"),
        (
            dict(images=torch.rand(2, 4, 3, 8, 8), sigma=torch.ones(2)),
            r"sigma has shape \(2,\); it must be a number or \(2, 4\), one for each image",
        ),
        (dict(fixation=[[1.0, 2.0, 3.0]]), r"fixation has shape \(1, 3\); it must be \(2,\) or \(2, 2\)"),
        (dict(kernel_size=50), "kernel_size is 50; it must be odd"),
        (dict(kernel_size=-3), "kernel_size is -3"),
        (dict(kernel_size=torch.tensor([51, 44])), r"kernel_size\[1\] is 44; it must be odd"),
        (dict(kernel_size=70001), "from 1 to 65535"),
        (dict(gain=1.5), r"gain is 1.5; it must be within \[0, 1\]"),
        (dict(gain=torch.tensor([0.5, -0.1])), r"gain\[1\] is -0.1"),
        (dict(decay=-1.0), "decay is -1.0; it must be finite and at least 0"),
        (dict(decay=1e39), r"decay is 1e\+39; it must be finite and at least 0, and at most 2e\+38"),
        (dict(mean=np.ones((3, 1, 1))), r"mean has shape \(3, 1, 1\); it must be a number or \(3,\), one for each"),
        (dict(falloff="gauss"), "falloff is 'gauss'; it must be one of exp, linear"),
        (dict(fixation=torch.rand(3, 2)), r"fixation has shape \(3, 2\); it must be \(2,\) or \(2, 2\)"),
        (dict(fixation=(float("nan"), 1.0)), "fixation is nan"),
        (dict(mean=(0.5, 0.5), std=1.0), "mean has 2 values; images has 3 channels"),
        (dict(std=0.0), "std is 0.0; it must be finite and at least 1.2e-38"),
        (dict(std=1e-40), "std is 1e-40; it must be finite and at least 1.2e-38 in size"),
        (dict(std=torch.tensor([1.0, 1.0, -1e-40])), r"std\[2\] is -9.99995e-41"),
        (dict(sigma=9000.0), r"kernel_size is 72001; it must be odd, .* without one, sigma can be at most 8191"),
        (dict(std=torch.tensor([1.0, 0.0, 1.0])), r"std\[1\] is 0"),
        (dict(mean=torch.rand(2)), r"mean has shape \(2,\); it must be a number or \(3,\), one for each channel"),
        (dict(out_dtype=torch.uint8), "out_dtype uint8 is for uint8 images without mean and std"),
        (dict(out_dtype=torch.float64), "out_dtype float64 is for float64 images"),
        (dict(backend="opencl"), "backend is 'opencl'; choose one of auto, reference, cpu, triton, cuda"),
    ],
}


@pytest.mark.parametrize(("error", "case"), [(error, case) for error, cases in CASES.items() for case in cases])
def test_bad_arguments(error, case):
    arguments, message = case
    sigma = None if "kernel_size" in arguments else 1.0
    with pytest.raises(error, match=message):
        fovblur.foveated_blur(**{"images": IMAGES, "sigma": sigma, **arguments})


def test_images_that_look_like_rows_of_colours_are_warned_of():
    with pytest.warns(
        UserWarning, match=r"taken as \(..., C, H, W\), 3 pixels wide; if they are \(..., H, W, C\), pass"
    ):
        fovblur.gaussian_blur(torch.rand(2, 8, 9, 3), 1.0)


@pytest.mark.parametrize("shape", [(2, 3, 9, 3), (2, 1, 9, 4), (2, 8, 9, 5)], ids=str)
def test_other_shapes_are_not_warned_of(shape, recwarn):
    fovblur.gaussian_blur(torch.rand(shape), 1.0)
    assert not recwarn.list


@pytest.mark.parametrize("fixation", [(0.5, 0.25), torch.tensor([[0.5, 0.5], [0.25, 0.75]])], ids=["pair", "tensor"])
def test_fractions_as_fixation_are_warned_of(fixation):
    with pytest.warns(UserWarning, match=r"fixation \(0.5, 0.*in pixels.*; multiply fractions of the image by"):
        fovblur.foveated_blur(IMAGES, 1.0, fixation=fixation)


@pytest.mark.parametrize("fixation", [(0.0, 0.5), (0.5, 3.0), (1.0, 1.0)], ids=str)
def test_pixels_as_fixation_are_not_warned_of(fixation, recwarn):
    fovblur.foveated_blur(IMAGES, 1.0, fixation=fixation)
    assert not recwarn.list
