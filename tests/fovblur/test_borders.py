"""Borders and axes of the blur in every backend: SciPy's filters, and gradients of the float64 reference."""

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch
from backends_under_test import exact
from comparisons import assert_close, option_gradients, relative_error

import fovblur
from fovblur.foveated_blur.validation import BORDERS

SCIPY_MODES = dict(zip(BORDERS, ("mirror", "reflect", "nearest", "constant", "wrap")))
SHAPES = [(1, 1), (5, 1), (3, 7), (33, 40)]
SIGMAS = torch.tensor([[1.0, 2.5], [4.0, 0.0]])  # of two images, along y and x
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


def filtered(images: torch.Tensor, border: str) -> torch.Tensor:
    """Blur two images of two channels by SciPy, in float64."""
    blurred = [
        [scipy.ndimage.gaussian_filter(plane, sigma, mode=SCIPY_MODES[border], truncate=4.0) for plane in image]
        for image, sigma in zip(images.double().numpy(), SIGMAS.tolist())
    ]
    return torch.from_numpy(np.array(blurred))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_borders_and_axes_are_scipys(implementation, dtype, shape, border, seed):
    images = torch.rand(2, 2, *shape).to(dtype)
    ours = implementation.gaussian_blur(images, SIGMAS, border=border)
    assert relative_error(ours, filtered(images, border)) < TOLERANCE[dtype]


@pytest.mark.parametrize("border", BORDERS)
def test_uint8_is_rounded(implementation, border, seed):
    images = (torch.rand(2, 2, 20, 35) * 255).to(torch.uint8)
    ours = implementation.gaussian_blur(images, SIGMAS, border=border)
    assert (ours.double() - filtered(images, border)).abs().max() <= (0.9 if implementation.emulated else 0.501)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_of_borders_and_axes(implementation, shape, border, seed):
    images, grad = torch.rand(2, 2, *shape), torch.rand(2, 2, *shape) - 0.3
    sigma, gain = torch.tensor([[1.5, 3.0], [5.0, 0.7]]), torch.tensor([0.3, 0.9])
    options = {"kernel_size": torch.tensor([[13, 25], [41, 7]]), "border": border, "std": [0.5, 0.25]}
    assert_close(*option_gradients(implementation, images, sigma, gain, grad, **options), 2e-5, 4 * grad)


def test_a_tuple_is_y_and_x_and_a_list_is_one_of_each_image(seed):
    images = torch.rand(2, 1, 9, 9)
    pairs = torch.tensor([[1.0, 2.0]]).expand(2, 2)
    assert torch.equal(fovblur.gaussian_blur(images, (1.0, 2.0)), fovblur.gaussian_blur(images, pairs))
    assert torch.equal(fovblur.gaussian_blur(images, (1.0, 2.0)), fovblur.gaussian_blur(images, [[1.0, 2.0]] * 2))
    each = torch.cat([fovblur.gaussian_blur(image[None], sigma) for image, sigma in zip(images, (1.0, 2.0))])
    for per_image in ([1.0, 2.0], np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])):
        assert torch.equal(fovblur.gaussian_blur(images, per_image), each)
    sizes = fovblur.gaussian_blur(images, kernel_size=(5, 9))
    sigmas = tuple(map(fovblur.sigma_from_kernel_size, (5, 9)))
    assert torch.equal(sizes, fovblur.gaussian_blur(images, sigmas, kernel_size=torch.tensor([[5, 9]])))


def test_clips_have_pairs_of_every_frame(seed):
    clips, sigma = torch.rand(2, 3, 1, 8, 9), torch.rand(2, 3, 2) + 0.5
    blurred = fovblur.gaussian_blur(clips, sigma)
    assert torch.equal(blurred[1], fovblur.gaussian_blur(clips[1], sigma[1]))


@pytest.mark.parametrize("border", BORDERS)
def test_a_bad_pixel_stays_within_the_support(implementation, border):
    images = torch.ones(1, 1, 40, 40)
    images[..., 20, 0] = torch.nan
    ours = implementation.gaussian_blur(images, (2.0, 1.0), kernel_size=(5, 3), border=border)
    bad = ours[0, 0].isnan().nonzero()
    columns = {0, 1, 39} if border == "circular" else {0, 1}
    assert {tuple(each) for each in bad.tolist()} == {(y, x) for y in range(18, 23) for x in columns}


@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9, 11])
def test_opencvs_rule_without_sigma(implementation, kernel_size, seed):
    images = (torch.rand(1, 3, 20, 31) * 255).to(torch.uint8)
    theirs = cv2.GaussianBlur(images[0].permute(1, 2, 0).contiguous().numpy(), (kernel_size, kernel_size), 0)
    ours = implementation.gaussian_blur(images, kernel_size=kernel_size, rule="opencv")[0].permute(1, 2, 0)
    assert np.abs(ours.numpy().astype(int) - theirs).max() <= 1
    floats = images[0].permute(1, 2, 0).float()
    theirs = torch.from_numpy(cv2.GaussianBlur(floats.numpy(), (kernel_size, kernel_size), 0))
    ours = implementation.gaussian_blur(images.float(), kernel_size=kernel_size, rule="opencv")[0].permute(1, 2, 0)
    assert relative_error(ours, theirs.double()) < 1e-5


@pytest.mark.parametrize("sigma", [0.3, 0.75, 1.0, 2.2, 5.1])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_opencvs_rule_without_kernel_size(dtype, sigma, seed):
    images = (torch.rand(40, 50) * 255).to(dtype)
    theirs = cv2.GaussianBlur(images.numpy(), (0, 0), sigma)
    for given in (sigma, torch.tensor([sigma])):
        ours = fovblur.gaussian_blur(images[None, None], given, rule="opencv")[0, 0].numpy()
        assert np.abs(ours.astype(float) - theirs).max() <= (1 if dtype == torch.uint8 else 1e-3)


def test_tables_and_gaussians_in_one_batch(implementation, seed):
    images, sizes = torch.rand(3, 1, 16, 17), torch.tensor([[3, 7], [9, 21], [5, 5]])
    ours = implementation.foveated_blur(images, kernel_size=sizes, rule="opencv", gain=0.4, border="symmetric")
    expected = exact(images, kernel_size=sizes, rule="opencv", gain=0.4, border="symmetric")
    assert relative_error(ours, expected) < 1e-5
