"""Random calls: shapes, types, strides, gates and non-finite embeddings, against the float64 formula."""

import torch
from backends_under_test import GPU_IMPLEMENTATIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from similarity_under_test import DTYPES, LAYOUTS, check_topk, exact, random_embeddings

from fovblur.dtypes import accumulation_dtype

RELATIVE_ERROR = {torch.float32: 4e-6, torch.float64: 1e-13, torch.float16: 2**-10, torch.bfloat16: 2**-7}

GATES = {None: lambda rows: None, "zeros": torch.zeros, "some": lambda rows: torch.randint(2, (rows,)).float()}
GATES["random"] = torch.randn


@st.composite
def calls(draw, largest: int):
    n, m = draw(st.integers(1, largest)), draw(st.integers(1, 4 * largest))
    d, e = draw(st.integers(0, 80)), draw(st.integers(0, 80))
    layouts = draw(st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=4, max_size=4))
    gates = [draw(st.sampled_from(list(GATES))) for _ in range(2)]
    broken = draw(st.none() | st.sampled_from([float("nan"), float("inf"), float("-inf")]))
    k, dtype, seed = draw(st.integers(1, m)), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**31))
    return (n, m, d, e), k, dtype, layouts, gates, broken, seed


def check(implementation, call) -> None:
    shape, k, dtype, layouts, gates, broken, seed = call
    torch.manual_seed(seed)
    dtype = dtype if implementation.serves(dtype) else torch.float32
    embeddings = [LAYOUTS[layout](x) for x, layout in zip(random_embeddings(*shape, dtype), layouts)]
    gates = dict(zip(("row_gate", "column_gate"), (GATES[kind](rows) for kind, rows in zip(gates, shape))))
    if broken is not None and shape[2] > 0:
        embeddings[1][shape[1] // 2, 0] = broken
    expected = exact(*embeddings, **gates)
    ours = implementation.matrix(*embeddings, **gates)
    values, indices = implementation.topk(*embeddings, k, **gates)
    finite = expected.isfinite()
    assert torch.equal(ours.isfinite(), finite)
    scale = max(1.0, expected[finite].abs().max().item() if finite.any() else 1.0)
    assert ((ours.double() - expected)[finite].abs() <= RELATIVE_ERROR[dtype] * scale).all()
    if finite.all():
        check_topk(values, indices, expected, RELATIVE_ERROR[accumulation_dtype(dtype)])
    else:
        assert torch.equal(values.isnan(), expected.gather(1, indices).isnan())
        ranked = values.nan_to_num(float("-inf"), float("inf"), float("-inf"))
        assert (ranked[:, :-1] >= ranked[:, 1:]).all()


def test_any_call(implementation):
    @settings(deadline=None, max_examples=15 if implementation.backend in GPU_IMPLEMENTATIONS else 150, print_blob=True)
    @given(call=calls(largest=20 if implementation.emulated else 80))
    def run(call):
        check(implementation, call)

    run()
