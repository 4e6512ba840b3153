"""Modules, transforms, and the adapters for users of torchvision and kornia."""

import importlib
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import fovblur
from fovblur.adapters.kornia import gaussian_blur2d
from fovblur.adapters.torchvision import gaussian_blur
from fovblur.transforms import FoveatedBlur, FoveatedBlur2d, GaussianBlur2d, RandomFoveatedBlur


def test_modules_equal_the_functions(seed):
    images = torch.rand(3, 2, 20, 21)
    sigma, gain = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.5, 1.0])
    module = FoveatedBlur2d(sigma, gain=gain, fixation=(3, 4), falloff="linear", mean=0.5, std=0.2)
    expected = fovblur.foveated_blur(images, sigma, gain=gain, fixation=(3, 4), falloff="linear", mean=0.5, std=0.2)
    assert torch.equal(module(images), expected)
    assert torch.equal(GaussianBlur2d(kernel_size=5)(images), fovblur.gaussian_blur(images, kernel_size=5))
    assert repr(GaussianBlur2d(2.0, kernel_size=5)) == "GaussianBlur2d(sigma=2.0, kernel_size=5, border=reflect)"
    assert "sigma=tensor(3,)" in repr(module) and set(module.state_dict()) == {"sigma", "gain"}


def test_modules_take_borders_axes_rules_and_maps(seed):
    images, weight = torch.rand(2, 3, 8, 9), torch.rand(8, 9)
    options = {"kernel_size": (5, 7), "border": "circular", "rule": "opencv"}
    assert torch.equal(GaussianBlur2d(**options)(images), fovblur.gaussian_blur(images, **options))
    module = FoveatedBlur2d(**options, weight=weight)
    assert torch.equal(module(images), fovblur.foveated_blur(images, weight=weight, **options))
    assert set(module.state_dict()) == {"weight"}
    transform = FoveatedBlur((1.0, 2.0), border="replicate")
    assert torch.equal(transform(images[0]), fovblur.foveated_blur(images[0], (1.0, 2.0), border="replicate"))


def test_a_module_learns_sigma_and_gain(seed):
    images = torch.rand(4, 1, 24, 24)
    target = fovblur.foveated_blur(images, 3.0, kernel_size=25, gain=0.8)
    module = FoveatedBlur2d(nn.Parameter(torch.tensor(1.5)), kernel_size=25, gain=nn.Parameter(torch.tensor(0.3)))
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(250):
        optimiser.zero_grad()
        (module(images) - target).square().mean().backward()
        optimiser.step()
    assert module.sigma.item() == pytest.approx(3.0, abs=0.1) and module.gain.item() == pytest.approx(0.8, abs=0.03)


def test_a_bounded_module_learns_all_three(seed):
    images = torch.rand(6, 1, 24, 24)
    target = fovblur.foveated_blur(images, 3.0, kernel_size=25, gain=0.8, fixation=(8, 14))
    module = FoveatedBlur2d(
        1.5, kernel_size=25, gain=0.3, fixation=(11.0, 11.0), learnable=("sigma", "gain", "fixation")
    )
    assert module.sigma.item() == pytest.approx(1.5) and module.gain.item() == pytest.approx(0.3)
    bounded, fixation = (module.parametrizations[name].original for name in ("gain", "fixation"))
    others = [module.parametrizations.sigma.original, bounded]
    optimiser = torch.optim.Adam([{"params": others, "lr": 0.05}, {"params": [fixation], "lr": 0.2}])
    for _ in range(300):
        optimiser.zero_grad()
        (module(images) - target).square().mean().backward()
        optimiser.step()
    assert module.sigma.item() == pytest.approx(3.0, abs=0.1) and module.gain.item() == pytest.approx(0.8, abs=0.03)
    assert module.fixation.tolist() == pytest.approx([8, 14], abs=0.3)
    again = FoveatedBlur2d(1.0, kernel_size=25, fixation=(0, 0), learnable=("sigma", "gain", "fixation"))
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(images), module(images))


def test_no_step_leads_a_bounded_module_out_of_its_ranges(seed):
    images, starts = torch.rand(3, 1, 9, 9), {"sigma": torch.tensor([1.0, 2.0, 3.0]), "gain": 0.5, "fixation": (4, 4)}
    module = FoveatedBlur2d(**starts, kernel_size=9, learnable=tuple(starts))
    free = FoveatedBlur2d(kernel_size=9, gain=nn.Parameter(torch.tensor(0.5)))
    for blur, steps in ((module, 4), (free, 1)):
        optimiser = torch.optim.SGD(blur.parameters(), lr=1e12)
        for _ in range(steps):
            (torch.randn(images.shape) * blur(images)).sum().backward()
            optimiser.step()
    assert (module.sigma >= 0).all() and (module.sigma <= 8191).all() and 0 <= module.gain <= 1
    with pytest.raises(ValueError, match=r"gain.* is .*; it must be within \[0, 1\]"):
        free(images)


