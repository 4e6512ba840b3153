"""Derivatives of the compiled backends of any order and mode are those of the reference, which is plain PyTorch."""

import functools

import pytest
import torch
from comparisons import relative_error
from torch import func
from torch.autograd import forward_ad

import fovblur
from fovblur.foveated_blur.validation import BORDERS

DOUBLE = torch.float64
SIGMA = torch.tensor([0.7, 1.6], dtype=DOUBLE)
SIGMAS = torch.stack([SIGMA, 2 * SIGMA])
STD = torch.tensor([[0.4, 0.5], [0.6, 0.7]], dtype=DOUBLE)


@pytest.fixture
def images(seed) -> torch.Tensor:
    return torch.rand(2, 2, 6, 7, dtype=DOUBLE)


def blur_of(backend: str):
    def blur(images, sigma=SIGMA, **options):
        options = {"kernel_size": 5, "gain": 0.4, "fixation": (2.0, 3.25), **options}
        return fovblur.foveated_blur(images, sigma, backend=backend, **options)

    return blur


def tangent_of_dual(blur, images):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(blur(forward_ad.make_dual(images, images))).tangent


def loss(blur, images):
    return lambda sigma, **options: blur(images, sigma, **options).square().sum()


TRANSFORMS = {
    "jvp": lambda blur, x: func.jvp(blur, (x,), (x,))[1],
    "jvp of all": lambda blur, x: func.jvp(
        lambda x, sigma, std: blur(x, sigma, mean=0.3, std=std), (x, SIGMA, STD[0]), (x, SIGMA, STD[1])
    )[1],
    "dual": tangent_of_dual,
    "vmap": lambda blur, x: func.vmap(blur, in_dims=(1, 0))(
        torch.stack([x, 2 * x], 1), torch.stack([SIGMA, 2 * SIGMA])
    ),
    "vmap of sigma": lambda blur, x: func.vmap(lambda sigma: blur(x, sigma))(SIGMAS),
    "vmap of std": lambda blur, x: func.vmap(lambda std: blur(x, mean=0.3, std=std))(STD),
    "vmap of uint8": lambda blur, x: func.vmap(lambda x: blur(x, SIGMA.float(), mean=0.3, std=0.2))(
        (torch.stack([x, x / 2]) * 255).to(torch.uint8)
    ),
    "grad of vmap": lambda blur, x: func.grad(
        lambda sigma: func.vmap(lambda x: blur(x, sigma))(torch.stack([x, 2 * x])).square().sum()
    )(SIGMA),
    "vmap of grad": lambda blur, x: func.vmap(func.grad(loss(blur, x)))(SIGMAS),
    "vmap of grad with std": lambda blur, x: func.vmap(
        func.grad(lambda x, std: blur(x, std=std).square().sum()), (None, 0)
    )(x, STD),
    "jacrev": lambda blur, x: func.jacrev(lambda sigma: blur(x, sigma))(SIGMA),
    "jacfwd": lambda blur, x: func.jacfwd(blur)(x),
    "hessian": lambda blur, x: func.hessian(loss(blur, x))(SIGMA),
    "jacrev of jacrev": lambda blur, x: func.jacrev(func.jacrev(loss(blur, x)))(SIGMA),
    "grad of jvp": lambda blur, x: func.grad(
        lambda sigma: func.jvp(lambda x: blur(x, sigma), (x,), (x,))[1].square().sum()
    )(SIGMA),
}


