"""Triton's kernels of borders, axes, tables and weight maps, beyond what every backend is tested for."""

import os
import subprocess
import sys
from pathlib import Path

import dense_blur
import pytest
import torch
from backends_under_test import ON_GPU
from comparisons import random_images, relative_error
from gpu_streams import to_device

from fovblur.foveated_blur import triton
from fovblur.foveated_blur.params import BlurGradients, BlurParams
from fovblur.foveated_blur.validation import BORDERS
from fovblur.retinal_blur import triton as retina
from fovblur.retinal_blur.params import LevelParams

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
MAPS = {
    "of several tiles": lambda w: w,
    "shared by the samples": lambda w: w[:1].expand_as(w),
    "transposed": lambda w: w.mT.contiguous().mT,
}


def moved(params: BlurParams) -> BlurParams:
    return BlurParams(*(to_device(x, DEVICE) if isinstance(x, torch.Tensor) else x for x in params))


def forward(images: torch.Tensor, params: BlurParams, out_dtype: torch.dtype | None = None) -> torch.Tensor:
    out = torch.full(images.shape, 77, dtype=out_dtype or images.dtype, device=DEVICE)
    triton.triton_forward(to_device(images, DEVICE), out, moved(params))
    return out.cpu()


def backward(grad: torch.Tensor, images: torch.Tensor, params: BlurParams) -> list[torch.Tensor]:
    shapes = (images, params.sigma, params.gain)
    grads = BlurGradients(*(torch.full(x.shape, torch.nan, dtype=x.dtype, device=DEVICE) for x in shapes))
    triton.triton_backward(to_device(grad, DEVICE), to_device(images, DEVICE), grads, moved(params))
    return [each.cpu() for each in grads]


def assert_matches(images: torch.Tensor, params: BlurParams, worst: float) -> None:
    """Compare result and gradients; those of sigma and gain, whose terms cancel, to the sum of |grad|."""
    grad = torch.randn(images.shape).to(images.dtype)
    assert relative_error(forward(images, params), dense_blur.blur(images, params)) < worst
    ours, expected = backward(grad, images, params), dense_blur.gradients(grad, images, params)
    assert relative_error(ours[0], expected[0]) < worst
    for one, other in zip(ours[1:], expected[1:]):
        assert (one - other).abs().max() < worst * grad.double().abs().sum() / len(images)


@pytest.mark.parametrize("layout", MAPS)
def test_weight_maps(layout, seed):
    shape = (40, 35) if layout == "of several tiles" else (6, 7)
    weight = MAPS[layout](torch.rand(2, *shape))
    params = dense_blur.random_params(2, (5, 21), per_axis=False, border="circular", weight=weight)
    assert_matches(torch.randn(2, 1, *shape), params, 2e-6)


@pytest.mark.parametrize(("dtype", "worst"), [(torch.float16, 2e-3), (torch.bfloat16, 8e-3)], ids=str)
def test_half_types(dtype, worst, seed):
    params = dense_blur.random_params(2, (5, 21), border="symmetric")
    assert_matches(torch.randn(2, 2, 9, 34).to(dtype), params, worst)


def test_half_gradients_near_the_limit_stay_finite_at_the_edges(seed):
    """The adjoint counts edge pixels twice."""
    images, params = torch.zeros(2, 1, 5, 6).half(), dense_blur.random_params(2, (5, 21))
    grad = torch.full_like(images, 30000)
    ours, expected = backward(grad, images, params)[0], dense_blur.gradients(grad, images, params)[0]
    assert relative_error(ours, expected) < 2e-3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_tables_and_normalised_results(dtype, seed):
    images, params = random_images((6, 2, 12, 9), dtype), dense_blur.random_params(6, (1, 3, 5, 7, 9, 11), tables=True)
    scale, error = (255, 3 * 2**-11 * 255) if dtype == torch.uint8 else (1, 1e-6)
    expected = dense_blur.blur(images, params)
    assert (forward(images, params) - expected).abs().max() < error + (0.5 if dtype == torch.uint8 else 0)
    mean, std = torch.tensor([0.4, 0.5]), torch.tensor([0.2, 0.3])
    ours = forward(images, params._replace(mean=mean, std=std), torch.float32)
    assert (ours - (expected / scale - mean[:, None, None]) / std[:, None, None]).abs().max() < error / scale / 0.2


