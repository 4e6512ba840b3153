"""The CUDA kernels with the options that the faster forms do not take, and lists of images."""

import dense_blur
import pytest
import torch
from backends_under_test import in_both_orders
from comparisons import LAYOUTS, random_images, relative_error
from gpu_streams import to_device

from fovblur.dtypes import DTYPES
from fovblur.foveated_blur import native
from fovblur.foveated_blur.params import BlurGradients, BlurParams
from fovblur.foveated_blur.validation import BORDERS
from fovblur.retinal_blur import native as native_retina
from fovblur.retinal_blur.params import LevelParams

pytestmark = pytest.mark.parametrize("implementation", ["cuda"], indirect=True)


def moved(params: BlurParams, device: torch.device) -> BlurParams:
    return BlurParams(*(to_device(x, device) if isinstance(x, torch.Tensor) else x for x in params))


def forward(implementation, images, params: BlurParams, out_dtype=None) -> torch.Tensor:
    out = torch.full(images.shape, 0 if out_dtype == torch.uint8 else torch.nan, dtype=out_dtype or images.dtype)
    out = out.to(implementation.device)
    native.cuda_forward(to_device(images, implementation.device), out, moved(params, implementation.device))
    return out.cpu()


def backward(implementation, grad, images, params: BlurParams) -> list[torch.Tensor]:
    device = implementation.device
    wanted = [None if params.border == "replicate" else images, params.sigma, params.gain]
    grads = BlurGradients(
        *(None if x is None else torch.full(x.shape, torch.nan, dtype=x.dtype, device=device) for x in wanted)
    )
    native.cuda_backward(to_device(grad, device), to_device(images, device), grads, moved(params, device))
    return [x.cpu() for x in grads if x is not None]


# Kernel sizes: within and beyond the tables, and of more taps than a segment; wider than the image.
CASES = [
    ((3, 1, 40, 70), (1, 3, 9, 33), True, False),
    ((2, 2, 9, 21), (5, 51), False, True),
    ((2, 1, 70, 66), (7, 101), True, True),
    ((2, 1, 1, 5), (3, 11), True, False),
]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("border", BORDERS)
def test_every_border_and_axis(implementation, border, case, seed):
    shape, sizes, per_axis, mapped = CASES[case]
    params = dense_blur.random_params(
        shape[0], sizes, per_axis, border=border, weight=torch.rand(shape[0], *shape[2:]) if mapped else None
    )
    images, grad = torch.rand(shape), torch.rand(shape) - 0.3
    assert relative_error(forward(implementation, images, params), dense_blur.blur(images, params)) < 1e-5
    exact_gradients = dense_blur.gradients(grad, images, params)
    ours = backward(implementation, grad, images, params)
    if border != "replicate":
        assert relative_error(ours[0], exact_gradients[0]) < 1e-5
    for one, other in zip(ours[-2:], exact_gradients[-2:]):  # sums whose terms cancel
        assert (one - other).abs().max() < 1e-5 * grad.abs().sum() / shape[0]


@pytest.mark.parametrize("per_axis", [False, True])
def test_tables_for_small_kernels_and_gaussians_beyond(implementation, per_axis, seed):
    params = dense_blur.random_params(6, (1, 3, 5, 7, 9, 11), per_axis, tables=True)
    images, grad = torch.rand(6, 1, 20, 30), torch.rand(6, 1, 20, 30) - 0.3
    assert relative_error(forward(implementation, images, params), dense_blur.blur(images, params)) < 1e-6
    expected = dense_blur.gradients(grad, images, params)[0]
    of_images, of_sigma, _ = backward(implementation, grad, images, params)
    assert relative_error(of_images, expected) < 1e-5
    assert torch.equal(of_sigma != 0, params.kernel_size > 9)