@pytest.mark.parametrize("given", [{"sigma": (2.0, 0.5)}, {"kernel_size": (9, 3)}], ids=str)
@pytest.mark.parametrize("shape", [(3, 9, 8), (2, 3, 9, 8), (3, 3, 9, 8), (2, 4, 3, 9, 8)], ids=str)
def test_a_pair_is_learnt_along_y_and_x(shape, given, seed):
    images, module = torch.rand(shape), FoveatedBlur2d(**given, learnable="sigma")
    blurred = module(images)
    torch.testing.assert_close(blurred, fovblur.foveated_blur(images, **given))
    blurred.square().sum().backward()
    assert (module.parametrizations.sigma.original.grad != 0).all()


@pytest.mark.parametrize("module", [FoveatedBlur2d, GaussianBlur2d])
def test_modules_refuse_a_tuple_of_parameters_that_they_would_not_learn(module):
    with pytest.raises(TypeError, match="sigma is a tuple of tensors, which a module does not learn; pass one"):
        module((nn.Parameter(torch.tensor(2.0)), 1.0))
    images = torch.rand(2, 3, 9, 8)
    torch.testing.assert_close(module((torch.tensor(2.0), 1.0))(images), module((2.0, 1.0))(images))


def test_modules_take_a_map_for_each_image_of_a_list(seed):
    images, maps = [torch.rand(3, 9, 8), torch.rand(3, 5, 12)], [torch.rand(9, 8), torch.rand(5, 12)]
    blurred = FoveatedBlur2d(2.0, weight=maps)(images)
    torch.testing.assert_close(blurred, fovblur.foveated_blur(images, 2.0, weight=maps))


@pytest.mark.parametrize("given", [{"sigma": ((2.0, 0.5), (1.0, 3.0))}, {"kernel_size": ((9, 3), (5, 7))}], ids=str)
def test_pairs_of_every_image_are_learnt(given, seed):
    images, module = torch.rand(2, 3, 9, 8), FoveatedBlur2d(**given, learnable="sigma")
    torch.testing.assert_close(module(images), fovblur.foveated_blur(images, **given))


def test_the_range_of_a_learnt_sigma():
    assert FoveatedBlur2d(8160.0, kernel_size=3, learnable="sigma").sigma == 8160
    with pytest.raises(ValueError, match="sigma is 8170.0; it is learnt between 0 and 8160"):
        FoveatedBlur2d(8170.0, learnable="sigma")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_learnt_parameters_of_half_types_stay_within_their_ranges(dtype, seed):
    images = torch.rand(2, 3, 9, 8).to(dtype)
    module = FoveatedBlur2d(2.0, fixation=(3.0, 4.0), learnable=("sigma", "gain", "fixation")).to(dtype)
    torch.testing.assert_close(module(images), fovblur.foveated_blur(images, 2.0, fixation=(3.0, 4.0)))
    with torch.no_grad():
        module.parametrizations.sigma.original.fill_(20_000)
        module.parametrizations.fixation.original.fill_(torch.inf)
    assert module(images).isfinite().all()


def test_modules_are_made_on_the_meta_device(seed):
    with torch.device("meta"):
        learnt = FoveatedBlur2d(2.0, gain=0.3, learnable=("sigma", "gain"))
        assert "sigma=tensor()" in repr(learnt)
    images, original = torch.rand(2, 3, 9, 8), FoveatedBlur2d(2.0, gain=0.3, learnable=("sigma", "gain"))
    learnt = learnt.to_empty(device="cpu")
    learnt.load_state_dict(original.state_dict())
    assert torch.equal(learnt(images), original(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0.0, "learnable": ["sigma"]}, "sigma is 0.0; it is learnt between 0 and 8160"),
        ({"sigma": 1.0, "gain": 1.0, "learnable": ["gain"]}, "gain is 1.0; it is learnt from between 0 and 1"),
        ({"sigma": 1.0, "learnable": ["fixation"]}, "learnable has 'fixation'; .* from a value that is given"),
        ({"sigma": 1.0, "learnable": ["decay"]}, "learnable has 'decay'; learnt are sigma, gain and fixation"),
    ],
)
def test_starts_of_learnt_parameters_must_be_within_their_ranges(arguments, message):
    with pytest.raises(ValueError, match=message):
        FoveatedBlur2d(**arguments)
    assert FoveatedBlur2d(kernel_size=51, learnable=["sigma"]).sigma.item() == pytest.approx(8.0)
    several = FoveatedBlur2d(kernel_size=[51, 57], learnable="sigma").sigma
    torch.testing.assert_close(several, torch.tensor([8.0, 8.9]))
    assert FoveatedBlur2d(2.0, learnable=["sigma", "sigma"]).sigma.item() == pytest.approx(2.0)


