"""The retinal blur: its model against closed forms, its blend against dense Gaussians, in every backend."""

import math

import dense_blur
import numpy as np
import pytest
import retinal_error
import torch
from backends_under_test import CPU_VARIANTS, IMAGE_DTYPES, IMPLEMENTATIONS
from comparisons import LAYOUTS, random_images, relative_error, uint8_error
from torch import func

import fovblur
from fovblur.foveated_blur.validation import BORDERS
from fovblur.retinal_blur import native, retina
from fovblur.retinal_blur.op import retinal_blur_op
from fovblur.retinal_blur.params import LevelParams

EYE = retina.Retina(40.0, None, 2.3, 0.106, 1 / 64)
NEAR = {"pixels_per_degree": 60.0, "half_resolution": 0.02, "levels": 5}  # blurs small images a lot
SIGMAS, KERNEL_SIZES = (0.0, 0.8, 1.7, 4.0, 9.0), (1, 7, 13, 33, 73)
with_all = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
with_the_fast = pytest.mark.parametrize(  # Triton is slow in its interpreter
    "implementation", [name for name in IMPLEMENTATIONS if name != "triton"], indirect=True
)
on_the_cpu = pytest.mark.parametrize("implementation", CPU_VARIANTS, indirect=True)


# ---- the model ----


@pytest.mark.parametrize("eccentricity", [0.5, 2.3, 20.0])
def test_display_and_blur_together_halve_the_finest_visible_grating(eccentricity):
    retina_of_fine_display = EYE._replace(pixels_per_degree=90.0)
    frequency = math.log(64) * 2.3 / (0.106 * (eccentricity + 2.3))
    assert 1 / 64 * math.exp(0.106 * frequency * (eccentricity + 2.3) / 2.3) == pytest.approx(1)  # contrast of 1
    display = 2**2 * math.log(2) / (2 * math.pi**2)  # variance that halves half a cycle a pixel
    variance = display + retina_of_fine_display.variance(90.0 * eccentricity)
    assert math.exp(-2 * math.pi**2 * variance * (frequency / 90) ** 2) == pytest.approx(0.5)


def test_resolution_is_half_at_the_half_resolution():
    whole, half = (EYE._replace(pixels_per_degree=1e3).variance(1e3 * e) + 4 * retina.HALF_AMPLITUDE for e in (0, 2.3))
    assert half / whole == pytest.approx(4)


def test_on_a_flat_display_degrees_are_those_of_the_lines_of_sight():
    """Two pixels along the radius and across it give the eccentricity and the pixels of a square degree."""
    distance, at = 500.0, 300.0
    flat = EYE._replace(viewing_distance=distance, pixels_per_degree=distance * math.pi / 180)
    rays = np.array([[at, 0, distance], [at + 1e-4, 0, distance], [at, 1e-4, distance]])
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    along, across = (np.degrees(np.linalg.norm(rays[i] - rays[0])) / 1e-4 for i in (1, 2))
    local = EYE._replace(pixels_per_degree=(along * across) ** -0.5)
    eccentricity = np.degrees(np.arccos(rays[0, 2]))
    assert flat.variance(at) == pytest.approx(local.variance(eccentricity * local.pixels_per_degree), rel=1e-5)
    tensor = torch.tensor(at, dtype=torch.float64)
    assert flat.variance(tensor).item() == pytest.approx(flat.variance(at))


