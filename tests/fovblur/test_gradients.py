"""Gradients of every backend against autograd through the float64 reference."""

import pytest
import torch
from backends_under_test import IMAGE_DTYPES
from comparisons import assert_close, exact_gradients, gradients

import fovblur
from fovblur.dtypes import accumulation_dtype

FLOATS = [dtype for dtype in IMAGE_DTYPES if dtype != torch.uint8]
RELATIVE_ERROR = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
SHAPES = [(1, 1), (2, 2), (5, 7), (33, 40), (70, 67)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_all_gradients(implementation, dtype, shape, seed):
    dtype = dtype if implementation.serves(dtype) else torch.float32
    real = accumulation_dtype(dtype)
    images, grad = torch.rand(3, 2, *shape).to(dtype), torch.rand(3, 2, *shape).to(dtype) - 0.3
    sigma, kernel_size = torch.tensor([2.0, 8.0, 0.0], dtype=real), torch.tensor([17, 51, 9])
    gain = torch.tensor([0.5, 1.0, 0.7], dtype=real)
    arguments = (images, sigma, kernel_size, gain, grad)
    expected = exact_gradients(*arguments, std=0.25)
    assert_close(gradients(implementation, *arguments, std=0.25), expected, RELATIVE_ERROR[dtype], 4 * grad)


def test_the_adjoint_is_exact_at_the_border(implementation, seed):
    for shape in ((1, 9), (2, 3), (6, 5), (40, 35)):
        x, g = torch.rand(1, 1, *shape), torch.rand(1, 1, *shape)
        sigma, size, gain = torch.tensor([3.0]), torch.tensor([25]), torch.tensor([0.4])
        y = implementation.foveated_blur(x, sigma, kernel_size=size, gain=gain)
        back, _, _ = gradients(implementation, x, sigma, size, gain, g)
        assert (y.double() * g).sum().item() == pytest.approx((x.double() * back).sum().item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (1, 4), (2, 2), (9, 3)], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradcheck_in_float64(backend, shape, seed):
    values = (torch.rand(2, 2, *shape), torch.tensor([1.1, 2.5]), torch.tensor([0.3, 0.8]))
    options = {"kernel_size": 9, "mean": 0.5, "std": 0.3, "backend": backend}
    blur = lambda images, sigma, gain: fovblur.foveated_blur(images, sigma, gain=gain, **options)  # noqa: E731
    assert torch.autograd.gradcheck(blur, [x.double().requires_grad_() for x in values])


@pytest.mark.parametrize("layout", ["expanded", "transposed", "sliced", "channels_last"])
def test_gradients_arrive_in_any_layout(implementation, layout, seed):
    images, sigma, size = torch.rand(2, 3, 20, 20), torch.tensor([1.0, 4.0]), torch.tensor([9, 33])
    gain = torch.tensor([0.5, 0.9])
    grad = {
        "expanded": torch.rand(()).expand(2, 3, 20, 20),
        "transposed": torch.rand(20, 20, 3, 2).permute(3, 2, 1, 0),
        "sliced": torch.rand(4, 3, 40, 20)[::2, :, ::2],
        "channels_last": torch.rand(2, 3, 20, 20).contiguous(memory_format=torch.channels_last),
    }[layout]
    ours = gradients(implementation, images, sigma, size, gain, grad)
    contiguous = gradients(implementation, images, sigma, size, gain, grad.contiguous())
    assert_close(ours, [expected.double() for expected in contiguous], 1e-6, grad)


def test_a_retained_graph_can_go_backward_twice(implementation, seed):
    images = torch.rand(2, 1, 12, 12).to(implementation.device).requires_grad_()
    y = fovblur.foveated_blur(images, 2.0, backend=implementation.backend)
    (first,) = torch.autograd.grad(y.sum(), images, retain_graph=True)
    (second,) = torch.autograd.grad(y.sum(), images)
    assert torch.equal(first, second)


def test_sigma_and_gain_learn_from_uint8_images(implementation, seed):
    images = (torch.rand(2, 3, 16, 16) * 255).to(torch.uint8).to(implementation.device)
    sigma = torch.tensor([2.0, 4.0], device=implementation.device, requires_grad=True)
    y = fovblur.foveated_blur(images, sigma, mean=0.5, std=0.5, backend=implementation.backend)
    y.square().sum().backward()
    assert sigma.grad.isfinite().all() and (sigma.grad != 0).all()


@pytest.mark.parametrize("sigma", [1e-30, 1e-12, 1e-3, 0.02])
def test_a_sigma_too_small_to_blur_has_no_gradient(implementation, sigma, seed):
    images = torch.rand(2, 1, 8, 8, device=implementation.device)
    sigmas = torch.tensor([sigma, 1.0], device=implementation.device, requires_grad=True)
    blurred = implementation.foveated_blur(images, sigmas, kernel_size=5, gain=0.0)
    (gradient,) = torch.autograd.grad((blurred * images).sum(), sigmas)
    assert gradient[0] == 0 and gradient[1] < 0


def test_gradients_of_nothing(implementation):
    images = torch.rand(0, 3, 8, 8, device=implementation.device, requires_grad=True)
    sigma = torch.rand(0, device=implementation.device, requires_grad=True)
    fovblur.foveated_blur(images, sigma, kernel_size=5, backend=implementation.backend).sum().backward()
    assert images.grad.shape == (0, 3, 8, 8) and sigma.grad.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype, seed):
    images, grad = (torch.rand(1, 2, 300, 200, dtype=dtype) for _ in range(2))
    results = []
    for count in (1, 2, 3, 5, 8):
        torch.set_num_threads(count)
        leaves = [images.clone(), *torch.tensor([[5.0], [0.5]], dtype=dtype)]
        leaves = [each.requires_grad_() for each in leaves]
        blurred = fovblur.foveated_blur(leaves[0], leaves[1], gain=leaves[2], backend="cpu")
        results.append([blurred, *torch.autograd.grad(blurred, leaves, grad)])
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other))
