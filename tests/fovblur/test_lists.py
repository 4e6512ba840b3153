"""Lists of images of different sizes, and results written where the caller says."""

import functools
import math
from unittest import mock

import pytest
import torch
from backends_under_test import ON_GPU, run_cuda_on_host
from torch.testing._internal.two_tensor import TwoTensor

import fovblur
from fovblur.foveated_blur import native, triton_general

SIZES = [(8, 9), (20, 5), (1, 1), (33, 40), (0, 4)]


@pytest.fixture
def images(seed) -> list[torch.Tensor]:
    return [torch.rand(3, *size) for size in SIZES]


@pytest.mark.parametrize("options", [{}, {"border": "circular"}, {"mean": [0.1, 0.2, 0.3], "std": 0.5}], ids=str)
def test_a_list_gives_a_list(implementation, images, options):
    sigma, gain = [0.5, 1.0, 2.0, 3.0, 1.0], [0.1, 0.2, 0.3, 0.4, 0.5]
    on_device = [image.to(implementation.device) for image in images]
    blurred = fovblur.foveated_blur(on_device, sigma, gain=gain, backend=implementation.backend, **options)
    assert isinstance(blurred, list)
    for index, image in enumerate(images):
        alone = implementation.foveated_blur(image, sigma[index], gain=gain[index], **options)
        torch.testing.assert_close(blurred[index].cpu(), alone, rtol=1e-5, atol=1e-5)


def test_cuda_blurs_a_list_by_one_launch(images, monkeypatch, tmp_path_factory):
    run_cuda_on_host(monkeypatch, tmp_path_factory)
    module = mock.Mock(wraps=native.cuda_forward_list.args[0])
    monkeypatch.setattr(native, "cuda_forward_list", functools.partial(native.launch_forward_list, module, 0))
    weights = [torch.rand(image.shape[1:]) for image in images]
    for options in ({"fixation": torch.rand(5, 2) * 8}, {"fixation": torch.rand(5, 3, 2) * 8}, {"weight": weights}):
        blurred = fovblur.foveated_blur(images, 2.0, backend="cuda", **options)
        expected = fovblur.foveated_blur(images, 2.0, backend="reference", **options)
        torch.testing.assert_close(blurred, expected, rtol=1e-5, atol=1e-5)
    assert module.foveated_blur_list.call_count == 3 and module.foveated_blur.call_count == 0