def test_levels_span_the_image_and_have_the_variances_of_their_taps():
    levels = retina.levels_of(EYE, 1080, 1920, 12)
    assert levels.sigmas[0] == 0 and len(levels.sigmas) == 12 and list(levels.sigmas) == sorted(levels.sigmas)
    assert levels.variances[-1] == pytest.approx(EYE.variance(math.hypot(1079, 1919)), rel=2e-3)
    for sigma, size, variance in zip(*levels[1:], levels.variances):
        taps = dense_blur.taps(torch.tensor(sigma, dtype=torch.float64), size, False)
        assert (taps * (torch.arange(size) - size // 2) ** 2).sum().item() == pytest.approx(variance)
    assert retina.level_map(torch.tensor(levels.variances), levels).tolist() == pytest.approx(range(12), abs=1e-4)


@pytest.mark.parametrize("fixation", [(15.0, 150.0), (20.0, 130.0)])
def test_every_pixel_has_the_variance_that_the_model_asks_for(fixation):
    images = torch.rand(1, 1, 31, 321, dtype=torch.float64, requires_grad=True)
    blurred = fovblur.retinal_blur(images, fixation, **NEAR)
    (weights,) = torch.autograd.grad(blurred[0, 0, 15, 160], images)  # of all pixels in one
    offsets = torch.arange(321) - 160
    variance = retina.Retina(60.0, None, 0.02, 0.106, 1 / 64).variance(math.hypot(15 - fixation[0], 160 - fixation[1]))
    assert (weights[0, 0] * offsets**2).sum().item() == pytest.approx(variance, rel=1e-9)


def test_where_the_eye_sees_all_nothing_is_blurred(seed):
    images = torch.rand(2, 3, 20, 30)
    assert torch.equal(fovblur.retinal_blur(images, pixels_per_degree=4.0), images)


def test_errors_are_those_of_the_docstring_and_fall_with_the_levels():
    """The table of the docs is compared with the same errors by tests/test_readme.py."""
    errors = retinal_error.errors()
    assert errors["edges"][12].max() < 0.0065 and errors["white noise"][12].max() < 0.0105
    for of_image in errors.values():
        largest = [of_image[count].max() for count in retinal_error.COUNTS]
        assert largest == sorted(largest, reverse=True)


# ---- the blend ----


def dense_blend(images, fixation, border: str, eye: retina.Retina, count: int) -> torch.Tensor:
    """Return the blend by dense matrices, for one fixation an image."""
    height, width = images.shape[-2:]
    y, x = torch.arange(height)[:, None], torch.arange(width)
    distance = torch.hypot(y - fixation[:, :1, None].double(), x - fixation[:, 1:, None].double())
    levels = retina.levels_of(eye, height, width, count)
    place = torch.from_numpy(np.interp(eye.variance(distance), levels.variances, np.arange(count)))
    return dense_blur.blend_of_levels(images, LevelParams(place, levels.sigmas, levels.kernel_sizes, border))


@with_the_fast
@pytest.mark.parametrize("border", BORDERS)
def test_blend_is_that_of_dense_matrices(implementation, border, seed):
    images, fixation = torch.rand(2, 2, 52, 33), torch.tensor([[3.0, 30.0], [60.0, -2.0]])
    ours = implementation.retinal_blur(images, fixation, border=border, **NEAR)
    expected = dense_blend(images, fixation, border, EYE._replace(pixels_per_degree=60.0, half_resolution=0.02), 5)
    assert relative_error(ours, expected) < 2e-6


@on_the_cpu
@pytest.mark.parametrize("border", BORDERS)
def test_levels_with_weight_on_both_sides_of_the_fixation(implementation, border, seed):
    images, fixation = torch.rand(2, 1, 60, 420), torch.tensor([[30.0, 200.0], [-5.0, 410.0]])
    ours = implementation.retinal_blur(images, fixation, pixels_per_degree=40.0, half_resolution=0.3, border=border)
    expected = dense_blend(images, fixation, border, EYE._replace(half_resolution=0.3), 12)
    assert relative_error(ours, expected) < 2e-6


@on_the_cpu
@pytest.mark.parametrize("dtype", IMAGE_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 2, 1, 37), (1, 1, 130, 3), (2, 3, 49, 50)])
@pytest.mark.parametrize("border", BORDERS)
def test_levels_of_every_type_and_shape(implementation, border, shape, dtype, seed):
    real = torch.float64 if dtype == torch.float64 else torch.float32
    images, level = random_images(shape, dtype), 4 * torch.rand(shape[0], *shape[2:], dtype=real)
    out = torch.full(shape, torch.nan, dtype=real)
    params = LevelParams(level, SIGMAS, KERNEL_SIZES, border)
    native.cpu_forward(images, out, params)
    assert relative_error(out, dense_blur.blend_of_levels(images, params)) < (1e-12 if real == torch.float64 else 1e-6)


