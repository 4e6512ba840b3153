"""The exact forms of the CUDA kernels: strips and rings of every size, the tiles behind them, and their gradients.

On an architecture 9.0 float32 images are filtered as split products, within their reach.
"""

import ctypes
from collections.abc import Iterator

import cuda_on_host
import pytest
import torch
from backends_under_test import ON_GPU, exact, in_both_orders
from comparisons import assert_close, exact_gradients, gradients, random_images, relative_error

import fovblur
from fovblur.foveated_blur import native
from fovblur.foveated_blur.params import BlurParams

pytestmark = pytest.mark.parametrize("implementation", ["cuda"], indirect=True)

# Height, width and kernel sizes: fewer taps than a run of results, odd and even radii; rings longer and shorter than
# the image; several strips of a plane, cut in both directions by split products; radii whose ring does not fit.
CASES = {
    "small": ((9, 40), (1, 3, 5, 7, 9, 11)),
    "radii": ((37, 70), (17, 19, 21, 23, 51, 53)),
    "wide": ((20, 530), (51, 9)),
    "cut": ((70, 300), (51, 33)),
    "strips": ((150, 64), (401, 301)),
    "reflected-often": ((5, 12), (51, 255)),
    "tiles": ((30, 20), (2001, 9)),
}


@pytest.fixture(autouse=True, params=[86, 90], ids=["direct", "split"])
def architecture(implementation, request, tmp_path_factory) -> Iterator[None]:
    """Let the emulated device choose its form as a real one of the architecture does."""
    if ON_GPU:
        yield
        return
    library = ctypes.CDLL(cuda_on_host.build(tmp_path_factory.getbasetemp()).__file__)
    library.set_fovblur_architecture(request.param)
    yield
    library.set_fovblur_architecture(86)


@pytest.mark.parametrize("case", CASES)
def test_the_exact_forms_are_exact(implementation, case, seed):
    shape, sizes = CASES[case]
    kernel_size, count = torch.tensor(sizes), len(sizes)
    images, grad = torch.rand(count, 1, *shape), torch.rand(count, 1, *shape) - 0.3
    sigma, gain = torch.rand(count) * kernel_size / 4 + 0.3, torch.rand(count)
    ours = implementation.foveated_blur(images, sigma, kernel_size=kernel_size, gain=gain)
    expected = exact(images, sigma, kernel_size=kernel_size, gain=gain)
    for one, other in zip(ours, expected):
        assert relative_error(one, other) < 1e-5
    arguments = (images, sigma, kernel_size, gain, grad)
    assert_close(gradients(implementation, *arguments), exact_gradients(*arguments), 1e-5, grad)


@pytest.mark.parametrize("unit", [1e-36, 1e-30, 1e30, 3e38])
def test_pixels_of_any_scale(implementation, unit, seed):
    """Ordinary pixels in one plane, others in the next, and rows of both in a third."""
    images = torch.rand(3, 1, 40, 70) - 0.5
    images[1] *= unit
    images[2, :, ::2] *= unit
    ours = implementation.gaussian_blur(images, kernel_size=51)
    for one, other in zip(ours, exact(images, kernel_size=51, gain=0.0)):
        assert relative_error(one, other) < 1e-5


def test_few_planes_are_cut_and_many_are_not(implementation, seed):
    for batch, channels in (1, 1), (520, 2):
        images = torch.rand(batch, channels, 130 if batch == 1 else 17, 100 if batch == 1 else 12)
        kernel_size = torch.randint(0, 9, (batch,)) * 2 + 1
        ours = implementation.gaussian_blur(images, kernel_size=kernel_size)
        assert relative_error(ours, exact(images, kernel_size=kernel_size, gain=0.0)) < 1e-5


@pytest.mark.parametrize("kernel_size", [3, 9, 11, 51, 1501])
def test_non_finite_pixels_spread_over_the_support_only(implementation, kernel_size, seed):
    images = torch.rand(1, 1, 60, 90)
    images[0, 0, 5, 6], images[0, 0, 40, 30], images[0, 0, 44, 60] = float("nan"), float("inf"), float("-inf")
    ours = implementation.foveated_blur(images, kernel_size=kernel_size, gain=0.5)
    expected = fovblur.foveated_blur(images, kernel_size=kernel_size, gain=0.5, backend="reference")
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_a_bad_sigma_on_the_device_is_nan(implementation):
    """Sigmas are checked before a launch only if they are on the CPU."""
    images, out = torch.rand(4, 1, 20, 30), torch.empty(4, 1, 20, 30)
    sigma, kernel_size = torch.tensor([float("nan"), -1.0, -3.0, 2.0]), torch.tensor([25, 25, 9, 9], dtype=torch.int32)
    tensors = [x.to(implementation.device) for x in (images, out, sigma, kernel_size, torch.ones(4), torch.ones(4, 2))]
    native.cuda_forward(*tensors[:2], BlurParams(*tensors[2:], None, None, None, "exp", 3.0))
    assert tensors[1][:3].isnan().all() and tensors[1][3].isfinite().all()


def test_threads_may_take_turns_in_any_order(implementation, monkeypatch, tmp_path_factory, seed):
    images = random_images((3, 1, 40, 90), torch.float32)
    sigma, gain = torch.tensor([7.0, 0.5, 19.0]), torch.tensor([0.4, 0.6, 1.0])

    def call() -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in (images, sigma, gain)]
        options = {"kernel_size": torch.tensor([45, 3, 129]), "backend": "cuda"}
        out = fovblur.foveated_blur(leaves[0], leaves[1], gain=leaves[2], **options)
        return [out, *torch.autograd.grad(out.sin().sum(), leaves)]

    results = in_both_orders(call, monkeypatch, tmp_path_factory)
    assert all(torch.equal(one, other) for one, other in zip(*results))
