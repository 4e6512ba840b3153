"""The CUDA kernels' matrix products of 16-bit operands: their limits, and when they are used."""

import pytest
import torch
from backends_under_test import exact, in_both_orders
from comparisons import (
    LAYOUTS,
    assert_close,
    edges,
    exact_gradients,
    exact_parameter_gradients,
    followed_by_gradients,
    gradients,
    random_images,
    relative_error,
)

import fovblur
from fovblur.foveated_blur.params import BlurParams

KERNEL_SIZES = (1, 3, 45, 51, 57, 101, 129, 131, 201)  # 129 reaches 64 pixels, the most that products serve
TYPES = (torch.uint8, torch.float16, torch.bfloat16)
# Relative rounding of an operand.
ROUNDING = {torch.uint8: 2**-11, torch.float16: 2**-11, torch.bfloat16: 2**-8}
IMAGE_GRADIENT = {torch.float16: 4e-3, torch.bfloat16: 2e-2}

pytestmark = pytest.mark.parametrize("implementation", ["cuda"], indirect=True)


@pytest.fixture(autouse=True)
def products_of_uint8(torch_settings):
    """Allow products of uint8 for float32 results too; the default precision does not."""
    torch.set_float32_matmul_precision("high")


def assert_rounded_four_times(ours: torch.Tensor, expected: torch.Tensor, largest: float) -> None:
    """Taps are rounded in both passes, rows between them, and the result."""
    error = (ours.double() - expected).abs().max().item()
    bound = 3 * ROUNDING[ours.dtype] * largest
    assert error <= bound + (0.5 if ours.dtype == torch.uint8 else bound / 3)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 7), (16, 64), (33, 81), (70, 130)], ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_products_agree_with_the_float64_reference(implementation, dtype, shape, seed):
    images = random_images((len(KERNEL_SIZES), 2, *shape), dtype)
    kernel_size, gain = torch.tensor(KERNEL_SIZES), torch.linspace(0, 1, len(KERNEL_SIZES))
    ours = implementation.foveated_blur(images, kernel_size=kernel_size, gain=gain)
    expected = exact(images, kernel_size=kernel_size, gain=gain)
    for one, other in zip(ours, expected):
        assert_rounded_four_times(one, other, images.max().item())
    assert torch.equal(ours[0], images[0])  # a kernel of one pixel


def test_many_planes_are_not_cut_into_short_strips(implementation, seed):
    images = random_images((512, 1, 70, 8), torch.uint8)
    kernel_size = torch.randint(0, 3, (512,)) * 2 + 1
    ours = implementation.gaussian_blur(images, kernel_size=kernel_size)
    assert_rounded_four_times(ours, exact(images, kernel_size=kernel_size, gain=0.0), 255)