@with_the_fast
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(implementation, layout, seed):
    images = LAYOUTS[layout](torch.rand(4, 4, 30, 82))
    fixation = torch.rand(len(images), 2) * 20
    expected = fovblur.retinal_blur(images.double(), fixation.double(), backend="reference", **NEAR)
    ours = implementation.retinal_blur(images, fixation, **NEAR)
    assert relative_error(ours, expected) < 1e-5
    assert ours.stride() == torch.empty_like(images).stride()


@with_all
def test_uint8_is_rounded(implementation, seed):
    images = random_images((2, 3, 20, 21), torch.uint8)
    exact = fovblur.retinal_blur(images.double(), backend="reference", **NEAR)
    assert (implementation.retinal_blur(images, **NEAR).double() - exact).abs().max() <= uint8_error(
        implementation.backend
    )
    halves = implementation.retinal_blur(images, out_dtype=torch.float16, **NEAR)
    assert halves.dtype == torch.float16 and (halves.double() - exact).abs().max() < uint8_error(implementation.backend)


@with_the_fast
def test_a_level_without_weight_does_not_count(implementation):
    """The image is sharp around its centre, where an infinite pixel stays what it is."""
    images = torch.rand(1, 1, 9, 101)
    images[..., 4, 50] = torch.inf
    images[..., 4, 52] = torch.nan
    blurred = implementation.retinal_blur(images, pixels_per_degree=12.0, half_resolution=0.5)[0, 0]
    assert blurred[:, 40:50].isfinite().all() and blurred[4, 50] == torch.inf and blurred[4, 52].isnan()


def test_a_fixation_that_is_not_finite_gives_nan(seed):
    images, variance = torch.rand(2, 1, 8, 9), torch.rand(2, 8, 9)
    variance[1] = torch.nan
    for backend in ("cpu", "reference"):
        blurred = retinal_blur_op(images, variance, *EYE, 4, "reflect", torch.float32, backend)
        assert blurred[0].isfinite().all() and blurred[1].isnan().all()


@with_the_fast
def test_the_nearest_of_several_fixations_counts(implementation, seed):
    images, fixations = torch.rand(2, 3, 24, 40), torch.tensor([[[4.0, 5.0], [20.0, 33.0]], [[1.0, 30.0], [12.0, 2.0]]])
    both = implementation.retinal_blur(images, fixations, **NEAR)
    each = [implementation.retinal_blur(images, fixations[:, i], **NEAR) for i in (0, 1)]
    y, x = torch.arange(24.0)[:, None], torch.arange(40.0)
    nearer = [torch.hypot(y - at[:, 0, None, None], x - at[:, 1, None, None]) for at in fixations.unbind(1)]
    expected = torch.where((nearer[0] < nearer[1])[:, None], *each)
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-6)


def test_shapes_and_samples_do_not_mix(seed):
    clips, fixation = torch.rand(2, 3, 1, 30, 20), torch.rand(2, 1, 2) * 20
    blurred = fovblur.retinal_blur(clips, fixation, **NEAR)
    for clip, at, ours in zip(clips, fixation, blurred):
        for frame, own in zip(clip, ours):
            assert torch.equal(fovblur.retinal_blur(frame, at[0], **NEAR), own)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0), (2, 3, 1, 1)])
def test_empty_and_tiny_images_stay_what_they_are(shape, backend):
    images, at = torch.rand(shape, requires_grad=True), torch.tensor([1.2, 3.3], requires_grad=True)
    blurred = fovblur.retinal_blur(images, at, backend=backend, **NEAR)
    blurred.sum().backward()
    assert torch.equal(blurred, images) and at.grad.tolist() == [0, 0] and (images.grad == 1).all()


