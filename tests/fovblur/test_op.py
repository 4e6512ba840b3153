"""The op in PyTorch: schema, fake, autograd, torch.compile, calls from several threads and processes."""

import pytest
import torch
from backends_under_test import IMAGE_DTYPES

import fovblur
from fovblur.foveated_blur import validation
from fovblur.foveated_blur.op import foveated_blur_backward_op, foveated_blur_op, foveated_blur_out_op


def op_arguments(dtype: torch.dtype, requires_grad: bool = False) -> tuple:
    real = torch.float64 if dtype == torch.float64 else torch.float32
    images = (torch.rand(2, 3, 9, 10) * 200).to(dtype)
    sigma, gain = torch.tensor([1.0, 3.0], dtype=real), torch.tensor([0.2, 0.9], dtype=real)
    if requires_grad:
        images, sigma, gain = (x.requires_grad_(x.is_floating_point()) for x in (images, sigma, gain))
    fixation = torch.tensor([[4.0, 5.0], [1.0, 2.0]], dtype=real)
    mean, std = torch.tensor([0.5, 0.4, 0.3], dtype=real), torch.tensor([0.2, 0.3, 0.4], dtype=real)
    out_dtype = torch.float32 if dtype == torch.uint8 else dtype
    kernel_size = torch.tensor([9, 25], dtype=torch.int32)
    return images, sigma, kernel_size, gain, fixation, mean, std, None, "exp", 3.0, "reflect", False, out_dtype, "auto"


@pytest.mark.parametrize("dtype", IMAGE_DTYPES, ids=str)
def test_opcheck(dtype, seed):
    torch.library.opcheck(foveated_blur_op, op_arguments(dtype))
    torch.library.opcheck(foveated_blur_op, op_arguments(dtype, requires_grad=dtype != torch.uint8))


def test_opcheck_of_the_backward(seed):
    images, *parameters, _, backend = op_arguments(torch.float32)
    for needs in ([True, True, True], [True, False, False]):
        torch.library.opcheck(foveated_blur_backward_op, (torch.rand_like(images), images, *parameters, backend, needs))


MAPS = torch.linspace(0, 1, 180).reshape(2, 9, 10)
OPTIONS = {  # of the op: sizes along y and x, a weight map, the border and whether tables are taken
    "axes": (True, None, "symmetric", False),
    "tables": (True, None, "constant", True),
    "map": (False, MAPS, "circular", False),
    "one map for all": (False, MAPS[:1].expand(2, -1, -1), "replicate", False),
    "axes and turned maps": (True, MAPS.mT.contiguous().mT, "replicate", False),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_opcheck_of_options(options, seed):
    per_axis, weight, border, tables = OPTIONS[options]
    images, sigma, size, gain, fixation, mean, std, *_ = op_arguments(torch.float32)
    if per_axis:
        sigma, size = torch.stack([sigma, 2 * sigma], 1), torch.stack([size, size - 4], 1)
    parameters = sigma, size, gain, fixation, mean, std, weight, "exp", 3.0, border, tables
    torch.library.opcheck(foveated_blur_op, (images, *parameters, torch.float32, "auto"))
    torch.library.opcheck(foveated_blur_out_op, (images, *parameters, "auto", torch.empty_like(images)))
    leaves = [each.clone().requires_grad_() for each in (images, sigma)]
    torch.library.opcheck(foveated_blur_op, (leaves[0], leaves[1], *parameters[1:], torch.float32, "auto"))
    torch.library.opcheck(foveated_blur_backward_op, (images, images, *parameters, "auto", [True, True, False]))


def test_options_compile_whole_and_are_exported(seed):
    fixations = torch.tensor([[[2.0, 3.0], [7.0, 9.0]]])

    class Blur(torch.nn.Module):
        def forward(self, images, sigma, weight):
            replicated = fovblur.foveated_blur(images, sigma, border="replicate", weight=weight)
            tables = fovblur.gaussian_blur(images, kernel_size=(5, 9), border="constant", rule="opencv")
            return replicated + tables + fovblur.foveated_blur(images, 2.0, fixation=fixations, border="circular")

    inputs = torch.rand(2, 3, 9, 10, requires_grad=True), torch.rand(2, 2, requires_grad=True), torch.rand(9, 10)
    expected = Blur()(*inputs)
    compiled = torch.compile(Blur(), fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(compiled, expected)
    exported = torch.export.export(Blur(), inputs).module()(*inputs)
    torch.testing.assert_close(exported, expected)
    found, wanted = (torch.autograd.grad(each.square().sum(), inputs[:2]) for each in (compiled, expected))
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other)


def test_compiles_whole_with_a_dynamic_batch_and_changing_parameters(seed):
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def pipeline(images, sigma, gain):
        features = fovblur.foveated_blur(images * 2, sigma, gain=gain, mean=(0.5, 0.4, 0.3), std=0.2)
        return features + fovblur.gaussian_blur(images, kernel_size=5)

    for batch in (2, 5, 3):
        images, sigma = torch.rand(batch, 3, 12, 11, requires_grad=True), torch.rand(batch) * 3
        ours = pipeline(images, sigma, 0.3)
        expected = fovblur.foveated_blur(images * 2, sigma, gain=0.3, mean=(0.5, 0.4, 0.3), std=0.2)
        expected = expected + fovblur.gaussian_blur(images, kernel_size=5)
        torch.testing.assert_close(ours, expected)
        ours.sum().backward()
        assert images.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(4, 3, 8, 9), (2, 2, 3, 8, 9)], ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_out_compiles_whole(shape, turned, seed):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def blur(images, out):
        return 2 * fovblur.gaussian_blur(images, 1.0, out=out)

    images, out = torch.rand(shape), torch.full(shape, torch.nan)
    out = out.transpose(0, 1).contiguous().transpose(0, 1) if turned else out
    doubled, expected = blur(images, out), fovblur.gaussian_blur(images, 1.0)
    assert torch.equal(out, expected) and torch.equal(doubled, 2 * expected)


