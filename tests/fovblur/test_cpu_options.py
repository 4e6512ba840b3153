"""The CPU kernels' borders, axes, tables and weight maps, in every variant, against dense matrices."""

import dense_blur
import numpy as np
import pytest
import scipy.ndimage
import torch
from backends_under_test import CPU_VARIANTS, IMAGE_DTYPES
from comparisons import LAYOUTS, random_images, relative_error

from fovblur import backends
from fovblur.foveated_blur import native
from fovblur.foveated_blur.params import BlurGradients, BlurParams
from fovblur.foveated_blur.validation import BORDERS

SCIPY_MODES = dict(zip(BORDERS, ("mirror", "reflect", "nearest", "constant", "wrap")))
SHAPES = [(1, 1), (1, 9), (7, 1), (2, 3), (13, 11), (70, 37)]  # below the radius, sides of one pixel, several vectors
RELATIVE_ERROR = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(params=CPU_VARIANTS, autouse=True)
def variant(request):
    """Every variant of the CPU kernels."""
    cpu = backends.load_native("cpu")
    before = cpu.variant()
    cpu.use_variant(request.param.partition("-")[2])
    yield request.param
    cpu.use_variant(before)


def make_params(batch, shape, dtype=torch.float32, *, border="reflect", per_axis=False, tables=False, weight=None):
    """Return parameters with a wide window, a narrow one and, along one or both axes, none in every three samples."""
    sigma = torch.tensor([[6.0, 1.1], [0.9, 4.0], [2.5, 0.0]], dtype=dtype)
    kernel_size = torch.tensor([[41, 5], [7, 27], [9, 11]], dtype=torch.int32)
    rows = torch.arange(batch) % 3
    sigma, kernel_size = sigma[rows], kernel_size[rows]
    if not per_axis:
        sigma, kernel_size = sigma[:, 0].clone(), kernel_size[:, 0].clone()
    gain = torch.tensor([0.7, 1.0, 0.4], dtype=dtype)[rows]
    fixation = torch.tensor([[shape[0] / 3, shape[1] / 4]], dtype=dtype).expand(batch, 2)
    return BlurParams(sigma, kernel_size, gain, fixation, None, None, weight, "exp", 3.0, border, tables)


def forward(images: torch.Tensor, params: BlurParams) -> torch.Tensor:
    out = torch.full_like(images, 77)
    native.cpu_forward(images, out, params)
    return out


def backward(grad: torch.Tensor, images: torch.Tensor, params: BlurParams) -> list[torch.Tensor]:
    """Return the gradients of images, sigma and gain."""
    of_images = torch.full_like(images, torch.nan)
    of_sigma, of_gain = (torch.full_like(each, torch.nan) for each in (params.sigma, params.gain))
    native.cpu_backward(grad, images, BlurGradients(of_images, of_sigma, of_gain), params)
    return [of_images, of_sigma, of_gain]


def assert_gradients_match(images: torch.Tensor, params: BlurParams, worst: float) -> None:
    grad = torch.randn(images.shape, dtype=images.dtype)
    for ours, expected in zip(backward(grad, images, params), dense_blur.gradients(grad, images, params)):
        assert (ours.double() - expected).abs().max() <= worst * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("per_axis", [False, True])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("dtype", IMAGE_DTYPES, ids=str)
def test_borders_and_axes(dtype, border, per_axis, seed):
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    for shape in SHAPES:
        images = random_images((3, 2, *shape), dtype)
        params = make_params(3, shape, computed, border=border, per_axis=per_axis)
        ours, expected = forward(images, params), dense_blur.blur(images, params)
        if dtype == torch.uint8:
            assert (ours.double() - expected).abs().max() <= 0.501
        else:
            assert relative_error(ours, expected) < RELATIVE_ERROR[dtype]


