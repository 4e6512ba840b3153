"""The CUDA similarity alone: tf32, slices of the gallery, wide and strided loads, races."""

import cuda_on_host
import pytest
import torch
from backends_under_test import ON_GPU, in_both_orders
from similarity_under_test import LAYOUTS, exact, random_embeddings, random_gates

from fovblur import backends
from fovblur.enhanced_similarity import chunked_topk, native

OPERANDS = ["float16", "bfloat16", "float32", "tf32"]

pytestmark = pytest.mark.parametrize("implementation", ["cuda"], indirect=True)


@pytest.fixture(params=OPERANDS)
def dtype(request, torch_settings):
    """The dtype of the embeddings; "tf32" is float32 with a matmul precision that allows tf32."""
    torch.set_float32_matmul_precision("high" if request.param == "tf32" else "highest")
    return torch.float32 if request.param == "tf32" else getattr(torch, request.param)


@pytest.fixture
def module(tmp_path_factory):
    return backends.load_native("cuda") if ON_GPU else cuda_on_host.build(tmp_path_factory.getbasetemp())


def error_bound(embeddings, rounding: float) -> torch.Tensor:
    """Return the error of a matrix whose sums err by at most `rounding` times the sum of their terms' magnitudes."""
    brain_image, image, brain_text, text = (x.double() for x in embeddings)
    of_image, of_text = (rounding * x.abs() @ y.abs().T for x, y in ((brain_image, image), (brain_text, text)))
    factor, similarity = 1 + brain_text @ text.T, brain_image @ image.T
    modulation = 2**-22 * (similarity * factor).abs()  # in float32
    return of_image * (factor.abs() + of_text) + (similarity * of_text).abs() + modulation


def test_matmul_precision_chooses_the_products_of_float32(implementation, seed):
    embeddings = random_embeddings(20, 30, 200, 100)
    expected, results = exact(*embeddings), {}
    for precision in ("high", "medium", "highest"):
        torch.set_float32_matmul_precision(precision)
        results[precision] = implementation.matrix(*embeddings)
    in_order = 200 * 2**-24  # a rounding for each term
    assert ((results["highest"] - expected).abs() <= error_bound(embeddings, in_order)).all()
    assert ((results["high"] - expected).abs() <= error_bound(embeddings, 2.001 * 2**-11 + 2 * in_order)).all()
    assert (results["high"] - expected).abs().max() > 10 * (results["highest"] - expected).abs().max()
    assert torch.equal(results["high"], results["medium"])


def test_threads_may_take_turns_in_any_order(implementation, dtype, monkeypatch, tmp_path_factory, seed):
    embeddings, gates = random_embeddings(131, 150, 200, 70, dtype), random_gates(131, 150)
    call = lambda: (implementation.matrix(*embeddings, **gates), *implementation.topk(*embeddings, 40, **gates))  # noqa: E731
    results = in_both_orders(call, monkeypatch, tmp_path_factory)
    assert all(torch.equal(one, other) for one, other in zip(*results))
    torch.testing.assert_close(results[0][1], results[0][0].float().topk(40).values, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("k", [1, 32, 33, 100, 128])
def test_results_do_not_depend_on_the_slices(implementation, module, monkeypatch, k, seed):
    """All images occur twice, so that equal scores lie in several slices."""
    brain_image, image, brain_text, text = random_embeddings(3, 260, 20, 10)
    twice = torch.cat([torch.arange(260), torch.arange(260)])
    embeddings = brain_image, image[twice], brain_text, text[twice]
    order = implementation.matrix(*embeddings).sort(dim=1, descending=True, stable=True)
    for slices in (1, 2, 5):
        monkeypatch.setattr(native, "slices_of", lambda *sizes, slices=slices: min(slices, sizes[1]))
        values, indices = implementation.topk(*embeddings, k)
        assert torch.equal(values, order.values[:, :k]) and torch.equal(indices, order.indices[:, :k])


def test_k_above_the_fused_limit(implementation, module, monkeypatch, dtype, seed):
    embeddings, gates = random_embeddings(5, 400, 40, 24, dtype), random_gates(5, 400)
    k = module.MOST_FUSED
    fused = implementation.topk(*embeddings, k, **gates)
    monkeypatch.setattr(chunked_topk, "GALLERY_CHUNK", 1)
    for more in (k + 1, 400):
        values, indices = implementation.topk(*embeddings, more, **gates)
        assert torch.equal(values[:, :k], fused[0]) and torch.equal(indices[:, :k], fused[1])
        assert values.dtype == torch.float32 and all(len(set(row)) == more for row in indices.tolist())


@pytest.mark.parametrize("layout", ["transposed", "strided", "offset", "padded"])
def test_wide_and_strided_loads_give_the_same(implementation, dtype, layout, seed):
    """Contiguous rows of whole chunks of 16 bytes are copied; others are read element by element."""
    embeddings = random_embeddings(20, 70, 80, 40, dtype)
    ours = implementation.matrix(*(LAYOUTS[layout](x) for x in embeddings))
    assert torch.equal(ours, implementation.matrix(*embeddings))
    assert torch.equal(ours, implementation.matrix(*(torch.nn.functional.pad(x, (0, 1)) for x in embeddings)))


def test_tiles_of_closed_gates_and_broken_rows(implementation, dtype, seed):
    brain_image, image, brain_text, text = random_embeddings(140, 12, 40, 24, dtype)
    plain = implementation.matrix(brain_image, image, torch.zeros_like(brain_text), text)
    brain_text[128:], brain_text[5], text[3] = torch.nan, torch.inf, -torch.inf
    rows, columns = torch.ones(140), torch.ones(12)
    rows[128:] = rows[5] = columns[3] = 0  # all of the second tile of recordings, and some of the first
    brain_image[7, 2] = torch.nan
    ours = implementation.matrix(brain_image, image, brain_text, text, row_gate=rows, column_gate=columns)
    assert torch.equal(ours[128:], plain[128:]) and torch.equal(ours[5], plain[5])
    whole = torch.arange(140) != 7
    assert torch.equal(ours[whole, 3], plain[whole, 3]) and ours[7].isnan().all() and ours[whole].isfinite().all()
