"""Weight maps in place of the falloff, and several fixations of an image."""

import pytest
import torch
from backends_under_test import exact
from comparisons import assert_close, option_gradients, relative_error

import fovblur


def test_a_map_is_blended_as_written(implementation, seed):
    images, weight = torch.rand(2, 2, 33, 37), torch.rand(2, 33, 37)
    ours = implementation.foveated_blur(images, 2.0, gain=0.8, weight=weight)
    w = 0.8 * weight.double()[:, None]
    blurred = fovblur.gaussian_blur(images.double(), 2.0, backend="reference")
    assert relative_error(ours, w * images + (1 - w) * blurred) < 1e-5


def test_maps_of_any_shape(seed):
    images, weight = torch.rand(3, 2, 8, 9), torch.rand(8, 9)
    shared = fovblur.foveated_blur(images, 1.0, weight=weight)
    for same in (weight.expand(3, 8, 9), weight.expand(3, 1, 8, 9).clone(), weight.numpy(), weight.T.contiguous().T):
        assert torch.equal(shared, fovblur.foveated_blur(images, 1.0, weight=same))
    mask = weight > 0.5
    expected = fovblur.foveated_blur(images, 1.0, weight=mask.float())
    assert torch.equal(fovblur.foveated_blur(images, 1.0, weight=mask), expected)


def test_an_acuity_map_is_the_falloff(implementation, seed):
    images = torch.rand(2, 1, 20, 21)
    fixation = torch.tensor([[3.0, 4.0], [15.0, 2.0]])
    falloff = implementation.foveated_blur(images, 3.0, fixation=fixation, gain=0.9)
    several = implementation.foveated_blur(images, 3.0, fixation=fixation[:, None].expand(2, 2, 2), gain=0.9)
    assert relative_error(several, falloff.double()) < (2e-3 if implementation.emulated else 1e-5)


def test_the_nearest_of_several_fixations_is_sharpest(seed):
    images = torch.rand(2, 1, 20, 30)
    fixations = torch.tensor([[5.0, 5.0], [10.0, 25.0]])
    both = fovblur.foveated_blur(images, 3.0, fixation=fixations.expand(2, 2, 2), gain=1.0, falloff="linear")
    one, other = (fovblur.foveated_blur(images, 3.0, fixation=each, gain=1.0, falloff="linear") for each in fixations)
    blurred = fovblur.gaussian_blur(images, 3.0)
    weights = [(each - blurred) / (images - blurred) for each in (both, one, other)]
    torch.testing.assert_close(weights[0], torch.maximum(*weights[1:]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("border", ["reflect", "replicate", "circular"])
def test_gradients_under_a_map(implementation, border, seed):
    images, grad, weight = torch.rand(2, 2, 34, 37), torch.rand(2, 2, 34, 37) - 0.3, torch.rand(2, 34, 37)
    options = {"weight": weight, "border": border}
    sigma, gain = torch.tensor([1.5, 3.0]), torch.tensor([0.3, 0.9])
    assert_close(*option_gradients(implementation, images, sigma, gain, grad, **options), 2e-5, 4 * grad)


def test_maps_and_fixations_are_learnt(implementation, seed):
    images = torch.rand(2, 2, 9, 10, device=implementation.device)
    options = {"sigma": 1.3, "gain": 0.7, "mean": [0.2, 0.3], "std": 0.5}
    weight = torch.rand(2, 9, 10, device=implementation.device, requires_grad=True)
    fixation = torch.rand(2, 3, 2, device=implementation.device) * 8
    fixation.requires_grad_()

    def loss(backend: str, **learnt) -> torch.Tensor:
        return fovblur.foveated_blur(images, backend=backend, **options, **learnt).square().sum()

    for name, leaf in (("weight", weight), ("fixation", fixation)):
        (ours,) = torch.autograd.grad(loss(implementation.backend, **{name: leaf}), leaf)
        (expected,) = torch.autograd.grad(loss("reference", **{name: leaf}), leaf)
        assert relative_error(ours, expected.double()) < 1e-4


def test_under_weight_0_an_infinite_pixel_is_blurred_and_not_nan(implementation):
    images, weight = torch.ones(1, 1, 12, 12), torch.zeros(12, 12)
    images[..., 6, 6] = torch.inf
    ours = implementation.foveated_blur(images, 1.0, kernel_size=3, weight=weight)
    assert not ours.isnan().any() and ours.isinf().sum() == 9


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"weight": torch.rand(8, 7)}, ValueError, r"weight has shape \(8, 7\); it must be \(8, 8\), \(2, 8, 8\) or"),
        ({"weight": torch.rand(1, 1)}, ValueError, "weight has shape"),
        ({"weight": 0.5}, TypeError, "weight is a float; it must be a tensor or an array"),
        ({"weight": torch.full((8, 8), 255)}, ValueError, r"weight\[0, 0, 0\] is 255; it must be within \[0, 1\]"),
        ({"weight": torch.rand(8, 8), "fixation": (1, 2)}, ValueError, "weight stands in place of the falloff"),
        ({"fixation": torch.rand(2, 0, 2)}, ValueError, "with no fixation"),
        ({"fixation": torch.full((2, 2, 2), torch.nan)}, ValueError, "fixation.* is nan"),
    ],
)
def test_wrong_maps_and_fixations(wrong, error, message):
    with pytest.raises(error, match=message):
        fovblur.foveated_blur(torch.rand(2, 3, 8, 8), 1.0, **wrong)


def test_exact_weights_of_fixations(seed):
    images, fixation = torch.rand(1, 1, 7, 8), torch.tensor([[[1.0, 2.0], [5.0, 6.0]]])
    ours = fovblur.foveated_blur(images, 2.0, fixation=fixation, gain=0.6)
    assert relative_error(ours, exact(images, 2.0, fixation=fixation, gain=0.6)) < 1e-5