@pytest.mark.parametrize("shape", [(3, 20, 30), (2, 3, 20, 30), (2, 4, 3, 20, 30)], ids=str)
@pytest.mark.parametrize("sizes", [([9, 9], [2.0, 2.0]), ([5, 9], [0.7, 2.5]), ([7, 7], None), (5, 1.1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int16, torch.int64, torch.bool], ids=str)
def test_torchvision_adapter_equals_torchvision(shape, sizes, dtype, seed):
    images = torch.rand(shape) if dtype == torch.float32 else (torch.rand(shape) * 255 - 40 * dtype.is_signed).to(dtype)
    expected, ours = (blur(images, *sizes) for blur in (F.gaussian_blur, gaussian_blur))
    assert ours.dtype == expected.dtype and ours.shape == expected.shape
    assert (ours.double() - expected.double()).abs().max() <= (1e-5 if dtype == torch.float32 else 1)


def test_torchvision_adapter_takes_tensors_along_x_and_y(seed):
    images, sigma = torch.rand(2, 3, 20, 30), [torch.tensor(2.0), torch.tensor(0.5)]
    torch.testing.assert_close(gaussian_blur(images, 9, sigma), F.gaussian_blur(images, 9, [2.0, 0.5]))


def test_integers_of_32_bits_are_blurred_exactly():
    images = torch.full((3, 8, 9), 2**32 - 1).to(torch.uint32)
    assert torch.equal(gaussian_blur(images, 5), images)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_numbers_that_are_not_blurred_are_refused(dtype):
    images = torch.rand(1, 3, 8, 9).to(dtype)
    with pytest.raises(
        TypeError, match=f"inpt is {dtype}; it must hold integers or booleans, or be one of uint8, float16"
    ):
        gaussian_blur(images, 5)
    with pytest.raises(TypeError, match=f"images is {dtype}; it must be one of"):
        gaussian_blur2d(images, 5, (1.0, 1.0))


@pytest.mark.parametrize("value", ["35", None, np.array([3, 5])], ids=str)
def test_adapters_name_what_is_no_size(value):
    with pytest.raises(TypeError, match="kernel_size is .*; it must be one number or two, along x and along y"):
        gaussian_blur(torch.rand(3, 8, 9), value)


@pytest.mark.parametrize("value", [3.0, (1.0,), (1.0, 2.0, 3.0), ("a", "b"), ("1", "2"), {1.0, 2.0}], ids=str)
def test_random_blurs_take_a_least_and_a_largest(value):
    for name in ("sigma", "gain"):
        with pytest.raises(ValueError, match=rf"{name} is .*; it must be \(least, largest\) within"):
            RandomFoveatedBlur(**{name: value})


@pytest.mark.parametrize("value", [1.0, None, (1.0,), (1.0, 2.0, 3.0)], ids=str)
def test_kornia_adapter_takes_two_numbers(value):
    images, message = torch.rand(1, 3, 8, 9), r".* is .*; it must be two numbers, along y and along x"
    with pytest.raises(ValueError, match=f"sigma{message}"):
        gaussian_blur2d(images, 5, value)
    with pytest.raises(ValueError, match=f"kernel_size{message}"):
        gaussian_blur2d(images, value, (1.0, 1.0))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (3, 0, 8), (0, 8, 8)], ids=str)
def test_torchvision_adapter_takes_images_without_elements(shape):
    images = torch.empty(shape)
    assert gaussian_blur(images, 3).shape == F.gaussian_blur(images, 3).shape == shape


def test_torchvision_adapter_rounds_uint8_once_where_the_axes_differ(seed):
    images = (torch.rand(3, 20, 30) * 255).to(torch.uint8)
    exact = fovblur.foveated_blur(images.double(), (2.5, 0.7), kernel_size=(9, 5), gain=0)
    assert (gaussian_blur(images, [5, 9], [0.7, 2.5]).double() - exact).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("sizes", [([9, 9], [2.0, 2.0]), ([5, 9], [0.7, 2.5])], ids=str)
