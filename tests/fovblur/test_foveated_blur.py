"""Every backend against the float64 reference and against OpenCV's 8-bit rule."""

import cv2
import numpy as np
import pytest
import torch
from backends_under_test import GPU_IMPLEMENTATIONS, IMAGE_DTYPES, ON_GPU, Implementation, exact, in_both_orders
from comparisons import LAYOUTS, random_images, relative_error, uint8_error

import fovblur
from fovblur.foveated_blur import reference, validation
from fovblur.foveated_blur.validation import FALLOFFS

KERNEL_SIZES = (45, 51, 57, 3, 1)
SHAPES = [(1, 1), (5, 7), (8, 8), (31, 70), (67, 75)]  # smaller than the radius, odd, and more than one tile
if ON_GPU:
    SHAPES.append((224, 224))

# Largest error relative to the largest value. float32 meets the specification; half types round their result, and
# triton multiplies them in half precision.
RELATIVE_ERROR = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", IMAGE_DTYPES, ids=str)
def test_agrees_with_the_float64_reference(implementation, dtype, shape, seed):
    if not implementation.serves(dtype):
        return
    images = random_images((5, 2, *shape), dtype)
    kernel_size, gain = torch.tensor(KERNEL_SIZES), torch.tensor([0.5, 1.0, 0.0, 0.3, 0.8])
    expected = exact(images, kernel_size=kernel_size, gain=gain)
    ours = implementation.foveated_blur(images, kernel_size=kernel_size, gain=gain)
    assert ours.dtype == dtype and ours.shape == images.shape
    if dtype == torch.uint8:
        assert (ours.double() - expected).abs().max() <= uint8_error(implementation.backend)
    else:
        assert relative_error(ours, expected) < RELATIVE_ERROR[dtype]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_uint8_is_within_one_grey_level_of_the_published_pipeline(implementation, shape, seed):
    images = random_images((len(KERNEL_SIZES), 3, *shape), torch.uint8)
    ours = implementation.foveated_blur(images, kernel_size=torch.tensor(KERNEL_SIZES)).int()
    centre = torch.tensor([[shape[0] // 2, shape[1] // 2]]).double()
    weight = 0.5 * reference.acuity("exp", 3.0, centre, *shape)[0].numpy()
    for i, k in enumerate(KERNEL_SIZES):
        image = images[i].permute(1, 2, 0).numpy()
        sigma = fovblur.sigma_from_kernel_size(k)  # OpenCV's filter, without the 8-bit coefficients of its uint8 path
        blurred = cv2.GaussianBlur(image.astype(np.float64), (k, k), sigma, borderType=cv2.BORDER_REFLECT_101)
        blurred = np.rint(blurred).reshape(image.shape)
        blended = np.rint(weight[..., None] * image + (1 - weight[..., None]) * blurred)
        assert np.abs(ours[i].permute(1, 2, 0).numpy() - blended).max() <= 1


def test_uint8_is_within_one_grey_level_of_opencvs_uint8_blur(implementation, seed):
    side = 224 if ON_GPU or implementation.backend == "cpu" else 100
    noise = cv2.resize(np.random.rand(14, 14, 3), (side, side), interpolation=cv2.INTER_CUBIC)  # smooth as a photograph
    image = np.rint(255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)
    images = torch.from_numpy(image).permute(2, 0, 1)[None]
    for k in (45, 51, 57):
        ours = implementation.gaussian_blur(images, kernel_size=k)[0].permute(1, 2, 0).numpy()
        expected = cv2.GaussianBlur(image, (k, k), 0, borderType=cv2.BORDER_REFLECT_101)
        assert np.abs(ours.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("falloff", FALLOFFS)
def test_falloffs_and_fixations(implementation, falloff, seed):
    images = random_images((4, 1, 40, 35), torch.float32)
    fixation = torch.tensor([[20.0, 17.0], [0.0, 0.0], [39.0, 3.5], [-50.0, 80.0]])  # default, corner, border, outside
    options = {"kernel_size": 9, "gain": torch.tensor([1.0, 0.7, 1.0, 0.5]), "falloff": falloff, "decay": 1.7}
    ours = implementation.foveated_blur(images, fixation=fixation, **options)
    assert relative_error(ours, exact(images, fixation=fixation, **options)) < 1e-5
    default = implementation.foveated_blur(images, **options)
    torch.testing.assert_close(default[0], ours[0], rtol=0, atol=0)


@pytest.mark.parametrize("decay", [1e-95, 1e-40, 1e30])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_decay_at_the_limits_of_float32(implementation, dtype, decay, seed):
    images = random_images((1, 1, 1, 4), dtype)
    ours = implementation.foveated_blur(images, 2.0, kernel_size=3, decay=decay)
    expected = exact(images, 2.0, kernel_size=3, decay=decay)
    assert relative_error(ours, expected) < RELATIVE_ERROR[dtype]


@pytest.mark.parametrize("out_dtype", [None, torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", IMAGE_DTYPES, ids=str)
def test_fused_normalisation(implementation, dtype, out_dtype, seed):
    if not implementation.serves(dtype):
        return
    images = random_images((2, 3, 20, 21), dtype)
    mean, std = (0.48, 0.45, 0.4), (0.27, 0.26, 0.28)
    ours = implementation.foveated_blur(images, 2.0, mean=mean, std=std, out_dtype=out_dtype)
    assert ours.dtype == (out_dtype or (torch.float32 if dtype == torch.uint8 else dtype))
    blurred = exact(images, 2.0) / (255 if dtype == torch.uint8 else 1)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
    expected = (blurred - mean) / std
    worst = max(RELATIVE_ERROR.get(dtype, 1e-5), RELATIVE_ERROR[ours.dtype])
    if implementation.backend == "triton" and dtype == torch.uint8:
        worst = max(worst, 2e-3)  # half-precision products
    assert relative_error(ours, expected) < worst


def test_sigma_and_kernel_size_may_both_be_given(implementation, seed):
    images = random_images((3, 1, 33, 30), torch.float32)
    sigma, kernel_size = torch.tensor([0.1, 40.0, 3.0]), torch.tensor([51, 5, 81])
    ours = implementation.gaussian_blur(images, sigma, kernel_size=kernel_size)
    assert relative_error(ours, exact(images, sigma, kernel_size=kernel_size, gain=0.0)) < 1e-5


def test_sigma_zero_is_the_identity_beside_sigma_forty(implementation, seed):
    images = random_images((3, 2, 37, 41), torch.float32)
    ours = implementation.foveated_blur(images, torch.tensor([0.0, 40.0, 0.0]), kernel_size=torch.tensor([51, 321, 1]))
    assert torch.equal(ours[0], images[0]) and torch.equal(ours[2], images[2])
    assert not torch.equal(ours[1], images[1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_a_constant_image_stays_constant(implementation, dtype):
    images = torch.full((2, 1, 50, 60), 200, dtype=dtype)
    ours = implementation.gaussian_blur(images, torch.tensor([0.7, 12.0]))
    torch.testing.assert_close(ours, images, rtol=1e-6, atol=0)


@pytest.mark.parametrize("gain", [0.0, 0.5])
@pytest.mark.parametrize("kernel_size", [1, 9, 161])
def test_non_finite_pixels_spread_over_the_support_only(implementation, kernel_size, gain, seed):
    images = torch.rand(1, 1, 90, 75)
    images[0, 0, 5, 6], images[0, 0, 60, 30], images[0, 0, 66, 30] = float("nan"), float("inf"), float("-inf")
    ours = implementation.foveated_blur(images, kernel_size=kernel_size, gain=gain)
    expected = fovblur.foveated_blur(images, kernel_size=kernel_size, gain=gain, backend="reference")
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    if kernel_size == 9:
        assert ours[0, 0, 1:10, 2:11].isnan().all() and ours[0, 0, 10:50].isfinite().all()


@pytest.mark.parametrize("falloff", FALLOFFS)
def test_an_infinite_pixel_where_acuity_ends(implementation, falloff, seed):
    """The corner's weight is 0 or a little more, never below, where it would turn the infinity's sign."""
    for shape, dtype in (((60, 1), torch.float16), ((8, 13), torch.float32), ((22, 31), torch.float32)):
        images = torch.rand(1, 1, *shape).to(dtype)
        images[..., 0, 0] = float("inf")
        ours = implementation.foveated_blur(images, 1.0, falloff=falloff, kernel_size=7)
        assert ours[0, 0, 0, 0] == float("inf")


def test_radius_beyond_what_a_block_holds(implementation, seed):
    kernel_size = 301 if implementation.backend == "triton" and not ON_GPU else 1201  # the interpreter is slow
    images = random_images((1, 1, 20, 23), torch.float32)
    ours = implementation.gaussian_blur(images, kernel_size=kernel_size)
    assert relative_error(ours, exact(images, kernel_size=kernel_size, gain=0.0)) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_any_strides(implementation, dtype, layout, seed):
    images = LAYOUTS[layout](random_images((4, 3, 26, 30), dtype))
    kernel_size = torch.tensor(KERNEL_SIZES[: len(images)])
    ours = implementation.foveated_blur(images, kernel_size=kernel_size)
    expected = implementation.foveated_blur(images.contiguous(), kernel_size=kernel_size)
    assert torch.equal(ours, expected)
    if layout == "channels_last":
        assert ours.is_contiguous(memory_format=torch.channels_last)


PARAMETERS = [
    ("sigma", [1.0, 2.0, 3.0]),
    ("kernel_size", [9, 3, 15]),
    ("gain", [0.9, 0.1, 0.5]),
    ("fixation", [[3.0, 20.0], [15.0, 2.0], [7.0, 7.0]]),
    ("fixation", [3.0, 20.0]),  # of all images
    ("mean", [0.1, 0.2, 0.3]),
    ("std", [0.5, 0.7, 0.9]),
]


@pytest.mark.parametrize(("name", "values"), PARAMETERS, ids=str)
def test_any_strides_of_the_parameters(implementation, name, values, seed):
    """Every second value of a larger tensor, and pairs that are the columns of another."""
    images, value = random_images((3, 3, 21, 24), torch.float32), torch.tensor(values)
    expected = exact(images, **{"sigma": 2.0, name: value})
    for strided in (torch.stack([value, 100 + value], -1)[..., 0], value.movedim(0, -1).contiguous().movedim(-1, 0)):
        ours = implementation.foveated_blur(images, **{"sigma": 2.0, name: strided})
        assert relative_error(ours, expected) < 1e-5


@pytest.mark.parametrize("kernel_size", [1, 25, 201])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("implementation", GPU_IMPLEMENTATIONS, indirect=True)
def test_a_bad_sigma_on_a_gpu_gives_nan(implementation, monkeypatch, dtype, kernel_size, seed):
    """The values of CUDA tensors are not read on the host, so that the kernels have to show them."""
    monkeypatch.setattr(validation, "check_values", lambda *_: None)
    images = random_images((4, 1, 20, 70), dtype)
    sigma = torch.tensor([float("nan"), 2.0, -1.0, -3.0])
    for mean in (None, 0.5):
        ours = implementation.foveated_blur(images, sigma, kernel_size=kernel_size, gain=1.0, mean=mean)
        assert ours[[0, 2, 3]].isnan().all() and ours[1].isfinite().all()
        by_default = implementation.foveated_blur(images, sigma, mean=mean)
        assert by_default[[0, 2, 3]].isnan().all() and by_default[1].isfinite().all()


@pytest.mark.parametrize("implementation", GPU_IMPLEMENTATIONS, indirect=True)
def test_float64_is_refused_on_a_gpu(implementation):
    with pytest.raises(RuntimeError, match="float64"):
        implementation.foveated_blur(torch.rand(1, 1, 4, 4).double(), 1.0)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0)], ids=str)
def test_empty_images_return_empty(implementation, shape):
    assert implementation.foveated_blur(torch.empty(shape), 2.0).shape == shape


def test_one_call_serves_more_samples_than_a_grid_dimension_holds(implementation, seed):
    batch = 66_000 if ON_GPU or implementation.backend == "cpu" else 40
    images = torch.rand(batch, 1, 4, 4)
    kernel_size = torch.randint(0, 4, (batch,)) * 2 + 1
    ours = implementation.gaussian_blur(images, kernel_size=kernel_size)
    for k in (1, 3, 5, 7):
        chosen = (kernel_size == k).nonzero()[:20, 0]
        assert relative_error(ours[chosen], exact(images[chosen], kernel_size=k, gain=0.0)) < 1e-5


def test_threads_of_a_block_may_take_turns_in_any_order(monkeypatch, tmp_path_factory, seed):
    images, kernel_size = random_images((2, 1, 70, 90), torch.float32), torch.tensor([45, 3])
    call = lambda: Implementation("cuda").foveated_blur(images, kernel_size=kernel_size)  # noqa: E731
    assert torch.equal(*in_both_orders(call, monkeypatch, tmp_path_factory))
