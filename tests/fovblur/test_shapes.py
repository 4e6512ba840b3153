"""Any number of leading dimensions, and parameters that broadcast to them, as numbers, lists, arrays or tensors."""

import numpy as np
import pytest
import torch
from comparisons import relative_error

import fovblur

SIGMA, FIXATION = torch.tensor([0.7, 1.6, 2.5]), torch.tensor([[1.0, 2.0], [3.0, 4.0], [4.0, 2.0]])


@pytest.fixture
def clips(seed) -> torch.Tensor:
    return torch.rand(2, 3, 1, 8, 9)


def one_by_one(images, sigma, gain, fixation):
    """Blur every image by itself."""
    leading = images.shape[:-3]
    parameters = (sigma.expand(leading), gain.expand(leading), fixation.expand(*leading, 2))
    blurred = [
        fovblur.foveated_blur(
            images[at][None], parameters[0][at].item(), gain=parameters[1][at].item(), fixation=parameters[2][at]
        )[0]
        for at in np.ndindex(*leading)
    ]
    return torch.stack(blurred).view(images.shape)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_parameters_of_clips_are_per_frame_or_per_clip(backend, clips):
    gain = torch.tensor([[0.2], [0.9]])  # of every clip
    ours = fovblur.foveated_blur(clips, SIGMA, gain=gain, fixation=FIXATION, backend=backend)
    assert relative_error(ours, one_by_one(clips, SIGMA, gain, FIXATION)) < 1e-5
    per_clip = fovblur.foveated_blur(clips, 1.0, fixation=FIXATION[:2, None])
    assert torch.equal(per_clip[1], fovblur.foveated_blur(clips[1], 1.0, fixation=FIXATION[1]))


def test_one_image_needs_no_batch(clips):
    image = clips[0, 0].repeat(3, 1, 1)
    ours = fovblur.foveated_blur(image, SIGMA[1], mean=np.array([0.1, 0.2, 0.3]), std=0.5)
    assert torch.equal(ours, fovblur.foveated_blur(image[None], SIGMA[1:2], mean=[0.1, 0.2, 0.3], std=0.5)[0])


@pytest.mark.parametrize("shape", [(0, 3, 1, 4, 4), (2, 0, 1, 4, 4), (2, 3, 0, 4, 4), (0, 4, 4), (2, 1, 2, 3, 5, 6)])
def test_shapes_are_kept(shape):
    assert fovblur.gaussian_blur(torch.rand(shape), 1.0).shape == shape


def test_channels_last_frames_stay_so():
    clips = torch.rand(2, 3, 8, 9, 5).movedim(-1, -3)
    blurred = fovblur.gaussian_blur(clips, 1.0)
    assert blurred.stride() == clips.stride()
    assert torch.equal(blurred, fovblur.gaussian_blur(clips.contiguous(), 1.0))


@pytest.mark.parametrize("kind", [list, np.asarray], ids=["list", "array"])
def test_lists_and_arrays_are_taken_as_tensors(kind, clips):
    convert = lambda tensor: kind(tensor.tolist())  # noqa: E731
    frames = clips[0]
    sizes, gains = torch.tensor([3, 5, 7]), torch.tensor([0.5, 0.25, 1.0])
    expected = fovblur.foveated_blur(frames, SIGMA, kernel_size=sizes, gain=gains, fixation=FIXATION)
    given = fovblur.foveated_blur(
        frames, convert(SIGMA), kernel_size=convert(sizes), gain=convert(gains), fixation=convert(FIXATION)
    )
    assert torch.equal(given, expected)


def test_gradients_have_the_shapes_of_the_parameters(clips):
    clips = clips.double().requires_grad_()
    sigma, gain = SIGMA.double().requires_grad_(), torch.tensor([[0.2], [0.9]], dtype=torch.float64).requires_grad_()
    fixation = FIXATION.double().requires_grad_()
    blur = lambda x, s, g, f: fovblur.foveated_blur(x, s, kernel_size=5, gain=g, fixation=f)  # noqa: E731
    assert torch.autograd.gradcheck(blur, (clips, sigma, gain, fixation), fast_mode=True)


def test_compiles_with_leading_dimensions(clips):
    blur = lambda images: fovblur.foveated_blur(images, SIGMA, fixation=FIXATION)  # noqa: E731
    assert torch.equal(torch.compile(blur, fullgraph=True)(clips), blur(clips))


def test_transforms_are_an_attribute_of_the_package():
    assert fovblur.transforms.FoveatedBlur(kernel_size=5)(torch.rand(3, 8, 8)).shape == (3, 8, 8)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fovblur.nothing  # noqa: B018