def test_out_under_a_mode_or_a_transform():
    with torch._subclasses.FakeTensorMode():
        images, out = torch.empty(2, 3, 8, 9), torch.empty(2, 3, 8, 9)
        assert fovblur.gaussian_blur(images, 1.0, out=out) is out
    with pytest.raises(RuntimeError, match="out has no gradient"):
        torch.func.vmap(lambda image: fovblur.gaussian_blur(image, 1.0, out=image))(torch.rand(2, 3, 8, 9))


def test_bad_values_raise_in_a_compiled_function_too():
    compiled = torch.compile(lambda *inputs: fovblur.gaussian_blur(*inputs), backend="eager", fullgraph=True)
    with pytest.raises(ValueError, match=r"sigma\[1\] is -1"):
        compiled(torch.rand(2, 1, 4, 4), torch.tensor([1.0, -1.0]))


def test_fake_tensors_leave_no_trace():
    with torch._subclasses.FakeTensorMode():
        fake = fovblur.foveated_blur(torch.empty(2, 3, 8, 8), 1.25, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    assert fake.shape == (2, 3, 8, 8)
    real = fovblur.foveated_blur(torch.rand(2, 3, 8, 8), 1.25, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    assert type(real) is torch.Tensor


def test_constants_made_under_a_transform_or_mode_are_not_kept(seed):
    images = torch.rand(1, 3, 8, 8)
    blur = lambda images: fovblur.gaussian_blur(images, 2.125, kernel_size=5)  # noqa: E731
    expected = torch.func.functionalize(blur)(images)
    assert torch.equal(torch.tensor(blur(images).tolist()), expected)
    with torch._subclasses.FakeTensorMode():
        fovblur.gaussian_blur(torch.empty(1, 3, 8, 8), 2.25)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        fovblur.gaussian_blur(images, 2.25)  # images made outside are no fake tensors
    assert type(fovblur.gaussian_blur(images, 2.25)) is torch.Tensor
    assert all(type(each) is torch.Tensor for each in validation._constants.values())
    assert not any(torch._is_functional_tensor(each) for each in validation._constants.values())


def test_constants_made_in_inference_mode_serve_training():
    with torch.inference_mode():
        fovblur.foveated_blur(torch.rand(1, 1, 8, 8), 1.375)
    images = torch.rand(1, 1, 8, 8, requires_grad=True)
    fovblur.foveated_blur(images, 1.375).sum().backward()
    assert images.grad is not None


def test_constants_made_in_a_graph_capture_are_neither_copied_nor_kept(monkeypatch):
    monkeypatch.setattr(validation, "_is_capturing", lambda images: True)
    known = dict(validation._constants)
    made = validation.constant((1.40625, 2.5), torch.float32, torch.rand(1))
    assert made.tolist() == [1.40625, 2.5] and validation._constants == known


def test_autocast_leaves_the_dtype_alone():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fovblur.gaussian_blur(torch.rand(1, 1, 8, 8), 1.0).dtype == torch.float32


def test_calls_from_many_threads_agree(seed):
    from concurrent.futures import ThreadPoolExecutor

    images = torch.rand(8, 3, 40, 40)
    expected = fovblur.gaussian_blur(images, 2.0)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: fovblur.gaussian_blur(images, 2.0), range(32)))
    assert all(torch.equal(result, expected) for result in results)


def test_works_in_a_forked_worker_after_use_in_the_parent():
    images = torch.rand(64, 3, 64, 64)
    expected = fovblur.gaussian_blur(images, 2.0)
    blur = lambda batch: fovblur.gaussian_blur(torch.stack(batch), 2.0)  # noqa: E731
    options = {"num_workers": 2, "multiprocessing_context": "fork", "collate_fn": blur}
    assert torch.equal(torch.cat(list(torch.utils.data.DataLoader(images, batch_size=16, **options))), expected)
