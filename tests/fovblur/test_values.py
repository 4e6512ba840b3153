"""How numbers are given: as numbers, lists, arrays or tensors, on any default device, with their gradients."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fovblur
from fovblur.foveated_blur import validation

IMAGES = torch.rand(2, 3, 12, 10)


def test_lists_are_as_exact_as_the_images():
    images = IMAGES.double()
    for given in ({"sigma": [0.7, 1.3]}, {"sigma": 1.1, "fixation": [[0.7, 5.3], [2.1, 3.3]]}):
        exact = {name: torch.tensor(value, dtype=torch.float64) for name, value in given.items()}
        assert torch.equal(fovblur.foveated_blur(images, **given), fovblur.foveated_blur(images, **exact))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_unsigned_arrays(dtype):
    given = fovblur.gaussian_blur(IMAGES, kernel_size=np.array([3, 5], dtype))
    assert torch.equal(given, fovblur.gaussian_blur(IMAGES, kernel_size=[3, 5]))


def test_arrays_that_run_backwards_or_are_read_only(recwarn):
    sigma, weight = np.array([1.0, 2.0]), np.random.rand(12, 10)
    given = fovblur.foveated_blur(IMAGES, sigma[::-1], weight=weight[:, ::-1])
    expected = fovblur.foveated_blur(IMAGES, [2.0, 1.0], weight=torch.from_numpy(weight).flip(1))
    assert torch.equal(given, expected)
    sigma.flags.writeable = False
    fovblur.gaussian_blur(IMAGES, sigma)
    assert not recwarn


def test_a_tuple_of_tensors_is_y_and_x():
    expected = fovblur.gaussian_blur(IMAGES, (2.0, 0.5))
    along_y = torch.tensor(2.0, requires_grad=True)
    for along_x in (0.5, torch.tensor(0.5)):
        blurred = fovblur.gaussian_blur(IMAGES, (along_y, along_x))
        assert torch.allclose(blurred, expected)
        (gradient,) = torch.autograd.grad(blurred.square().sum(), along_y)
        assert gradient < 0
    sizes = (torch.tensor(9), torch.tensor(3))
    assert torch.equal(
        fovblur.gaussian_blur(IMAGES, kernel_size=sizes), fovblur.gaussian_blur(IMAGES, kernel_size=(9, 3))
    )


@pytest.mark.parametrize(
    "given",
    [
        {"gain": [torch.tensor(0.5, requires_grad=True), 0.2]},
        {"fixation": [[torch.tensor(0.5, requires_grad=True), 2.0], [1.0, 2.0]]},
        {"fixation": (torch.tensor(3.0, requires_grad=True), torch.tensor(4.0))},
        {"mean": (torch.tensor(0.5, requires_grad=True), 0.5, 0.5)},
    ],
)
def test_a_list_does_not_lose_gradients(given):
    (name,) = given
    with pytest.raises(TypeError, match=rf"{name} is .*; it must be .*, .*; join tensors with torch.stack"):
        fovblur.foveated_blur(IMAGES, 1.0, **given)


@pytest.mark.parametrize("name", ["sigma", "gain", "fixation", "mean"])
def test_what_is_no_number_is_named(name):
    for value in (np.array([True, False, True]), torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])):
        with pytest.raises(TypeError, match=f"{name} (is|must)"):
            fovblur.foveated_blur(IMAGES, **{"sigma": 1.0, name: value})
    with pytest.raises(TypeError, match=f"^{name} is") as raised:
        fovblur.foveated_blur(IMAGES, **{"sigma": 1.0, name: ["x", "y"]})
    assert "stack" not in str(raised.value)


def test_pairs_of_every_image_in_sequences():
    expected = fovblur.gaussian_blur(IMAGES, torch.tensor([[2.0, 1.0], [0.5, 3.0]]))
    for pairs in (((2.0, 1.0), (0.5, 3.0)), ([2.0, 1.0], [0.5, 3.0]), [[2.0, 1.0], [0.5, 3.0]]):
        assert torch.equal(fovblur.gaussian_blur(IMAGES, pairs), expected)


def test_the_largest_decay_keeps_the_fixation_sharp(implementation):
    images = torch.rand(1, 1, 9, 8)
    blurred = implementation.foveated_blur(images, 2.0, gain=1.0, decay=validation.LARGEST_DECAY)
    torch.testing.assert_close(blurred[0, 0, 4, 4], images[0, 0, 4, 4])
    assert (blurred != images).any()


def test_lists_of_tensors():
    pairs = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    given = fovblur.foveated_blur(IMAGES, 1.0, fixation=pairs, mean=(torch.tensor(0.5),) * 3)
    assert torch.equal(given, fovblur.foveated_blur(IMAGES, 1.0, fixation=torch.stack(pairs), mean=0.5))


def test_another_default_device():
    given = {"sigma": [1.0, 2.0], "fixation": [[1.0, 2.0], [3.0, 4.0]], "mean": np.array([0.1, 0.2, 0.3])}
    expected = fovblur.foveated_blur(IMAGES, **given)
    with torch.device("meta"):
        blurred = fovblur.foveated_blur(IMAGES, **given)
        (first, _) = fovblur.gaussian_blur(list(IMAGES), 1.0)
    assert torch.equal(blurred, expected)
    assert torch.equal(first, fovblur.gaussian_blur(IMAGES, 1.0)[0])


def test_lists_beside_fake_tensors():
    with FakeTensorMode():
        images = torch.rand(2, 3, 12, 10)
        assert fovblur.foveated_blur(images, [1.0, 2.0]).shape == images.shape
        assert fovblur.foveated_blur([images[0], images[1, :, :8]], 1.0)[1].shape == (3, 8, 10)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_compiled_for_floats_that_vary(backend):
    blur = torch.compile(
        lambda sigma: fovblur.gaussian_blur(IMAGES, sigma, backend=backend), fullgraph=True, backend="eager"
    )
    for sigma in (1.0, 2.0, 3.5):
        assert torch.allclose(blur(sigma), fovblur.gaussian_blur(IMAGES, sigma), atol=1e-6)


def test_compiled_with_an_array_of_means_and_with_a_list():
    def blur(images, mean, backend):
        first, *_ = fovblur.gaussian_blur([*images], 1.0, backend=backend)
        return fovblur.foveated_blur(images, 1.0, mean=mean), first

    for backend in (None, "reference"):
        arguments = IMAGES, np.array([0.1, 0.2, 0.3]), backend
        expected = blur(*arguments)
        for ours, theirs in zip(torch.compile(blur, fullgraph=True, backend="eager")(*arguments), expected):
            assert torch.allclose(ours, theirs, atol=1e-6)


def test_constants_that_another_thread_clears(monkeypatch):
    class Cleared(dict):
        """A cache that is emptied as soon as one has looked into it."""

        def __contains__(self, key):
            found = super().__contains__(key)
            self.clear()
            return found

        def get(self, key):
            found = super().get(key)
            self.clear()
            return found

    monkeypatch.setattr(validation, "_constants", Cleared())
    for _ in range(2):
        assert validation.constant((1.0,), torch.float32, IMAGES) == 1.0