@pytest.mark.parametrize("out_dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_normalised_and_converted(implementation, dtype, out_dtype, seed):
    images = random_images((2, 3, 20, 40), dtype)
    options = {"kernel_size": torch.tensor([5, 51]), "mean": (0.48, 0.45, 0.4), "std": (0.27, 0.26, 0.28)}
    ours = implementation.foveated_blur(images, out_dtype=out_dtype, **options)
    unit = images / 255 if dtype == torch.uint8 else images
    expected = exact(unit.double(), gain=0.5, **options)
    coarsest = max(torch.finfo(kind).eps for kind in (dtype, out_dtype, torch.float16) if kind.is_floating_point)
    assert ours.dtype == out_dtype and relative_error(ours, expected) < 1.5 * coarsest


@pytest.mark.parametrize("falloff", ["linear", "brachistochrone"])
def test_falloffs_off_centre(implementation, falloff, seed):
    images = random_images((2, 1, 30, 77), torch.float16)
    fixation = torch.tensor([[3.0, 60.5], [40.0, -9.0]])
    options = {"kernel_size": 17, "gain": 0.9, "falloff": falloff, "fixation": fixation}
    assert_rounded_four_times(implementation.foveated_blur(images, **options), exact(images, **options), 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_layouts_give_the_same_result(implementation, dtype, layout, seed):
    images = LAYOUTS[layout](random_images((4, 3, 26, 88), dtype))
    options = {"kernel_size": torch.tensor([51, 3, 101, 9])[: len(images)]}
    ours = implementation.foveated_blur(images, **options)
    assert torch.equal(ours, implementation.foveated_blur(images.contiguous(), **options))


@pytest.mark.parametrize("kernel_size", [1, 9, 51, 129])
@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
def test_non_finite_pixels_spread_over_the_support_only(implementation, dtype, kernel_size, seed):
    images = torch.rand(2, 1, 90, 150).to(dtype)
    images[0, 0, 5, 6], images[0, 0, 60, 30], images[0, 0, 66, 90] = float("nan"), float("inf"), float("-inf")
    ours = implementation.foveated_blur(images, kernel_size=kernel_size, gain=0.5)
    expected = fovblur.foveated_blur(images.float(), kernel_size=kernel_size, gain=0.5, backend="reference")
    tolerance = 4 * ROUNDING[dtype]
    torch.testing.assert_close(ours.float(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert ours[1].isfinite().all()


@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
def test_the_largest_values_do_not_overflow(implementation, dtype):
    largest = torch.finfo(dtype).max
    for value in (largest, 0.999 * largest, 0.99 * largest):
        images = torch.full((1, 1, 20, 30), value).to(dtype)
        ours = implementation.gaussian_blur(images.clone(), kernel_size=torch.tensor([9]))
        torch.testing.assert_close(ours.double() / largest, images.double() / largest, rtol=2e-3, atol=0)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 81)], ids=str)
@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
def test_gradients(implementation, dtype, shape, seed):
    images, grad = torch.rand(4, 2, *shape).to(dtype), torch.rand(4, 2, *shape).to(dtype) - 0.3
    sigma, kernel_size = torch.tensor([2.0, 8.0, 0.0, 19.0]), torch.tensor([17, 51, 9, 129])
    arguments = (images, sigma, kernel_size, torch.tensor([0.5, 1.0, 0.7, 0.2]), grad)
    ours = gradients(implementation, *arguments, std=0.25)
    assert_close(ours, exact_gradients(*arguments, std=0.25), IMAGE_GRADIENT[dtype], 4 * grad)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_gradients_of_sigma_and_gain(implementation, dtype, seed):
    sigma, kernel_size = torch.tensor([0.5, 2.0, 8.5, 16.0, 8.5]), torch.tensor([3, 51, 51, 101, 151])
    images, gain = edges((5, 2, 70, 100), dtype), torch.rand(5)
    grad = followed_by_gradients(images, sigma, kernel_size).to(torch.float16 if dtype == torch.uint8 else dtype)
    leaves = [x.to(implementation.device).requires_grad_() for x in (sigma, gain)]
    options = {"kernel_size": kernel_size, "falloff": "quadratic", "mean": 0.4, "std": 0.25, "out_dtype": grad.dtype}
    y = fovblur.foveated_blur(images.to(implementation.device), leaves[0], gain=leaves[1], **options, backend="cuda")
    ours = torch.autograd.grad(y, leaves, grad.to(implementation.device))
    fixation, normalisation = torch.tensor([[35.0, 50.0]]).expand(5, 2), (torch.full((2,), 0.4), torch.full((2,), 0.25))
    params = BlurParams(sigma, kernel_size, gain, fixation, *normalisation, None, "quadratic", 3.0)
    for one, other in zip(ours, exact_parameter_gradients(grad, images, params)):
        assert ((one.cpu() - other) / other).abs().max() < 4 * ROUNDING[dtype]


@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
def test_parameter_gradients_of_large_and_infinite_pixels(implementation, dtype, seed):
    """Where operands overflow, a block's channels are summed in the direct form."""
    images = torch.full((3, 2, 40, 60), 0.5).to(dtype)
    images[0, 1, 20, 30] = float("inf")
    images[1, :, ::2] = min(torch.finfo(dtype).max / 1.01, 1e30)  # whose sums float32 holds
    sigma, kernel_size, gain = torch.full((3,), 0.6), torch.full((3,), 5), torch.full((3,), 0.5)
    images[2, :, :, 30:] = 1.0
    grad = followed_by_gradients(images[1:], sigma[1:], kernel_size[1:]).to(dtype)
    grad = torch.cat([torch.ones_like(grad[:1]), grad / 256])
    _, of_sigma, of_gain = gradients(implementation, images, sigma, kernel_size, gain, grad)
    _, *expected = exact_gradients(images[1:], sigma[1:], kernel_size[1:], gain[1:], grad[1:])
    assert not of_sigma[0].isfinite() and not of_gain[0].isfinite()
    for one, other in zip((of_sigma, of_gain), expected):
        assert ((one[1:] - other) / other).abs().max() < 4 * ROUNDING[dtype]


def test_a_border_gradient_beyond_half_precision(implementation):
    """A corner counts four times in the adjoint's product, so gradients above 16376 overflow a half."""
    images, grad = torch.rand(1, 1, 20, 30).half(), torch.full((1, 1, 20, 30), 30000.0).half()
    arguments = (images, torch.tensor([2.0]), torch.tensor([9]), torch.tensor([0.3]), grad)
    assert_close(gradients(implementation, *arguments)[:1], exact_gradients(*arguments)[:1], 4e-3, grad)


def test_float32_is_exact_at_every_matmul_precision(implementation, seed):
    images = random_images((3, 1, 40, 70), torch.float32)
    options = {"kernel_size": torch.tensor([3, 51, 129])}
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        assert relative_error(implementation.foveated_blur(images, **options), exact(images, **options)) < 1e-5


def test_uint8_is_exact_in_float32_and_rounded_in_half_precision(implementation, seed):
    images = random_images((3, 1, 40, 70), torch.uint8)
    options = {"kernel_size": torch.tensor([3, 51, 129]), "mean": 0.5, "std": 0.25}
    expected = exact(images.double() / 255, **options)
    errors = {}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        for dtype in (torch.float32, torch.half):
            ours = implementation.foveated_blur(images, out_dtype=dtype, **options)
            errors[precision, dtype] = relative_error(ours, expected)
    assert errors["highest", torch.float32] < 1e-5 < errors["high", torch.float32] < 2e-3
    assert errors["highest", torch.half] == errors["high", torch.half]
    assert relative_error(expected.half(), expected) < errors["high", torch.half] < 2e-3


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_threads_may_take_turns_in_any_order(implementation, monkeypatch, tmp_path_factory, dtype, seed):
    images = random_images((3, 1, 40, 90), dtype)
    options = {"kernel_size": torch.tensor([45, 3, 129]), "out_dtype": torch.float16 if dtype == torch.uint8 else dtype}

    def call() -> list[torch.Tensor]:
        leaf = images.to(implementation.device, copy=True).requires_grad_(dtype.is_floating_point)
        parameters = [torch.tensor([7.0, 0.5, 20.0]), torch.tensor([0.4, 0.5, 0.6])]
        sigma, gain = (x.to(implementation.device).requires_grad_() for x in parameters)
        out = fovblur.foveated_blur(leaf, sigma, gain=gain, **options, backend="cuda")
        return [out, *torch.autograd.grad(out.float().sum(), [leaf, sigma, gain][not leaf.requires_grad :])]

    results = in_both_orders(call, monkeypatch, tmp_path_factory)
    assert all(torch.equal(one, other) for one, other in zip(*results))
