"""Random calls: shapes, types, strides, every option and non-finite pixels, against the reference."""

import torch
from backends_under_test import IMAGE_DTYPES, exact
from comparisons import uint8_error
from hypothesis import given, settings
from hypothesis import strategies as st

import fovblur
from fovblur.foveated_blur.validation import BORDERS, FALLOFFS

RELATIVE_ERROR = dict(zip(IMAGE_DTYPES[1:], (2e-3, 1.2e-2, 1e-5, 1e-12)))


@st.composite
def calls(draw, largest_side: int):
    """Draw images and parameters of one call."""
    batch = draw(st.integers(1, 4))
    shape = (batch, draw(st.integers(1, 3)), draw(st.integers(1, largest_side)), draw(st.integers(1, largest_side)))
    dtype = draw(st.sampled_from(IMAGE_DTYPES))
    layout = draw(st.sampled_from(["contiguous", "channels_last", "sliced", "transposed", "expanded"]))
    of_images = lambda each: st.lists(each, min_size=batch, max_size=batch)  # noqa: E731
    numbers = lambda low, high: of_images(st.floats(low, high, width=32))  # noqa: E731
    per_axis = draw(st.booleans())
    along_axes = lambda each: of_images(st.tuples(each, each) if per_axis else each)  # noqa: E731
    radius = draw(st.none() | along_axes(st.integers(0, 70)))
    by_tables = radius is not None and draw(st.booleans())
    point = st.tuples(*[st.floats(-50, 90, width=32)] * 2)
    several = st.integers(2, 3).flatmap(lambda count: of_images(st.lists(point, min_size=count, max_size=count)))
    mapped = draw(st.booleans())
    fixation = None if mapped else draw(st.none() | of_images(point) | several)
    options = {
        "sigma": None if by_tables else torch.tensor(draw(along_axes(st.floats(0, 60, width=32)))),
        "kernel_size": None if radius is None else 2 * torch.tensor(radius) + 1,
        "rule": "opencv" if by_tables else None,
        "gain": torch.tensor(draw(numbers(0, 1))),
        "decay": draw(st.floats(0, 20)),
        "falloff": draw(st.sampled_from(FALLOFFS)),
        "fixation": None if fixation is None else torch.tensor(fixation),
        "weight": torch.tensor(draw(numbers(0, 1)))[:, None, None].expand(batch, *shape[2:]) if mapped else None,
        "border": draw(st.just("reflect") | st.sampled_from(BORDERS)),
    }
    broken = draw(st.lists(st.sampled_from([float("nan"), float("inf"), float("-inf")]), max_size=2))
    return shape, dtype, layout, options, broken, draw(st.integers(0, 2**31))


def images_of(shape, dtype, layout, broken, seed) -> torch.Tensor:
    torch.manual_seed(seed)
    batch, channels, height, width = shape
    images = {
        "contiguous": lambda: torch.rand(shape),
        "channels_last": lambda: torch.rand(batch, height, width, channels).permute(0, 3, 1, 2),
        "sliced": lambda: torch.rand(2 * batch, channels + 1, height + 3, 2 * width)[::2, 1:, 3:, ::2],
        "transposed": lambda: torch.rand(batch, channels, width, height).transpose(2, 3),
        "expanded": lambda: torch.rand(1, 1, height, width).expand(shape),
    }[layout]()
    if dtype == torch.uint8:
        return (images * 255).round().to(dtype)
    if layout != "expanded":
        for value in broken:
            place = [int(torch.randint(side, ())) for side in shape]
            images[tuple(place)] = value
    return images.to(dtype)


def check(implementation, call) -> None:
    shape, dtype, layout, options, broken, seed = call
    dtype = dtype if implementation.serves(dtype) else torch.float32
    images = images_of(shape, dtype, layout, broken, seed)
    expected, ours = exact(images, **options), implementation.foveated_blur(images, **options)
    assert ours.dtype == dtype and ours.shape == images.shape
    finite = expected.isfinite()
    assert torch.equal(ours.isfinite(), finite) if dtype != torch.uint8 else True
    assert torch.equal(ours[~finite].double().nan_to_num(7.0), expected[~finite].nan_to_num(7.0))
    if finite.any():
        error = (ours.double() - expected)[finite].abs().max().item()
        if dtype == torch.uint8:
            assert error <= uint8_error(implementation.backend, images.max().item()), error
        else:
            assert error <= RELATIVE_ERROR[dtype] * expected[finite].abs().max().clamp(min=1e-3), error


def test_any_call(implementation):
    # Few where kernels are emulated, interpreted, or compiled for many of the calls.
    examples = {"cuda": 60, "triton": 12}.get(implementation.backend, 150)

    @settings(deadline=None, max_examples=examples, print_blob=True)
    @given(call=calls(largest_side={"cuda": 90, "triton": 20}.get(implementation.backend, 40)))
    def run(call):
        check(implementation, call)

    run()


def test_unwritten_outputs_would_show(monkeypatch):
    """torch.empty is filled with NaN, so that an unwritten pixel is not finite."""
    genuine = torch.empty_like

    def poisoned(*arguments, **options):
        empty = genuine(*arguments, **options)
        return empty.fill_(float("nan")) if empty.is_floating_point() else empty.fill_(77)

    monkeypatch.setattr(torch, "empty_like", poisoned)
    for shape in ((2, 3, 33, 47), (1, 1, 5, 3), (5, 2, 16, 16), (1, 3, 1, 70)):
        images = torch.rand(shape).transpose(2, 3)
        assert fovblur.foveated_blur(images, 3.0).isfinite().all()
        leaf = images.clone().requires_grad_()
        fovblur.foveated_blur(leaf, 3.0).sum().backward()
        assert leaf.grad.isfinite().all()
