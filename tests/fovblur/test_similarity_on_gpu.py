"""The similarity on a GPU: devices, memory, sizes."""

import functools

import pytest
import torch
from gpu_streams import GPU_ONLY, TWO_GPUS_ONLY, scores_and_topk
from similarity_under_test import check_topk, exact, random_embeddings, random_gates

import fovblur

pytestmark = GPU_ONLY
TYPES = (torch.float16, torch.bfloat16, torch.float32)


def on_gpu(*tensors: torch.Tensor, device: str = "cuda") -> list[torch.Tensor]:
    return [tensor.to(device) for tensor in tensors]


@TWO_GPUS_ONLY
def test_the_second_device_serves_while_the_first_is_current(backend, seed):
    embeddings = on_gpu(*random_embeddings(70, 500, 64, 40), device="cuda:1")
    with torch.cuda.device(0):
        matrix, values, indices = scores_and_topk(*embeddings, backend=backend)
    assert matrix.device == values.device == indices.device == torch.device("cuda:1")
    check_topk(values.cpu(), indices.cpu(), exact(*embeddings).cpu(), 2e-6)


def test_inductor_compiles_it_whole(backend, seed):
    @torch.compile(fullgraph=True, dynamic=True)
    def retrieve(brain_image, *others):
        scores = fovblur.enhanced_similarity(brain_image * 2, *others, backend=backend)
        return (scores.relu(), *fovblur.enhanced_topk(brain_image * 2, *others, 3, backend=backend))

    for n, m in ((40, 60), (70, 90)):
        embeddings = on_gpu(*random_embeddings(n, m, 32, 24))
        matrix, values, indices = scores_and_topk(embeddings[0] * 2, *embeddings[1:], backend=backend, k=3)
        for one, other in zip(retrieve(*embeddings), (matrix.relu(), values, indices)):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_gradients(backend, dtype, seed):
    embeddings, gates = random_embeddings(70, 90, 40, 24, dtype), random_gates(70, 90)
    grad = torch.randn(70, 90).to(dtype)

    def gradients(function, embeddings, gates, grad):
        leaves = [x.detach().requires_grad_() for x in (*embeddings, *gates)]
        return torch.autograd.grad(function(*leaves[:4], row_gate=leaves[4], column_gate=leaves[5]), leaves, grad)

    expected = gradients(exact, [x.double() for x in embeddings], [x.double() for x in gates.values()], grad.double())
    ours = functools.partial(fovblur.enhanced_similarity, backend=backend)
    tolerance = {torch.float16: 2**-9, torch.bfloat16: 2**-6}.get(dtype, 1e-5)
    for one, other in zip(gradients(ours, on_gpu(*embeddings), on_gpu(*gates.values()), grad.to("cuda")), expected):
        assert ((one.cpu().double() - other).abs() <= tolerance * other.abs().max()).all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_topk_never_holds_the_matrix(backend, dtype, seed):
    embeddings = on_gpu(*random_embeddings(1000, 300_000, 64, 32, dtype))  # whose scores would take 1.2 GB
    fovblur.enhanced_topk(*embeddings, 100, backend=backend)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    values, indices = fovblur.enhanced_topk(*embeddings, 100, backend=backend)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 2**27
    rows = slice(500, 520)
    brain_image, image, brain_text, text = (x.cpu() for x in embeddings)
    scores = exact(brain_image[rows], image, brain_text[rows], text)
    check_topk(values[rows].cpu(), indices[rows].cpu(), scores, 2e-6)


@pytest.mark.large
def test_more_than_two_to_the_31_scores_and_more_tiles_than_a_grid_is_high(backend, seed):
    for n, m in ((2**16 + 3, 2**15 + 5), (2**23 + 129, 1)):
        embeddings = on_gpu(*random_embeddings(n, m, 8, 8, torch.float16))
        matrix = fovblur.enhanced_similarity(*embeddings, backend=backend)
        rows = torch.tensor([0, 1, n // 2, n - 130, n - 1], device="cuda")
        brain_image, image, brain_text, text = embeddings
        expected = exact(brain_image[rows], image, brain_text[rows], text)
        assert ((matrix[rows].double() - expected).abs() <= 2**-10 * expected.abs().clamp(min=1)).all()
        _, indices = fovblur.enhanced_topk(*embeddings, 1, backend=backend)
        assert (expected.gather(1, indices[rows])[:, 0] >= expected.max(1).values - 2e-6 * expected.abs().max()).all()


@pytest.mark.parametrize("dtype", [*TYPES, "tf32"], ids=str)
def test_every_kernel_on_awkward_shapes(backend, dtype, seed):
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    dtype, tolerance = (torch.float32, 2e-3) if dtype == "tf32" else (dtype, {torch.bfloat16: 2**-7}.get(dtype, 2**-10))
    for n, m, d, e, k in ((3, 131, 37, 5, 131), (130, 200, 40, 24, 10), (1, 1, 1, 0, 1), (5, 9, 0, 3, 2)):
        embeddings, gates = random_embeddings(n, m, d, e, dtype), random_gates(n, m)
        expected = exact(*embeddings, **gates)
        gates = dict(zip(gates, on_gpu(*gates.values())))
        matrix, values, indices = scores_and_topk(*on_gpu(*embeddings), backend=backend, k=k, **gates)
        scale = expected.abs().clamp(min=1)
        assert ((matrix.cpu().double() - expected).abs() <= tolerance * scale).all()
        assert ((values.cpu().double() - expected.gather(1, indices.cpu())).abs() <= tolerance * scale.max()).all()
