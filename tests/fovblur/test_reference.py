"""The reference against SciPy, OpenCV and closed forms."""

import math

import cv2
import numpy as np
import pytest
import scipy.ndimage
import scipy.optimize
import torch

import fovblur
from fovblur.foveated_blur import reference


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.3, 8.0, 21.0])
@pytest.mark.parametrize("shape", [(33, 40), (5, 7), (1, 9), (2, 2)])
def test_gaussian_is_scipys(sigma, shape, seed):
    images = torch.rand(2, 3, *shape, dtype=torch.float64)
    ours = fovblur.gaussian_blur(images, sigma, backend="reference")
    expected = scipy.ndimage.gaussian_filter(images.numpy(), sigma, mode="mirror", axes=(2, 3))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("kernel_size", [45, 51, 57, 3])
def test_kernel_size_is_opencvs(kernel_size, seed):
    image = np.random.rand(60, 64)
    sigma = fovblur.sigma_from_kernel_size(kernel_size)
    expected = cv2.GaussianBlur(image, (kernel_size, kernel_size), sigma, borderType=cv2.BORDER_REFLECT_101)
    ours = fovblur.gaussian_blur(torch.from_numpy(image)[None, None], kernel_size=kernel_size, backend="reference")
    np.testing.assert_allclose(ours[0, 0].numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("kernel_size", [54603, 65535])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_largest_kernels_average_the_reflected_image(backend, kernel_size, seed):
    """A Gaussian much wider than the image weighs every pixel of the reflection's period alike."""
    image = torch.rand(1, 1, 1, 6)
    weights = torch.tensor([1.0, 2.0, 2.0, 2.0, 2.0, 1.0]) / 10
    ours = fovblur.gaussian_blur(image, kernel_size=kernel_size, backend=backend)
    torch.testing.assert_close(ours, (image * weights).sum().expand_as(ours), rtol=2e-4, atol=0)


def test_sigma_and_kernel_size_follow_from_each_other():
    assert [fovblur.sigma_from_kernel_size(k) for k in (45, 51, 57)] == pytest.approx([7.1, 8.0, 8.9])
    for k in (3, 9, 45, 51, 57, 101):
        expected = cv2.getGaussianKernel(k, 0, cv2.CV_64F)[:, 0]
        offsets = np.arange(k) - k // 2
        ours = np.exp(-0.5 * (offsets / fovblur.sigma_from_kernel_size(k)) ** 2)
        if k > 9:  # OpenCV has its own tables for smaller ones
            np.testing.assert_allclose(ours / ours.sum(), expected, rtol=1e-9)
    for sigma in (0.0, 0.3, 0.625, 1.0, 2.49, 8.0):
        assert fovblur.kernel_size_from_sigma(sigma) == 2 * int(4 * sigma + 0.5) + 1
        assert fovblur.kernel_size_from_sigma(torch.tensor([sigma])).item() == 2 * int(4 * sigma + 0.5) + 1


def test_acuity_has_the_published_form():
    height, width = 224, 224
    ours = reference.acuity("exp", 3.0, torch.tensor([[112.0, 112.0]], dtype=torch.float64), height, width)[0]
    i, j = np.mgrid[:height, :width]
    distance = np.hypot(i - height // 2, j - width // 2)
    farthest = math.sqrt((height - height // 2 - 1) ** 2 + (width - width // 2 - 1) ** 2)
    np.testing.assert_allclose(ours.numpy(), np.exp(-3 * np.minimum(1, distance / farthest)), rtol=1e-12)


def test_acuity_of_another_fixation_reaches_zero_eccentricity_at_it_and_one_at_the_farthest_pixel():
    fixation = torch.tensor([[3.0, 30.0]], dtype=torch.float64)
    u = 1 - reference.acuity("linear", 3.0, fixation, 20, 33)[0]
    assert u[3, 30] == 0 and u[19, 0] == 1 and (u < 1).sum() == u.numel() - 1


@pytest.mark.parametrize("u", [0.0, 1e-6, 0.01, 0.3, 0.77, 1.0])
def test_falloffs_have_the_published_forms(u):
    b, r = 1 / (math.e - 1), 0.5729
    s = scipy.optimize.brentq(lambda s: r * (s - math.sin(s)) - u, 0, math.pi, xtol=1e-15)
    expected = {
        "exp": math.exp(-3 * u),
        "linear": 1 - u,
        "quadratic": 1 - u * u,
        "log": math.log(b) + 1 - math.log(u + b),
        "brachistochrone": 1 - r * (1 - math.cos(s)),
    }
    for falloff, value in expected.items():
        ours = reference.falloff_curve(falloff, 3.0, torch.tensor(u, dtype=torch.float64))
        assert ours.item() == pytest.approx(value, abs=1e-9)


def test_blend_is_the_published_one(seed):
    images = torch.rand(1, 1, 31, 30, dtype=torch.float64)
    blurred = scipy.ndimage.gaussian_filter(images[0, 0].numpy(), 8.0, mode="mirror", radius=25)
    weight = 0.7 * reference.acuity("exp", 3.0, torch.tensor([[15.0, 15.0]]).double(), 31, 30)[0].numpy()
    ours = fovblur.foveated_blur(images, kernel_size=51, gain=0.7, backend="reference")[0, 0].numpy()
    np.testing.assert_allclose(ours, weight * images[0, 0].numpy() + (1 - weight) * blurred, rtol=1e-12)


def test_gain_has_a_gradient_at_zero(seed):
    images = torch.rand(1, 1, 9, 8, dtype=torch.float64)
    gain = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    at_zero = fovblur.foveated_blur(images, 2.0, gain=gain, backend="reference").sum()
    at_one = fovblur.foveated_blur(images, 2.0, gain=1.0, backend="reference").sum()  # the blend is linear in the gain
    (slope,) = torch.autograd.grad(at_zero, gain)
    assert slope.item() == pytest.approx((at_one - at_zero).item())