@pytest.mark.parametrize("per_axis", [False, True])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_under_borders_and_along_axes(dtype, border, per_axis, seed):
    for shape in SHAPES:
        images = torch.randn(3, 2, *shape, dtype=dtype)
        params = make_params(3, shape, dtype, border=border, per_axis=per_axis)
        assert_gradients_match(images, params, 2e-4 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("shape", [(150, 130), (50, 35)], ids=str)  # strips reach round the ends; and all rows
@pytest.mark.parametrize("border", BORDERS)
def test_strips_and_threads(border, shape, seed):
    images = torch.randn(4, 3, *shape)
    params = make_params(4, shape, border=border, per_axis=True)
    grad = torch.randn_like(images)
    expected = [dense_blur.blur(images, params), *dense_blur.gradients(grad, images, params)]
    results = []
    for threads in (7, 2, 1):
        torch.set_num_threads(threads)
        results.append([forward(images, params), *backward(grad, images, params)])
    for index, (first, *others) in enumerate(zip(*results)):
        assert relative_error(first, expected[index]) < (1e-5 if index == 0 else 2e-4)
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("border", BORDERS)
def test_opencvs_tables(border, seed):
    images = torch.randn(7, 1, 14, 12, dtype=torch.float64)
    sizes = torch.tensor([1, 3, 5, 7, 9, 11, 51], dtype=torch.int32)
    sigma = 0.3 * ((sizes.double() - 1) * 0.5 - 1) + 0.8
    params = make_params(7, (14, 12), torch.float64, border=border, tables=True)
    params = params._replace(sigma=sigma, kernel_size=sizes)
    assert relative_error(forward(images, params), dense_blur.blur(images, params)) < 1e-12
    per_axis = params._replace(
        sigma=torch.stack([sigma, sigma.flip(0)], 1), kernel_size=torch.stack([sizes, sizes.flip(0)], 1)
    )
    assert relative_error(forward(images, per_axis), dense_blur.blur(images, per_axis)) < 1e-12
    for each in (params, per_axis):
        grad = torch.randn_like(images)
        of_images, of_sigma, of_gain = backward(grad, images, each)
        expected = dense_blur.gradients(grad, images, each)
        assert relative_error(of_images, expected[0]) < 1e-12
        assert relative_error(of_gain, expected[2]) < 1e-10
        in_table = (each.kernel_size <= 9).to(torch.bool)
        assert (of_sigma[in_table] == 0).all() and (of_sigma[~in_table] != 0).all()


WEIGHT_LAYOUTS = {
    "contiguous": lambda w: w,
    "shared": lambda w: w[:1].expand_as(w),
    "transposed": lambda w: w.mT.contiguous().mT,
    "of rows": lambda w: w[:, :, :1].expand_as(w),
    "sliced": lambda w: torch.stack([w, w], -1)[..., 0],
}


@pytest.mark.parametrize("layout", WEIGHT_LAYOUTS)
@pytest.mark.parametrize("border", ["reflect", "replicate", "circular"])
def test_weight_maps(border, layout, seed):
    for dtype in (torch.float32, torch.float64):
        shape = (45, 33)
        images = torch.randn(3, 2, *shape, dtype=dtype)
        weight = WEIGHT_LAYOUTS[layout](torch.rand(3, *shape, dtype=dtype))
        params = make_params(3, shape, dtype, border=border, per_axis=True, weight=weight)
        assert relative_error(forward(images, params), dense_blur.blur(images, params)) < RELATIVE_ERROR[dtype]
        assert_gradients_match(images, params, 2e-4 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_any_layout(layout, seed):
    images = LAYOUTS[layout](torch.randn(4, 3, 30, 90))
    params = make_params(len(images), images.shape[2:], border="circular", per_axis=True)
    assert relative_error(forward(images, params), dense_blur.blur(images, params)) < 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("border", BORDERS)
def test_what_is_not_finite_spreads_over_the_support_only(border, value):
    height, width, (ry, rx) = 21, 17, (3, 6)
    for row, column in ((0, 0), (1, 15), (10, 8), (20, 16)):
        images = torch.zeros(1, 1, height, width)
        images[0, 0, row, column] = value
        params = make_params(1, (height, width), border=border, per_axis=True)._replace(
            sigma=torch.tensor([[1.0, 2.0]]), kernel_size=torch.tensor([[2 * ry + 1, 2 * rx + 1]], dtype=torch.int32)
        )
        matrices = [
            scipy.ndimage.correlate1d(np.eye(n), np.ones(2 * r + 1), axis=0, mode=SCIPY_MODES[border]) > 0
            for n, r in ((height, ry), (width, rx))
        ]
        reached = np.logical_and.outer(matrices[0][:, row], matrices[1][:, column])
        assert np.array_equal(~forward(images, params)[0, 0].isfinite().numpy(), reached)
        of_images, _, _ = backward(images, torch.zeros_like(images), params)
        reaching = np.logical_and.outer(matrices[0][row], matrices[1][column])
        assert np.array_equal(~of_images[0, 0].isfinite().numpy(), reaching)


def test_an_axis_without_blur_has_no_gradient_whatever_the_pixels():
    images = torch.full((1, 1, 6, 5), torch.inf)
    params = make_params(1, (6, 5), per_axis=True)._replace(sigma=torch.tensor([[0.0, 1.0]]))
    _, of_sigma, _ = backward(torch.ones_like(images), images, params)
    assert of_sigma[0, 0] == 0