def test_threads_give_the_same_bits(seed):
    images = torch.rand(1, 3, 200, 190)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(fovblur.retinal_blur(images, **NEAR))
    torch.set_num_threads(before)
    assert torch.equal(*results)


def test_the_module_is_the_function(seed):
    images, at = torch.rand(2, 3, 20, 30), torch.nn.Parameter(torch.tensor([4.0, 7.0]))
    module = fovblur.modules.RetinalBlur2d(60.0, fixation=at, half_resolution=0.02)
    assert torch.equal(module(images), fovblur.retinal_blur(images, at, pixels_per_degree=60.0, half_resolution=0.02))
    assert [name for name, _ in module.named_parameters()] == ["fixation"]
    assert repr(module) == "RetinalBlur2d(pixels_per_degree=60.0, fixation=tensor(2,), half_resolution=0.02)"
    with pytest.raises(ValueError, match="levels is 1"):
        fovblur.modules.RetinalBlur2d(60.0, levels=1)
    with pytest.raises(TypeError, match="out_dtype is torch.int32"):
        fovblur.modules.RetinalBlur2d(60.0, out_dtype=torch.int32)
    for dtype in (torch.uint8, torch.float16, torch.float64):
        fovblur.modules.RetinalBlur2d(60.0, out_dtype=dtype)


def test_the_module_takes_what_one_image_of_float32_on_the_cpu_cannot(seed):
    images = (torch.rand(2, 3, 20, 30) * 255).to(torch.uint8)
    fixation, options = torch.rand(2, 2, 2) * 20, {"out_dtype": torch.uint8, "levels": 5}
    module = fovblur.modules.RetinalBlur2d(4.0, fixation=fixation, **options)
    assert torch.equal(module(images), fovblur.retinal_blur(images, fixation, pixels_per_degree=4.0, **options))
    assert (
        repr(fovblur.modules.RetinalBlur2d(4.0, backend="cuda")) == "RetinalBlur2d(pixels_per_degree=4.0, backend=cuda)"
    )


def test_the_farthest_fixation(implementation, seed):
    """All levels of one pixel are alike, and the variance would be infinite at the distance of this fixation."""
    images = torch.rand(1, 1, 1, 1).to(implementation.device)
    least = {"pixels_per_degree": 1e-4, "half_resolution": 1e-4, "viewing_distance": 1e-4}
    torch.testing.assert_close(implementation.retinal_blur(images, (1e9, 1e9), **least), images)


def test_a_fixation_in_fractions_is_warned_of():
    with pytest.warns(UserWarning, match="multiply fractions of the image"):
        fovblur.retinal_blur(torch.rand(1, 3, 20, 30), (0.5, 0.5), **NEAR)


# ---- derivatives and tracers ----