def test_torchvision_adapter_keeps_the_kind_of_image(sizes, seed):
    pixels = (torch.rand(3, 20, 30) * 255).to(torch.uint8)
    pil = F.to_pil_image(pixels)
    for image in (tv_tensors.Image(pixels), tv_tensors.Video(pixels[None]), pil):
        expected, ours = (blur(image, *sizes) for blur in (F.gaussian_blur, gaussian_blur))
        assert type(ours) is type(expected)
        arrays = [F.pil_to_tensor(each) if image is pil else each for each in (ours, expected)]
        arrays = [each.as_subclass(torch.Tensor).double().numpy() for each in arrays]
        assert np.abs(arrays[0] - arrays[1]).max() <= 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_adapters_keep_the_memory_format(memory_format, seed):
    images = torch.rand(2, 3, 12, 10).contiguous(memory_format=memory_format)
    for sizes in (((5, 9), (0.7, 2.5)), ((5, 5), (1.0, 1.0))):
        for blurred in (gaussian_blur2d(images, *sizes), gaussian_blur(images, list(sizes[0]), list(sizes[1]))):
            assert blurred.is_contiguous(memory_format=memory_format) and blurred.stride() == images.stride()


OF_EACH_IMAGE = [torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[1.0, 0.5], [2.0, 1.5]])]
SIZES = [((9, 9), (2.0, 2.0)), (7, (1.5, 1.5)), ((5, 11), (0.8, 2.0)), *zip([(9, 9), (9, 7)], OF_EACH_IMAGE)]