@pytest.mark.parametrize("dtype", [x for x in DTYPES if x != torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_types_and_layouts(implementation, dtype, layout, seed):
    images = LAYOUTS[layout](random_images((6, 3, 24, 90), dtype))
    count, channels, height, width = images.shape
    weight = torch.rand(width, count, height).permute(1, 2, 0)
    mean, std = torch.rand(channels), 0.2 + torch.rand(channels)
    params = dense_blur.random_params(count, (3, 9, 21), border="symmetric", weight=weight)._replace(mean=mean, std=std)
    scale = 255 if dtype == torch.uint8 else 1
    expected = dense_blur.blur(images.double() / scale, params)
    expected = (expected - mean[:, None, None]) / std[:, None, None]
    result = forward(implementation, images, params, torch.float32)
    assert relative_error(result, expected) < 1e-5
    if dtype == torch.uint8:
        rounded = forward(implementation, images, params._replace(mean=None, std=None), torch.uint8)
        assert (rounded.double() - dense_blur.blur(images, params)).abs().max() < 0.501


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("kernel_size", [(1, 9), (9, 51), (1501, 3)])
def test_non_finite_pixels_spread_over_the_support_only(implementation, border, kernel_size):
    images, clean = torch.full((1, 1, 40, 90), 0.5), torch.full((1, 1, 40, 90), 0.5)
    images[0, 0, 15, 26], images[0, 0, 30, 60] = torch.nan, torch.inf
    size = torch.tensor([kernel_size], dtype=torch.int32)
    params = dense_blur.random_params(1, (3,), border=border)._replace(
        sigma=size / 6, kernel_size=size, gain=torch.zeros(1)
    )
    clean[0, 0, 15, 26] = clean[0, 0, 30, 60] = -1.0
    wide = params._replace(sigma=torch.full((1, 2), 1e4))
    reached = (dense_blur.blur(clean, wide) - dense_blur.blur(torch.full_like(clean, 0.5), wide)).abs() > 1e-9
    result = forward(implementation, images, params)
    assert torch.equal(~result.isfinite(), reached)


def test_gradients_along_a_sharp_axis_are_zero(implementation, seed):
    images, grad = torch.rand(2, 1, 20, 30), torch.rand(2, 1, 20, 30)
    images[1, 0, 3, 4] = torch.inf
    size = torch.tensor([[1, 9], [1, 1]], dtype=torch.int32)
    params = dense_blur.random_params(2, (3,))._replace(sigma=torch.full((2, 2), 2.0), kernel_size=size)
    _, of_sigma, of_gain = backward(implementation, grad, images, params)
    assert (of_sigma != 0).tolist() == [[False, True], [False, False]] and of_gain[1] == 0


@pytest.mark.parametrize("sigma", [torch.nan, -1.0])
def test_a_bad_sigma_along_one_axis_is_nan(implementation, sigma):
    params = dense_blur.random_params(2, (9,), border="circular")._replace(
        sigma=torch.tensor([[2.0, sigma], [2.0, 2.0]])
    )
    result = forward(implementation, torch.rand(2, 1, 20, 30), params)
    assert result[0].isnan().all() and result[1].isfinite().all()


@pytest.mark.parametrize("mapped", [False, True])
def test_a_list_is_blurred_in_one_launch(implementation, mapped, seed):
    shapes = [(3, 20, 30), (1, 70, 140), (3, 0, 9), (2, 1, 1), (3, 65, 5), (0, 4, 4)]
    images = [torch.rand(c, w, h).transpose(1, 2) if h % 2 else torch.rand(c, h, w) for c, h, w in shapes]
    params = dense_blur.random_params(len(images), (3, 21, 51), border="constant")._replace(
        mean=torch.rand(3), std=torch.rand(3) + 0.5
    )
    weights = [torch.rand(w, h).T for _, h, w in shapes] if mapped else None
    device = implementation.device
    out = [torch.full_like(image, torch.nan, device=device) for image in images]
    on_device = [to_device(image, device) for image in images]
    its_weights = weights and [to_device(weight, device) for weight in weights]
    native.cuda_forward_list(on_device, out, moved(params, device), its_weights)
    for i, (image, result) in enumerate(zip(images, out)):
        if image.numel() == 0:
            continue
        its_params = BlurParams(*(x[i : i + 1] if torch.is_tensor(x) else x for x in params))
        its_params = its_params._replace(weight=weights[i][None] if weights else None)
        expected = dense_blur.blur(image[None], its_params)[0] - params.mean[: len(image), None, None]
        assert relative_error(result.cpu(), expected / params.std[: len(image), None, None]) < 1e-5


def test_threads_may_take_turns_in_any_order(implementation, monkeypatch, tmp_path_factory, seed):
    images, grad = torch.rand(2, 1, 70, 80), torch.rand(2, 1, 70, 80)
    images[1, 0, 3, 60] = torch.inf
    params = dense_blur.random_params(2, (9, 129), border="symmetric")
    levels = LevelParams(3 * torch.rand(2, 70, 80), (0.0, 1.0, 3.0, 9.0), (1, 9, 19, 73), "circular")

    def call() -> list[torch.Tensor]:
        blurred = forward(implementation, images, params)
        return [blurred, *backward(implementation, grad, images, params), blend(implementation, images, levels)]

    for one, other in zip(*in_both_orders(call, monkeypatch, tmp_path_factory)):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


# ---- the blend of Gaussian levels ----

SIGMAS, KERNEL_SIZES = (0.0, 0.8, 1.7, 4.0, 9.0), (1, 7, 13, 33, 73)


def blend(implementation, images, params: LevelParams) -> torch.Tensor:
    device = implementation.device
    out = torch.full(images.shape, torch.nan, device=device)
    its_params = params._replace(level=to_device(params.level, device))
    native_retina.cuda_forward(to_device(images, device), out, its_params)
    return out.cpu()


@pytest.mark.parametrize("dtype", [x for x in DTYPES if x != torch.float64], ids=str)
@pytest.mark.parametrize("border", BORDERS)
def test_levels_of_every_border_and_type(implementation, border, dtype, seed):
    images = random_images((2, 2, 70, 40), dtype).transpose(2, 3)
    distance = torch.hypot(torch.arange(40.0)[:, None] - 10, torch.arange(70.0) - 20)
    level = torch.stack([distance / distance.max() * 4, torch.rand(40, 70) + 1])  # whole tiles of levels 1 and 2
    params = LevelParams(level, SIGMAS, KERNEL_SIZES, border)
    assert relative_error(blend(implementation, images, params), dense_blur.blend_of_levels(images, params)) < 1e-5


def test_a_level_without_weight_does_not_count(implementation):
    """An infinite pixel reaches as far as the levels that pixels around it blend."""
    images = torch.rand(1, 1, 30, 150)
    images[..., 15, 30] = torch.inf
    level = torch.full((1, 30, 150), 2.0)
    level[..., 100:] = 3.5  # in a tile that the pixel does not reach
    result = blend(implementation, images, LevelParams(level, SIGMAS, KERNEL_SIZES, "constant"))
    reached = torch.zeros(30, 150, dtype=torch.bool)
    reached[9:22, 24:37] = True
    assert torch.equal(~result[0, 0].isfinite(), reached)