OPTIONS = {
    "defaults": {},
    "sizes of axes": {"kernel_size": (3, 7), "border": "symmetric"},
    "a map": {"weight": torch.linspace(0, 1, 42, dtype=DOUBLE).reshape(6, 7), "fixation": None, "border": "replicate"},
    "fixations": {"fixation": [[[1.0, 2.25], [4.5, 5.0]]] * 2, "border": "circular"},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_torch_func(name, options, images):
    blurs = [functools.partial(blur_of(backend), **OPTIONS[options]) for backend in ("cpu", "reference")]
    ours, expected = (TRANSFORMS[name](blur, images) for blur in blurs)
    assert expected.any() and relative_error(ours, expected) < (1e-5 if name == "vmap of uint8" else 1e-12)


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("batch", [0, 2])
def test_vmap_over_any_number_of_calls_and_images(count, batch):
    images, sigmas, stds = torch.rand(batch, 2, 6, 7), torch.ones(count, batch), torch.ones(count, 2)

    def blur(sigma, std):
        return fovblur.gaussian_blur(images, sigma), fovblur.foveated_blur(images, sigma, std=std)

    for blurred in func.vmap(blur)(sigmas, stds):
        assert blurred.shape == (count, *images.shape)
    gradients = func.vmap(func.grad(lambda *at: blur(*at)[1].sum(), (0, 1)))(sigmas, stds)
    assert [each.shape for each in gradients] == [sigmas.shape, stds.shape]


@pytest.mark.parametrize("falloff", ["exp", "quadratic", "brachistochrone"])
def test_first_and_second_derivatives_of_every_parameter(falloff, seed):
    images, sigma, gain = torch.rand(2, 2, 5, 4, dtype=DOUBLE), SIGMA.clone(), torch.tensor([0.4, 0.9], dtype=DOUBLE)
    fixation, mean = torch.tensor([[2.3, 3.25], [1.2, 2.1]], dtype=DOUBLE), torch.tensor([0.1, 0.2], dtype=DOUBLE)
    inputs = [each.requires_grad_() for each in (images, sigma, gain, fixation, mean, STD[0].clone())]

    def blur(images, sigma, gain, fixation, mean, std):
        options = {"kernel_size": 5, "gain": gain, "fixation": fixation, "mean": mean, "std": std}
        return fovblur.foveated_blur(images, sigma, falloff=falloff, backend="cpu", **options)

    assert torch.autograd.gradcheck(blur, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(blur, inputs, fast_mode=True)


OF_AXES = torch.tensor([[0.7, 1.6], [2.0, 0.9]], dtype=DOUBLE)
LEARNT = {  # in addition to the images and the gain
    "axes": {"sigma": OF_AXES},
    "a map": {"sigma": SIGMA, "weight": torch.linspace(0.1, 0.9, 20, dtype=DOUBLE).reshape(5, 4)},
    "axes and maps": {"sigma": OF_AXES, "weight": torch.linspace(0.1, 0.9, 40, dtype=DOUBLE).reshape(2, 1, 5, 4)},
    "fixations": {"sigma": SIGMA, "fixation": torch.tensor([[[1.3, 0.25], [3.2, 2.6]]] * 2, dtype=DOUBLE)},
    "tables": {},
}


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("border", BORDERS)
def test_derivatives_of_every_option(border, name, seed):
    """Tables have no derivative of sigma; forward mode and batches of gradients are looked at, too."""
    learnt = {"images": torch.rand(2, 2, 5, 4, dtype=DOUBLE), "gain": torch.tensor([0.4, 0.9], dtype=DOUBLE)}
    learnt |= LEARNT[name]
    sizes = {"kernel_size": (5, 3), "rule": "opencv"} if name == "tables" else {"kernel_size": torch.tensor([5, 13])}

    def blur(*values):
        return fovblur.foveated_blur(**dict(zip(learnt, values)), **sizes, border=border, std=0.5, backend="cpu")

    inputs = [value.clone().requires_grad_() for value in learnt.values()]
    assert torch.autograd.gradcheck(blur, inputs, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(blur, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_gradients_of_fixation_mean_and_std(implementation, dtype, seed):
    images, weight = torch.rand(2, 3, 9, 11), torch.rand(2, 3, 9, 11)
    images = (images * 255).to(torch.uint8) if dtype == torch.uint8 else images
    fixation, statistics = torch.tensor([[2.0, 3.0], [5.0, 4.5]]), torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]])

    def gradients(backend, device, dtype):
        leaves = [each.to(device, dtype).requires_grad_() for each in (fixation, *statistics)]
        x = images.to(device) if images.dtype == torch.uint8 else images.to(device, dtype)
        options = dict(zip(("fixation", "mean", "std"), leaves))
        y = fovblur.foveated_blur(x, 2.0, kernel_size=7, gain=0.8, backend=backend, **options)
        return [each.cpu() for each in torch.autograd.grad((y * weight.to(y)).sum(), leaves)]

    ours = gradients(implementation.backend, implementation.device, torch.float32)
    expected = gradients("reference", "cpu", DOUBLE)
    half_products = dtype == torch.uint8 and implementation.backend == "triton"
    for one, other in zip(ours, expected):
        assert relative_error(one, other) < (2e-3 if half_products else 1e-4)


def test_compiled_gradients_of_every_parameter(seed):
    images, sigma = torch.rand(2, 3, 9, 11), torch.tensor([1.2, 2.0], requires_grad=True)
    options = {
        "fixation": torch.tensor([2.0, 3.0]),
        "mean": torch.tensor([0.1, 0.2, 0.3]),
        "std": torch.full((3,), 0.5),
    }
    leaves = [sigma, *(each.requires_grad_() for each in options.values())]
    blur = lambda images: fovblur.foveated_blur(images, sigma, **options).square().sum()  # noqa: E731
    ours, expected = (torch.autograd.grad(f(images), leaves) for f in (torch.compile(blur, fullgraph=True), blur))
    for one, other in zip(ours, expected):
        torch.testing.assert_close(one, other)
