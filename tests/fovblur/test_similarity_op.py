"""The similarity's ops in PyTorch: schema, fakes, autograd, torch.compile, calls from several threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from similarity_under_test import DTYPES, random_embeddings, random_gates

import fovblur
from fovblur.enhanced_similarity.op import enhanced_similarity_op, enhanced_topk_op


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype, seed):
    real = torch.float64 if dtype == torch.float64 else torch.float32
    gates = [gate.to(real) for gate in random_gates(5, 7).values()]
    embeddings = random_embeddings(5, 7, 4, 3, dtype)
    torch.library.opcheck(enhanced_topk_op, (*embeddings, *gates, 3, "auto"))
    torch.library.opcheck(enhanced_topk_op, (*embeddings, None, None, 3, "auto"))
    torch.library.opcheck(enhanced_similarity_op, (*embeddings, *gates, "auto"))
    leaves = [x.requires_grad_() for x in (*embeddings, *gates)]
    torch.library.opcheck(enhanced_similarity_op, (*leaves, "auto"))
    torch.library.opcheck(enhanced_similarity_op, (*leaves[:4], None, leaves[5], "auto"))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_gradcheck_in_float64(backend, gated, seed):
    leaves = list(random_embeddings(3, 4, 3, 2, torch.float64))
    if gated:
        leaves += [torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([1.0, 0.3, -0.2, 3.0]).double()]
    leaves = [x.requires_grad_() for x in leaves]

    def function(*x):
        gates = dict(zip(("row_gate", "column_gate"), x[4:]))
        return fovblur.enhanced_similarity(*x[:4], **gates, backend=backend)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_gradient_of_a_closed_gate(seed):
    """The gate's gradient is that of opening it; the texts' gradient is 0."""
    embeddings = [x.requires_grad_() for x in random_embeddings(2, 3, 4, 4, torch.float64)]
    gate = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    fovblur.enhanced_similarity(*embeddings, row_gate=gate).sum().backward()
    brain_image, image, brain_text, text = (x.detach() for x in embeddings)
    torch.testing.assert_close(gate.grad, ((brain_image @ image.T) * (brain_text @ text.T)).sum(1))
    assert (embeddings[2].grad == 0).all() and (embeddings[3].grad == 0).all()


def test_gradients_arrive_expanded_and_twice(seed):
    leaves = [x.requires_grad_() for x in random_embeddings(4, 5, 3, 2)]
    out = fovblur.enhanced_similarity(*leaves)
    grad = torch.rand(()).expand(4, 5)
    first = torch.autograd.grad(out, leaves, grad, retain_graph=True)
    second = torch.autograd.grad(out, leaves, grad.contiguous())
    for one, other in zip(first, second):
        torch.testing.assert_close(one, other)


def test_compiles_whole_with_dynamic_shapes(seed):
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def retrieve(brain_image, image, brain_text, text, gate):
        scores = fovblur.enhanced_similarity(brain_image * 2, image, brain_text, text, row_gate=gate)
        values, indices = fovblur.enhanced_topk(brain_image * 2, image, brain_text, text, 3, row_gate=gate)
        return scores.relu(), values, indices

    for n, m in ((4, 6), (7, 9), (5, 30)):
        embeddings = [x.requires_grad_() for x in random_embeddings(n, m, 8, 6)]
        gate = torch.rand(n)
        scores, values, indices = retrieve(*embeddings, gate)
        doubled = (embeddings[0] * 2, *embeddings[1:])
        expected = fovblur.enhanced_similarity(*doubled, row_gate=gate)
        torch.testing.assert_close(scores, expected.relu())
        torch.testing.assert_close(values, expected.topk(3).values)
        assert torch.equal(indices, expected.topk(3).indices)
        ours = torch.autograd.grad(scores.sum(), embeddings)
        for one, other in zip(ours, torch.autograd.grad(expected.relu().sum(), embeddings)):
            torch.testing.assert_close(one, other)


def test_topk_of_leaves_needs_no_gradient(seed):
    values, _ = fovblur.enhanced_topk(*(x.requires_grad_() for x in random_embeddings(3, 4, 2, 2)), 2)
    assert not values.requires_grad


def test_fake_tensors():
    with torch._subclasses.FakeTensorMode():
        embeddings = [torch.empty(n, 4, dtype=torch.float16) for n in (2, 3, 2, 3)]
        assert fovblur.enhanced_similarity(*embeddings).dtype == torch.float16
        values, indices = fovblur.enhanced_topk(*embeddings, 2)
    assert values.shape == indices.shape == (2, 2) and values.dtype == torch.float32 and indices.dtype == torch.int64


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_autocast_changes_nothing(backend, seed):
    embeddings = random_embeddings(5, 6, 40, 30)
    expected = fovblur.enhanced_similarity(*embeddings, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fovblur.enhanced_similarity(*embeddings, backend=backend), expected)
        assert fovblur.enhanced_topk(*embeddings, 2, backend=backend)[0].dtype == torch.float32


def test_calls_from_many_threads_agree(seed):
    embeddings = random_embeddings(70, 400, 32, 16)
    expected = fovblur.enhanced_topk(*embeddings, 5)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: fovblur.enhanced_topk(*embeddings, 5), range(32)))
    assert all(torch.equal(values, expected[0]) and torch.equal(indices, expected[1]) for values, indices in results)