def test_a_sigma_without_influence_has_no_gradient(seed):
    """Tables and a kernel size of 1 do not depend on it, not even where a pixel is infinite."""
    params = dense_blur.random_params(3, (3,), tables=True)._replace(
        kernel_size=torch.tensor([[9, 11], [3, 1], [1, 5]], dtype=torch.int32)
    )
    images = torch.rand(3, 1, 6, 7)
    images[1, 0, 2, 2] = torch.inf
    of_sigma = backward(torch.rand(3, 1, 6, 7), images, params)[1]
    assert torch.equal(of_sigma != 0, params.kernel_size == 11)


@pytest.mark.parametrize("border", BORDERS)
def test_a_radius_beyond_the_image_several_times(border, seed):
    params = dense_blur.random_params(2, (51, 201), border=border)
    images = torch.randn(2, 1, 2, 3)
    assert relative_error(forward(images, params), dense_blur.blur(images, params)) < 5e-6


@pytest.mark.parametrize("border", BORDERS)
def test_infinities_of_both_signs_spread_over_their_support(border):
    images = torch.zeros(2, 1, 21, 40)
    images[:, 0, 1, 38], images[:, 0, 18, 0], images[1, 0, 19, 3] = torch.inf, -torch.inf, torch.nan
    size = torch.tensor([[7, 13]], dtype=torch.int32).expand(2, 2)
    params = dense_blur.random_params(2, (3,), border=border)._replace(sigma=torch.ones(2, 2), kernel_size=size)
    flat = params._replace(sigma=torch.full((2, 2), 1e4), gain=torch.zeros(2))
    above, below = (dense_blur.blur((images == value) | images.isnan(), flat) > 0 for value in (torch.inf, -torch.inf))
    expected = torch.zeros(images.shape)
    expected[above], expected[below], expected[above & below] = torch.inf, -torch.inf, torch.nan
    ours = forward(images, params)
    torch.testing.assert_close(ours.nan_to_num(7, 8, 9), expected.nan_to_num(7, 8, 9), rtol=0, atol=0)


@pytest.mark.parametrize("border", ["reflect", "circular"])
def test_a_sigma_whose_square_is_0_is_the_identity(border, seed):
    images, params = torch.rand(1, 1, 6, 7), dense_blur.random_params(1, (5,), per_axis=False, border=border)
    ours = forward(images, params._replace(sigma=torch.tensor([1e-30])))
    torch.testing.assert_close(ours, images, rtol=1e-6, atol=0)


@pytest.mark.parametrize("border", BORDERS)
def test_blend_of_levels(border, seed):
    """Tiles have weight for some of the levels; a pixel that is not finite reaches where a level that has it counts."""
    images, level = torch.rand(2, 1, 34, 9), torch.rand(2, 34, 9)
    level[0, 20:] += 1.9
    level[1, :16] = 0.0
    params = LevelParams(level, (0.0, 0.8, 1.7, 4.0), (1, 7, 13, 33), border)
    expected = dense_blur.blend_of_levels(images, params)
    images[1, 0, 16, 4] = torch.inf
    expected[1, 0, 16:20, 1:8] = torch.inf
    level[0, 3, 3] = expected[0, 0, 3, 3] = torch.nan
    out = torch.zeros_like(images, device=DEVICE)
    on_device = LevelParams(to_device(level, DEVICE), *params[1:])
    retina.triton_forward(to_device(images, DEVICE), out, on_device)
    torch.testing.assert_close(out.cpu(), expected.float(), rtol=2e-6, atol=0, equal_nan=True)


def test_types_of_every_option_are_those_of_the_compiler():
    script = Path(__file__).parents[1] / "support" / "triton_types.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and int(done.stdout) > 100, done.stderr
