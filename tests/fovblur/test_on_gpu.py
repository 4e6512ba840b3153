"""On a GPU: graphs and streams of both functions; devices, compilation and memory of the blur."""

import pytest
import torch
from gpu_streams import GPU_ONLY, TWO_GPUS_ONLY, captured, on_late_inputs, scores_and_topk
from similarity_under_test import random_embeddings

import fovblur
from fovblur.foveated_blur.validation import BORDERS

pytestmark = GPU_ONLY


def batch(device: str = "cuda", count: int = 16, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, dict]:
    images = torch.rand(count, 3, 96, 96, device=device).mul(255).to(dtype)
    kernel_size = torch.randint(0, 40, (count,), device=device) * 2 + 1
    return images, {"kernel_size": kernel_size, "gain": torch.rand(count, device=device)}


def blur_and_gradients(images, sigma, gain, backend: str) -> tuple[torch.Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (images, sigma, gain)]
    options = {"kernel_size": 2 * (4 * sigma).int() + 1, "backend": backend}
    out = fovblur.foveated_blur(leaves[0], leaves[1], gain=leaves[2], **options)
    return (out.detach(), *torch.autograd.grad(out.square().sum(), leaves))


CALLS = [
    (blur_and_gradients, lambda: (torch.rand(4, 3, 70, 96), 1 + 5 * torch.rand(4), torch.rand(4))),
    (scores_and_topk, lambda: random_embeddings(70, 500, 64, 40)),
]


@pytest.mark.parametrize(("function", "random_inputs"), CALLS)
def test_a_graph_replays_on_changed_input(backend, function, random_inputs, seed):
    inputs = [x.cuda() for x in random_inputs()]
    graph, results = captured(lambda: function(*inputs, backend=backend))
    for old, new in zip(inputs, random_inputs()):
        old.copy_(new)
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(results, function(*inputs, backend=backend)))


@pytest.mark.parametrize(("function", "random_inputs"), CALLS)
def test_work_is_queued_on_the_current_stream(backend, function, random_inputs, seed):
    inputs = [x.cuda() for x in random_inputs()]
    expected = function(*inputs, backend=backend)
    late = [torch.ones_like(x) for x in inputs]
    results = on_late_inputs(lambda *x: function(*x, backend=backend), late, inputs)
    assert all(torch.equal(one, other) for one, other in zip(results, expected))


def test_a_constant_may_be_new_inside_a_graph_capture(backend):
    images = torch.rand(2, 3, 64, 64, device="cuda")
    fovblur.foveated_blur(images, 2.0, mean=0.5, backend=backend)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fovblur.foveated_blur(images, 2.03125, gain=0.28125, mean=0.53125, backend=backend)
    graph.replay()
    expected = fovblur.foveated_blur(images, 2.03125, gain=0.28125, mean=0.53125, backend=backend)
    assert torch.equal(out, expected)


@TWO_GPUS_ONLY
def test_the_second_device_serves_while_the_first_is_current(backend, seed):
    images, parameters = batch("cuda:1")
    with torch.cuda.device(0):
        out = fovblur.foveated_blur(images, **parameters, backend=backend)
    assert out.device == torch.device("cuda:1")
    expected = fovblur.foveated_blur(images, **parameters, backend="reference")
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-3)