class Counted:
    """A kernel of Triton whose launches are counted."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid):
        self.launches += 1
        return self.kernel[grid]


def test_triton_blurs_a_list_by_one_launch(images, monkeypatch):
    kernel = Counted(triton_general._list_blur_kernel)
    monkeypatch.setattr(triton_general, "_list_blur_kernel", kernel)
    on_device = [image.to("cuda" if ON_GPU else "cpu") for image in (*images, images[4])]
    blurred = fovblur.gaussian_blur(on_device, 2.0, backend="triton")
    expected = fovblur.gaussian_blur([*images, images[4]], 2.0, backend="reference")
    torch.testing.assert_close([each.cpu() for each in blurred], expected, rtol=1e-5, atol=1e-5)
    assert fovblur.gaussian_blur(on_device[4:], 2.0, backend="triton")[1].shape == (3, 0, 4)
    assert kernel.launches == 1


def test_parameters_of_the_images_of_a_list(images):
    fixation = torch.rand(5, 2) * 8
    weights = [torch.rand(image.shape[1:]) for image in images]
    blurred = fovblur.foveated_blur(images, torch.rand(5, 2), fixation=fixation)
    assert [each.shape for each in blurred] == [each.shape for each in images]
    blurred = fovblur.foveated_blur(images, 2.0, weight=weights)
    assert torch.equal(blurred[3], fovblur.foveated_blur(images[3], 2.0, weight=weights[3]))
    several = fovblur.foveated_blur(images, 2.0, fixation=torch.rand(5, 4, 2) * 8)
    assert several[1].shape == images[1].shape
    one_for_all = fovblur.gaussian_blur(images, (1.0, 2.0))
    assert torch.equal(one_for_all[3], fovblur.gaussian_blur(images[3], (1.0, 2.0)))
    assert fovblur.gaussian_blur([], 1.0) == []


def test_lists_learn(images):
    sigma = torch.tensor([0.5, 1.0, 2.0, 3.0, 1.0], requires_grad=True)
    leaves = [image.clone().requires_grad_() for image in images]
    sum(each.square().sum() for each in fovblur.gaussian_blur(leaves, sigma)).backward()
    whole = [sigma.grad.clone(), leaves[3].grad.clone()]
    alone, image = torch.tensor(3.0, requires_grad=True), images[3].clone().requires_grad_()
    fovblur.gaussian_blur(image, alone).square().sum().backward()
    torch.testing.assert_close(whole, [torch.tensor([*sigma.grad[:3], alone.grad, 0.0]), image.grad])


def test_images_of_a_list_must_agree(images):
    with pytest.raises(ValueError, match=r"images\[1\] is torch.float64 on cpu with 3 channels and images\[0\]"):
        fovblur.gaussian_blur([images[0], images[1].double()], 1.0)
    with pytest.raises(ValueError, match=r"images\[1\] has shape \(1, 3, 8, 9\); images of a list must be"):
        fovblur.gaussian_blur([images[0], images[0][None]], 1.0)
    with pytest.raises(TypeError, match=r"images\[1\] is a str"):
        fovblur.gaussian_blur([images[0], "image"], 1.0)
    with pytest.raises(ValueError, match=r"sigma has shape \(3,\); it must be a number or \(5,\)"):
        fovblur.gaussian_blur(images, [1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match="weight must be a list of 5 maps"):
        fovblur.foveated_blur(images, 1.0, weight=torch.rand(8, 9))
    with pytest.raises(TypeError, match="out is for a tensor"):
        fovblur.gaussian_blur(images, 1.0, out=images[0])


@pytest.mark.parametrize("shape", [(3, 8, 9), (2, 3, 8, 9), (2, 2, 3, 8, 9)])
def test_out_holds_the_result(implementation, shape, seed):
    images = torch.rand(shape).to(implementation.device)
    expected = fovblur.foveated_blur(images, 2.0, backend=implementation.backend)
    for out in (torch.empty_like(images), torch.empty(*shape, 2).to(images.device)[..., 0]):
        result = fovblur.foveated_blur(images, 2.0, out=out, backend=implementation.backend)
        assert result is out and torch.equal(out, expected)
    frames = torch.empty(shape[1:] + shape[:1]).movedim(-1, 0).to(images.device)
    assert torch.equal(fovblur.foveated_blur(images, 2.0, out=frames, backend=implementation.backend), expected)


@pytest.mark.parametrize("name", ["weight", "sigma", "gain", "fixation", "mean", "std"])
def test_out_that_a_parameter_is_read_from(name):
    out = torch.ones(2, 3, 8, 9)
    shape = {"weight": (2, 8, 9), "fixation": (2, 2), "mean": (3,), "std": (3,)}.get(name, (2,))
    given = {"sigma": 1.0, name: out.flatten()[-math.prod(shape) :].view(shape)}
    with pytest.raises(ValueError, match=f"out shares memory with {name}; pass a tensor"):
        fovblur.foveated_blur(torch.rand(2, 3, 8, 9), **given, out=out)


def test_out_that_wraps_other_tensors(seed):
    images, out = (TwoTensor(torch.rand(2, 3, 8, 9), torch.rand(2, 3, 8, 9)) for _ in range(2))
    fovblur.gaussian_blur(images, 1.0, out=out)
    for result, image in ((out.a, images.a), (out.b, images.b)):
        assert torch.equal(result, fovblur.gaussian_blur(image, 1.0))


def test_out_chooses_the_dtype(seed):
    images = (torch.rand(1, 3, 8, 9) * 255).to(torch.uint8)
    out = torch.empty(1, 3, 8, 9)
    fovblur.foveated_blur(images, 2.0, out=out)
    assert torch.equal(out, fovblur.foveated_blur(images, 2.0, out_dtype=torch.float32))


def test_a_wrong_out(seed):
    images = torch.rand(2, 3, 8, 9)
    for out, error, message in (
        ([], TypeError, "out is a list"),
        (torch.empty(2, 3, 9, 8), ValueError, r"out has shape \(2, 3, 9, 8\); it must be \(2, 3, 8, 9\)"),
        (images, ValueError, "out shares memory with images"),
        (images.new_empty(1, 3, 8, 9).expand(2, 3, 8, 9), ValueError, "elements of out share memory"),
        (torch.empty(400).as_strided((2, 3, 8, 9), (72, 72, 9, 1)), ValueError, "elements of out share memory"),
        (torch.empty(400).as_strided((2, 3, 8, 9), (144, 72, 8, 1)), ValueError, "elements of out share memory"),
        (torch.empty(2, 3, 8, 9).to_sparse(), TypeError, "out must be a dense tensor"),
        (torch.empty(2, 3, 8, 9, dtype=torch.int32), TypeError, "out_dtype is torch.int32"),
        (torch.empty(2, 3, 8, 9, device="meta"), ValueError, "out is torch.float32 on meta"),
    ):
        with pytest.raises(error, match=message):
            fovblur.gaussian_blur(images, 1.0, out=out)
    with pytest.raises(ValueError, match="out is torch.float32 on cpu; the result is torch.float16"):
        fovblur.foveated_blur(images, 1.0, out=torch.empty_like(images), out_dtype=torch.float16)
    with pytest.raises(RuntimeError, match="out has no gradient"):
        fovblur.gaussian_blur(images.requires_grad_(), 1.0, out=torch.empty(2, 3, 8, 9))
    with torch.no_grad():
        fovblur.gaussian_blur(images, 1.0, out=torch.empty(2, 3, 8, 9))


@pytest.mark.parametrize("options", [{}, {"border": "constant", "mean": 0.2, "std": 3.0}, {"rule": "opencv"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64], ids=str)
def test_a_list_at_once_is_its_images_one_by_one(implementation, dtype, options, seed):
    """Without gradients a list is one call of a backend: images of any strides, of no pixels, wide and narrow."""
    if not implementation.serves(dtype):
        return
    shapes = [(5, 7), (1, 9), (0, 4), (4, 6)] if implementation.emulated else [(40, 33), (1, 50), (0, 4), (150, 20)]
    images = [(torch.rand(2, *shape) * 200).to(dtype) for shape in shapes]
    images[3] = images[3].mT.contiguous().mT
    sigma = None if "rule" in options else torch.rand(4, 2) * 4
    sizes = torch.tensor([3, 9, 7, 11]) if sigma is None else None
    gain = torch.linspace(0, 1, 4)
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    weights = [torch.rand(width, height, dtype=computed).mT for height, width in shapes]
    fixation = 2 + torch.rand(4, 3, 2) * 30
    for name, values in (("fixation", fixation), ("fixation", fixation[:, 0]), ("weight", weights)):
        on_device = {"images": images, "weight": weights}
        on_device = {key: [each.to(implementation.device) for each in value] for key, value in on_device.items()}
        of_list = {"gain": gain, "backend": implementation.backend, **options}
        of_list |= {name: on_device["weight"] if name == "weight" else values}
        blurred = fovblur.foveated_blur(on_device["images"], sigma, kernel_size=sizes, **of_list)
        for i, image in enumerate(images):
            own = {"sigma": None if sigma is None else sigma[i : i + 1], "gain": gain[i].item(), **options}
            own |= {"kernel_size": None if sizes is None else int(sizes[i]), name: values[i][None]}
            alone = implementation.foveated_blur(image[None], **own)[0]
            assert blurred[i].dtype == alone.dtype
            relative = {torch.uint8: 1 / 200, torch.float16: 2e-3}.get(alone.dtype, 1e-5)
            torch.testing.assert_close(blurred[i].cpu(), alone, rtol=0, atol=200 * relative)


def test_a_list_is_the_same_for_any_number_of_threads(seed):
    images = [torch.rand(3, 30 + 11 * i, 180 - 9 * i) for i in range(9)]
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(fovblur.foveated_blur(images, kernel_size=51))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_lists_under_compile_and_vmap(images):
    blur = lambda a, b: fovblur.foveated_blur([a, b], (1.0, 2.0), gain=0.3)  # noqa: E731
    expected = blur(images[0], images[3])
    torch.testing.assert_close(torch.compile(blur, backend="eager", fullgraph=True)(images[0], images[3]), expected)
    mapped = torch.vmap(blur)(*(torch.stack([image, 2 * image]) for image in (images[0], images[3])))
    torch.testing.assert_close([each[1] for each in mapped], [2 * each for each in expected])
    jvp = torch.func.jvp(blur, (images[0], images[3]), (images[0], images[3]))[1]
    torch.testing.assert_close(list(jvp), expected)


def test_the_op_of_lists(images):
    params = [torch.rand(4), torch.full((4,), 5, dtype=torch.int32), torch.rand(4), 1 + torch.rand(4, 2), None, None]
    weights = [torch.rand(image.shape[1:]) for image in images]
    for maps in ([], weights):
        arguments = (images, *params, maps, "exp", 3.0, "reflect", False, torch.float16, "cpu")
        torch.library.opcheck(torch.ops.fovblur.foveated_blur_list, arguments)


def test_maps_of_a_list_are_checked(images):
    weights = [torch.rand(image.shape[1:]) for image in images]
    weights[2] += torch.nan
    with pytest.raises(ValueError, match="weight.* is nan"):
        fovblur.foveated_blur(images, 1.0, weight=weights)