@pytest.mark.parametrize("border", BORDERS)
def test_gradients(border, seed):
    images = torch.rand(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    fixation = torch.tensor([[1.3, 2.6], [2.2, 0.7]], dtype=torch.float64, requires_grad=True)
    blur = lambda images, fixation: fovblur.retinal_blur(images, fixation, border=border, backend="cpu", **NEAR)  # noqa: E731
    assert torch.autograd.gradcheck(blur, (images, fixation), fast_mode=True)
    assert torch.autograd.gradgradcheck(blur, (images, fixation), fast_mode=True)


AT = torch.tensor([[1.3, 2.6], [3.2, 1.1]], dtype=torch.float64)
TRANSFORMS = {
    "jvp": lambda blur, x: func.jvp(blur, (x, AT), (x, AT / 9))[1],
    "vmap": lambda blur, x: func.vmap(blur, in_dims=(1, 0))(torch.stack([x, 2 * x], 1), torch.stack([AT, AT + 0.4])),
    "jacrev": lambda blur, x: func.jacrev(lambda at: blur(x, at))(AT),
    "hessian": lambda blur, x: func.hessian(lambda at: blur(x, at).square().sum())(AT),
    "vmap of grad": lambda blur, x: func.vmap(func.grad(lambda x: blur(x, AT).square().sum()))(torch.stack([x, 2 * x])),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_those_of_the_reference(name, seed):
    images = torch.rand(2, 2, 6, 7, dtype=torch.float64)
    ours, expected = (
        TRANSFORMS[name](lambda x, at: fovblur.retinal_blur(x, at, backend=backend, **NEAR), images)  # noqa: B023
        for backend in ("cpu", "reference")
    )
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_gradients_of_uint8_reach_the_fixation(seed):
    images, at = random_images((1, 1, 6, 7), torch.uint8), AT[:1].float().requires_grad_()
    fovblur.retinal_blur(images, at, out_dtype=torch.float32, **NEAR).sum().backward()
    exact = AT[:1].clone().requires_grad_()
    fovblur.retinal_blur(images.double(), exact, backend="reference", **NEAR).sum().backward()
    torch.testing.assert_close(at.grad.double(), exact.grad, rtol=1e-3, atol=1e-2)


def test_opcheck(seed):
    images, variance = torch.rand(2, 3, 6, 7, requires_grad=True), torch.rand(2, 6, 7, requires_grad=True)
    torch.library.opcheck(retinal_blur_op, (images, variance, *EYE, 4, "symmetric", torch.float32, "auto"))


def test_compiles_whole_for_changing_sizes(seed):
    compiled = torch.compile(
        lambda images, at: fovblur.retinal_blur(images * 2, at, **NEAR),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for shape in ((2, 3, 12, 11), (3, 3, 14, 9)):
        images, at = torch.rand(shape, requires_grad=True), torch.rand(shape[0], 2, requires_grad=True)
        torch.testing.assert_close(compiled(images, at), fovblur.retinal_blur(images * 2, at, **NEAR))
    compiled(images, at).sum().backward()
    assert images.grad.isfinite().all() and at.grad.isfinite().all()


def test_the_reference_can_be_traced(seed):
    blur = lambda images, at: fovblur.retinal_blur(images, at, backend="reference", **NEAR)  # noqa: E731
    traced = torch.jit.trace(blur, (torch.rand(1, 2, 6, 7), AT[:1].float()))
    images = torch.rand(1, 2, 6, 7)
    torch.testing.assert_close(traced(images, AT[1:].float()), blur(images, AT[1:].float()))


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pixels_per_degree": 0}, ValueError, "pixels_per_degree is 0; it must be at least 1e-6 and below 1e.09"),
        ({"pixels_per_degree": "40"}, TypeError, "pixels_per_degree is a str; it must be a number"),
        ({"pixels_per_degree": 1e8}, ValueError, "pixels_per_degree is 1e.08; it asks for a sigma of"),
        ({"viewing_distance": -1.0}, ValueError, "viewing_distance is -1.0; it must be at least 1e-6"),
        ({"viewing_distance": 1e-200}, ValueError, "viewing_distance is 1e-200; it must be at least 1e-6"),
        ({"frequency_decay": 1e300}, ValueError, "frequency_decay is 1e.300; it must be .* below 1e.09"),
        ({"contrast_threshold": 1.0}, ValueError, "contrast_threshold is 1.0; it must be at least 1e-6 and below 1"),
        ({"levels": 1}, ValueError, "levels is 1; it must be from 2 to 32"),
        ({"levels": 12.0}, TypeError, "levels is a float; it must be an int"),
        ({"border": "wrap"}, ValueError, "border is 'wrap'"),
        ({"fixation": (1.0, 2.0, 3.0)}, TypeError, "fixation is"),
        ({"fixation": torch.tensor([2.0, torch.nan])}, ValueError, "is nan; it must be finite"),
        ({"out_dtype": torch.uint8}, ValueError, "out_dtype uint8 is for uint8 images"),
    ],
)
def test_errors_name_the_argument(options, error, message):
    with pytest.raises(error, match=message):
        fovblur.retinal_blur(torch.rand(1, 3, 8, 9), **{"pixels_per_degree": 40.0, **options})