def test_inductor_compiles_it_whole(backend, seed):
    @torch.compile(fullgraph=True, dynamic=True)
    def pipeline(images, kernel_size, gain):
        return fovblur.foveated_blur(images * 2, kernel_size=kernel_size, gain=gain, backend=backend) + 1

    for count in (4, 7):
        images, parameters = batch(count=count)
        expected = fovblur.foveated_blur(images * 2, **parameters, backend=backend) + 1
        torch.testing.assert_close(pipeline(images, **parameters), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_both_backends_agree_and_take_no_memory_beside_the_result(dtype, seed):
    images, parameters = batch(count=64, dtype=dtype)
    results = []
    for name in ("cuda", "triton"):
        fovblur.foveated_blur(images, **parameters, backend=name)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results.append(fovblur.foveated_blur(images, **parameters, backend=name))
        torch.cuda.synchronize()
        assert torch.cuda.max_memory_allocated() - before - results[-1].nbytes < 2**20, name
    tolerance = {torch.uint8: 1.0, torch.float16: 0.3, torch.bfloat16: 2.0, torch.float32: 1e-3}[dtype]
    torch.testing.assert_close(results[0].float(), results[1].float(), rtol=0, atol=tolerance)


def test_autocast_leaves_the_dtype_alone(backend):
    images, parameters = batch()
    with torch.autocast("cuda", dtype=torch.float16):
        assert fovblur.foveated_blur(images, **parameters, backend=backend).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_kernel_on_awkward_shapes(backend, dtype, seed):
    for height, width, kernel_size in ((7, 5, 21), (33, 65, 9), (40, 48, 301)):
        images = torch.rand(2, 2, height, width, device="cuda").mul(255).to(dtype)
        leaf = images.requires_grad_(dtype != torch.uint8)
        # uint8 goes directly to float32 and by products to float16
        for out_dtype in (torch.float32, torch.float16) if dtype == torch.uint8 else (dtype,):
            sigma = torch.tensor([1.5, 4.0], device="cuda", requires_grad=True)
            gain = torch.tensor([0.3, 0.9], device="cuda", requires_grad=True)
            options = {"kernel_size": kernel_size, "gain": gain, "mean": 0.5, "std": 0.2, "out_dtype": out_dtype}
            out = fovblur.foveated_blur(leaf, sigma, **options, backend=backend)
            out.float().sum().backward()
            assert out.isfinite().all() and sigma.grad.isfinite().all() and gain.grad.isfinite().all()


# ---- options: borders, axes, maps, tables, lists ----

OPTIONS = {
    "axes": {"sigma": [[4.0, 0.7]]},
    "map": {"sigma": [3.0], "weight": torch.rand(3, 45, 70, generator=torch.Generator().manual_seed(5))},
    "fixations": {"sigma": [3.0], "fixation": [[[3.0, 4.0], [30.0, 60.0]]] * 3},
    "tables": {"kernel_size": [3, 9, 21], "rule": "opencv"},
    "wide": {"sigma": [40.0], "kernel_size": 1201},
}


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_agree_with_the_reference(backend, border, name, seed):
    images, grad = torch.rand(3, 2, 45, 70), torch.rand(3, 2, 45, 70) - 0.3
    results = []
    for to, its_backend in (("cuda", torch.float32), backend), (("cpu", torch.float64), "reference"):
        leaves = {"images": images, "gain": torch.full((3,), 0.4)}
        options = {"border": border, **OPTIONS[name]}
        if "sigma" in options:
            leaves["sigma"] = torch.tensor(options["sigma"]).expand(3, *(2,) * (name == "axes"))
        options |= {key: leaf.to(*to).requires_grad_() for key, leaf in leaves.items()}
        if "weight" in options:
            options["weight"] = options["weight"].to(*to)
        out = fovblur.foveated_blur(**options, backend=its_backend)
        results.append([out, *torch.autograd.grad(out, [options[key] for key in leaves], grad.to(*to))])
    for one, other in zip(*results):
        scale = other.abs().max() if one.ndim == 4 else grad.abs().sum() / len(grad)
        assert (one.cpu().double() - other).abs().max() < 1e-4 * scale


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32], ids=str)
def test_a_list_of_images_is_one_launch(backend, dtype, mapped, seed):
    images = [torch.rand(3, h, w, device="cuda").mul(255).to(dtype) for h, w in ((20, 30), (200, 90), (1, 1), (64, 65))]
    options = {"kernel_size": [3, 51, 9, 21], "border": "symmetric", "backend": backend}
    maps = [torch.rand(image.shape[1:], device="cuda") for image in images]
    call = lambda: fovblur.foveated_blur(images, weight=maps if mapped else None, **options)  # noqa: E731
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        blurred = call()
        torch.cuda.synchronize()
    kernel = "blur_general" if backend == "cuda" else "_list_blur_kernel"
    assert sum(event.count for event in profile.key_averages() if kernel in event.key) == 1
    options |= {"backend": "reference"}
    double = [image.cpu() if dtype == torch.uint8 else image.cpu().double() for image in images]
    expected = fovblur.foveated_blur(double, weight=[each.cpu() for each in maps] if mapped else None, **options)
    for one, other in zip(blurred, expected):
        error = {torch.uint8: 1.0, torch.float16: 0.2, torch.float32: 1e-3}[dtype]
        torch.testing.assert_close(one.cpu().double(), other.double(), rtol=0, atol=error)


def test_a_list_is_blurred_on_the_current_stream(backend, seed):
    images = [torch.rand(3, h, 40, device="cuda") for h in (20, 70)]
    call = lambda *images: tuple(fovblur.gaussian_blur(list(images), 3.0, border="circular", backend=backend))  # noqa: E731
    expected = call(*images)
    results = on_late_inputs(call, [torch.ones_like(x) for x in images], images)
    assert all(torch.equal(one, other) for one, other in zip(results, expected))


def test_a_graph_of_a_list_replays_on_changed_input(backend, seed):
    images = [torch.rand(3, h, 40, device="cuda") for h in (20, 70)]
    fixation = torch.rand(2, 2, device="cuda") * 20
    call = lambda: fovblur.foveated_blur(images, kernel_size=9, fixation=fixation, backend=backend)  # noqa: E731
    for index, image in enumerate(images):  # a graph has a launch for each image; compile those kernels before
        fovblur.foveated_blur(image, kernel_size=9, fixation=fixation[index], backend=backend)
    graph, result = captured(call)
    for each in (*images, fixation):
        each.copy_(torch.rand_like(each))
    graph.replay()
    for one, other in zip(result, call()):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("border", BORDERS)
def test_a_graph_with_options_replays_on_changed_input(backend, border, seed):
    random_inputs = lambda: [torch.rand(2, 3, 50, 60), torch.rand(2, 50, 60), 1 + torch.rand(2, 2)]  # noqa: E731
    inputs = [x.cuda() for x in random_inputs()]
    options = {"kernel_size": (9, 21), "border": border, "backend": backend}
    call = lambda images, weight, sigma: fovblur.foveated_blur(images, sigma, weight=weight, **options)  # noqa: E731
    graph, result = captured(lambda: call(*inputs))
    for old, new in zip(inputs, random_inputs()):
        old.copy_(new)
    graph.replay()
    assert torch.equal(result, call(*inputs))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_retinal_blur_agrees_with_the_reference(backend, dtype, border, seed):
    images = torch.rand(2, 3, 90, 140).mul(255).to(dtype)
    options = {"pixels_per_degree": 8.0, "border": border, "out_dtype": torch.float32}
    fixation = torch.tensor([[10.0, 120.0], [45.0, 70.0]])
    out = fovblur.retinal_blur(images.cuda(), fixation.cuda(), **options, backend=backend)
    expected = fovblur.retinal_blur(images, fixation, **options, backend="reference")
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=2e-2)
