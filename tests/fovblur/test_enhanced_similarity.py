"""The similarity of every backend against the formula in float64."""

import pytest
import torch
from similarity_under_test import DTYPES, LAYOUTS, check_topk, exact, random_embeddings, random_gates

import fovblur

RELATIVE_ERROR = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 2**-10, torch.bfloat16: 2**-7}
SHAPES = [(1, 1, 1, 1), (3, 5, 7, 2), (64, 48, 64, 64), (65, 49, 33, 70), (130, 97, 300, 17), (7, 200, 1, 1)]
SHAPES += [(2, 3, 0, 4), (4, 3, 5, 0)]


def assert_close(ours: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert ours.shape == expected.shape
    error = (ours.double() - expected).abs().max().item()
    assert error <= tolerance * max(1.0, expected.abs().max().item()), error


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_the_formula(implementation, dtype, shape, seed):
    dtype = dtype if implementation.serves(dtype) else torch.float32
    embeddings = random_embeddings(*shape, dtype)
    for gates in ({}, random_gates(*shape[:2])):
        ours = implementation.matrix(*embeddings, **gates)
        assert ours.dtype == dtype
        assert_close(ours, exact(*embeddings, **gates), RELATIVE_ERROR[dtype])


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_strides(implementation, dtype, layout, seed):
    change = LAYOUTS.get(layout, lambda x: x[:1].expand_as(x))
    embeddings = [change(x) for x in random_embeddings(20, 70, 40, 30, dtype)]
    gates = {name: torch.stack([gate, gate], 1)[:, 0] for name, gate in random_gates(20, 70).items()}
    expected = exact(*embeddings, **gates)
    assert_close(implementation.matrix(*embeddings, **gates), expected, RELATIVE_ERROR[dtype])
    check_topk(*implementation.topk(*embeddings, 7, **gates), expected, 2e-6)


@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (0, 0)])
def test_empty_sides_give_empty_results(implementation, n, m):
    leaves = [x.requires_grad_() for x in random_embeddings(n, m, 4, 3)]
    assert implementation.matrix(*leaves).shape == (n, m)
    fovblur.enhanced_similarity(*leaves, backend="reference").sum().backward()
    assert all(leaf.grad.shape == leaf.shape and (leaf.grad == 0).all() for leaf in leaves)


def test_a_closed_gate_leaves_the_image_similarity_alone(implementation, seed):
    brain_image, image, brain_text, text = random_embeddings(70, 100, 16, 8)
    brain_text[3], text[10], brain_text[4] = float("nan"), float("inf"), float("-inf")
    rows, columns = torch.ones(70), torch.ones(100)
    rows[3] = rows[4] = columns[10] = 0
    plain = exact(brain_image, image, torch.zeros_like(brain_text), torch.zeros_like(text))
    ours = implementation.matrix(brain_image, image, brain_text, text, row_gate=rows, column_gate=columns)
    assert_close(ours[[3, 4]], plain[[3, 4]], 2e-6)
    assert_close(ours[:, 10], plain[:, 10], 2e-6)
    for gates in ({"row_gate": torch.zeros(70)}, {"column_gate": torch.zeros(100)}):
        assert_close(implementation.matrix(brain_image, image, brain_text, text, **gates), plain, 2e-6)
    assert implementation.matrix(brain_image, image, brain_text, text)[3].isnan().all()


def test_gates_of_booleans_and_integers(implementation, seed):
    embeddings = random_embeddings(5, 6, 8, 8)
    rows, columns = torch.tensor([1, 0, 1, 1, 0]), torch.tensor([0, 1, 1, 0, 1, 1])
    expected = implementation.matrix(*embeddings, row_gate=rows.float(), column_gate=columns.float())
    assert torch.equal(implementation.matrix(*embeddings, row_gate=rows.bool(), column_gate=columns), expected)


def test_negative_and_large_gates(implementation, seed):
    embeddings = random_embeddings(9, 20, 8, 8)
    gates = {"row_gate": torch.linspace(-3, 3, 9), "column_gate": torch.linspace(5, -5, 20)}
    assert_close(implementation.matrix(*embeddings, **gates), exact(*embeddings, **gates), 5e-6)


def test_unwritten_outputs_would_show(implementation, monkeypatch, seed):
    genuine = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: genuine(*args, **kwargs).fill_(-77))
    embeddings = random_embeddings(67, 101, 5, 6)
    assert_close(implementation.matrix(*embeddings), exact(*embeddings), 2e-6)
    values, indices = implementation.topk(*embeddings, 101)
    assert (values > -77).all() and (indices >= 0).all()


def test_gradients_in_half_precision_and_under_autocast(seed):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        leaves = [x.requires_grad_() for x in random_embeddings(6, 9, 16, 12, dtype)]
        exact_leaves = [x.detach().double().requires_grad_() for x in leaves]
        grad = torch.randn(6, 9).to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours = torch.autograd.grad(fovblur.enhanced_similarity(*leaves), leaves, grad)
        expected = torch.autograd.grad(exact(*exact_leaves), exact_leaves, grad.double())
        for one, other in zip(ours, expected):
            assert one.dtype == dtype
            assert_close(one, other, RELATIVE_ERROR[dtype])


def test_gradients_skip_what_needs_none(seed):
    leaves = list(random_embeddings(4, 5, 6, 7))
    for index in range(4):
        chosen = [x.detach().requires_grad_(i == index) for i, x in enumerate(leaves)]
        fovblur.enhanced_similarity(*chosen).square().sum().backward()
        assert [x.grad is not None for x in chosen] == [i == index for i in range(4)]