@pytest.mark.parametrize("border", ["reflect", "replicate", "constant", "circular"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_kornia_adapter_equals_kornia(sizes, border, seed):
    import kornia

    images = torch.rand(2, 3, 20, 25)
    expected, ours = (blur(images, *sizes, border) for blur in (kornia.filters.gaussian_blur2d, gaussian_blur2d))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", SIZES[:3], ids=str)
def test_kornia_adapter_gives_float32_for_integers_and_takes_its_names_of_borders(sizes, seed):
    import kornia

    images = (torch.rand(2, 3, 20, 25) * 255).to(torch.uint8)
    whole = sizes[0], tuple(float(round(each)) for each in sizes[1])  # kornia makes sigma an integer, too
    expected, ours = (blur(images, *whole, "REFLECT") for blur in (kornia.filters.gaussian_blur2d, gaussian_blur2d))
    assert ours.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(ours, gaussian_blur2d(images.float(), *whole))


def test_kornia_adapter_has_kornias_gradients(seed):
    import kornia

    images = torch.rand(2, 1, 12, 13, requires_grad=True)
    sigma = torch.tensor([[1.0, 1.0], [2.0, 1.5]], requires_grad=True)
    weight = torch.rand(2, 1, 12, 13)
    expected, ours = (
        torch.autograd.grad((blur(images, (9, 9), sigma) * weight).sum(), (images, sigma))
        for blur in (kornia.filters.gaussian_blur2d, gaussian_blur2d)
    )
    for one, other in zip(ours, expected):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_adapters_refuse_unsupported_arguments():
    with pytest.raises(ValueError, match="border_type is 'mirror'; it must be one of reflect, replicate, constant"):
        gaussian_blur2d(torch.rand(1, 1, 8, 8), 3, (1.0, 1.0), "mirror")
    with pytest.raises(ValueError, match=r"sigma has shape \(3, 2\); it must be \(1, 2\)"):
        gaussian_blur2d(torch.rand(1, 1, 8, 8), 3, torch.rand(3, 2))
    with pytest.raises(TypeError, match="input is a int; it must be a torch.Tensor"):
        gaussian_blur2d(1, 3, (1.0, 1.0))
    with pytest.raises(TypeError, match="inpt is a str"):
        gaussian_blur("image.png", 3)
    with pytest.raises(ValueError, match=r"inpt has shape \(8, 8\)"):
        gaussian_blur(torch.rand(8, 8), 3)
    with pytest.raises(TypeError, match="inpt is a Mask"):
        gaussian_blur(tv_tensors.Mask(torch.ones(8, 8)), 3)


def test_transform_takes_every_kind_of_image(seed):
    array = (np.random.rand(24, 20, 3) * 255).astype(np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    transform = FoveatedBlur(kernel_size=9, gain=0.7, fixation=(5, 6))
    expected = fovblur.foveated_blur(tensor[None], kernel_size=9, gain=0.7, fixation=(5, 6))[0]
    assert torch.equal(transform(tensor), expected)
    image = transform(tv_tensors.Image(tensor))
    assert isinstance(image, tv_tensors.Image) and torch.equal(image.as_subclass(torch.Tensor), expected)
    video = transform(tv_tensors.Video(tensor.expand(5, -1, -1, -1)))
    assert isinstance(video, tv_tensors.Video) and torch.equal(video[3].as_subclass(torch.Tensor), expected)
    pil = transform(PIL.Image.fromarray(array))
    assert isinstance(pil, PIL.Image.Image) and np.array_equal(np.array(pil), expected.permute(1, 2, 0).numpy())
    grey = transform(PIL.Image.fromarray(array[..., 0]))
    assert grey.mode == "L" and grey.size == (20, 24)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_pil_images_keep_their_mode_and_all_channels(mode, seed):
    channels = 1 if mode in "LIF" else len(mode.replace("YCbCr", "YCC"))
    pixels = np.random.rand(14, 12, channels) * 255
    kind = {"I": np.int32, "F": np.float32}.get(mode, np.uint8)
    scale = 200 if mode == "I" else 1  # beyond 8 bits
    image = F.to_pil_image((pixels * scale).astype(kind), mode=mode)
    blurred = FoveatedBlur(sigma=1.5, kernel_size=5, gain=0)(image)
    expected = F.gaussian_blur(image, [5, 5], [1.5, 1.5])
    assert blurred.mode == expected.mode == mode
    assert np.abs(np.array(blurred, np.float64) - np.array(expected, np.float64)).max() <= 1


@pytest.mark.parametrize("mode", ["1", "P", "PA", "I;16"])
def test_pil_images_without_channels_to_blur_are_refused(mode):
    with pytest.raises(ValueError, match=f"a PIL image of mode {mode} has no channels to blur"):
        FoveatedBlur(1.0)(PIL.Image.new(mode, (8, 6)))


class Gaze(tv_tensors.TVTensor):
    """A type of input that somebody else has made."""


def test_transform_leaves_key_points_and_unknown_types_alone(seed):
    points = tv_tensors.KeyPoints(torch.rand(3, 2), canvas_size=(24, 20))
    gaze = torch.rand(7).as_subclass(Gaze)
    image = tv_tensors.Image(torch.rand(3, 24, 20))
    for transform in (FoveatedBlur(2.0), RandomFoveatedBlur((1.0, 2.0))):
        blurred, points_after, gaze_after = transform(image, points, gaze)
        assert torch.equal(points_after, points) and torch.equal(gaze_after, gaze) and not torch.equal(blurred, image)


def test_transform_leaves_boxes_and_masks_alone(seed):
    box = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=(24, 20))
    mask = tv_tensors.Mask(torch.ones(24, 20, dtype=torch.uint8))
    image = tv_tensors.Image(torch.rand(3, 24, 20))
    blurred, box_after, mask_after = v2.Compose([FoveatedBlur(2.0)])(image, box, mask)
    assert torch.equal(box_after, box) and torch.equal(mask_after, mask) and not torch.equal(blurred, image)


def test_random_transform_draws_for_every_image_and_shares_within_a_video(seed):
    same = torch.rand(1, 3, 32, 32).expand(6, -1, -1, -1)
    transform = RandomFoveatedBlur((1.0, 6.0), gain=(0.0, 1.0), fixation="uniform")
    blurred = transform(same)
    assert len({tuple(image.flatten()[:50].tolist()) for image in blurred}) == 6
    frames = transform(tv_tensors.Video(same)).as_subclass(torch.Tensor)
    assert all(torch.equal(frame, frames[0]) for frame in frames)
    torch.manual_seed(3)
    first = transform(same)
    torch.manual_seed(3)
    assert torch.equal(first, transform(same))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FoveatedBlur(), "sigma and kernel_size are both missing"),
        (lambda: FoveatedBlur(-1.0), "sigma is -1.0"),
        (lambda: RandomFoveatedBlur((3.0, 1.0)), r"sigma is \(3.0, 1.0\); it must be \(least, largest\)"),
        (lambda: RandomFoveatedBlur(gain=(0.0, 2.0)), "gain is"),
        (lambda: RandomFoveatedBlur(fixation="corner"), "fixation is 'corner'"),
    ],
)
def test_transforms_refuse_bad_arguments_when_they_are_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_transforms_without_torchvision_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "fovblur.transforms")
    message = r"fovblur.transforms needs torchvision .*; pip install 'fovblur\[train\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        importlib.import_module("fovblur.transforms")
