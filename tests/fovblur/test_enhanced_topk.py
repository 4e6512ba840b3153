"""Top-k of every backend: exact, ordered, ties to the lower index, for any tiles and threads."""

import pytest
import torch
from similarity_under_test import DTYPES, check_topk, exact, random_embeddings, random_gates

from fovblur.dtypes import accumulation_dtype

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 2e-6, torch.bfloat16: 2e-6}
SHAPES = [(1, 1, 1, 1, 1), (3, 50, 7, 2, 50), (64, 480, 64, 64, 10), (65, 1049, 33, 70, 3), (2, 3, 0, 4, 2)]


@pytest.fixture(params=[1, 2, 5])
def threads(request, torch_settings):
    torch.set_num_threads(request.param)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_best_of_the_formula(implementation, dtype, shape, seed):
    dtype = dtype if implementation.serves(dtype) else torch.float32
    *shape, k = shape
    if implementation.backend == "triton" and implementation.device.type == "cpu":
        shape[:2] = min(shape[0], 20), min(shape[1], 150)
    embeddings = random_embeddings(*shape, dtype)
    for gates in ({}, random_gates(*shape[:2])):
        values, indices = implementation.topk(*embeddings, k, **gates)
        assert values.dtype == accumulation_dtype(dtype) and indices.dtype == torch.int64
        assert values.shape == indices.shape == (shape[0], k)
        check_topk(values, indices, exact(*embeddings, **gates), TOLERANCE[dtype])


def by_key(scores: torch.Tensor, k: int) -> list[list[int]]:
    """Return indices by the rule: larger first, NaN last, -0 equal to 0, then the lower index."""
    rank = lambda row, j: (row[j] != row[j], -row[j] if row[j] == row[j] else 0.0, j)  # noqa: E731
    return [sorted(range(len(row)), key=lambda j, row=row: rank(row, j))[:k] for row in scores.tolist()]


@pytest.mark.parametrize("k", [1, 10, 700])
def test_ties_go_to_the_lower_index(implementation, threads, k, seed):
    """Small integers: sums are exact, and most values are equal to others."""
    n, m = (3, 700) if implementation.emulated else (70, 2000)
    embeddings = [torch.randint(-1, 2, shape).float() for shape in ((n, 3), (m, 3), (n, 2), (m, 2))]
    values, indices = implementation.topk(*embeddings, k)
    scores = exact(*embeddings)
    assert indices.tolist() == by_key(scores, k)
    assert torch.equal(values.double(), scores.gather(1, indices))


def test_equal_rows_are_equal_wherever_they_lie(implementation, seed):
    """A gallery that repeats one image: it scores the same in every tile and thread."""
    brain_image, image, brain_text, text = random_embeddings(9, 1, 100, 37)
    image, text = image.expand(997, 100), text.expand(997, 37).contiguous()
    _, indices = implementation.topk(brain_image, image, brain_text, text, 50)
    if implementation.backend != "reference":  # BLAS may round by the place
        assert indices.tolist() == [list(range(50))] * 9


def test_nan_ranks_last_and_zeros_are_equal(implementation, threads):
    nan, inf = float("nan"), float("inf")
    column = torch.tensor([0.0, -0.0, nan, -inf, 1.0, inf, -nan, 0.0, -inf, -0.0])
    ones = torch.ones(1, 1)
    image, text = column[:, None], torch.zeros(10, 1)
    for k in (1, 3, 9, 10):
        values, indices = implementation.topk(ones, image, ones, text, k)
        assert indices.tolist() == [[5, 4, 0, 1, 7, 9, 3, 8, 2, 6][:k]]
        assert torch.equal(values.isnan(), column[indices].isnan())
    many = torch.cat([torch.full((300, 1), nan), image, torch.full((300, 1), nan), image + 1])
    values, indices = implementation.topk(ones, many, ones, torch.zeros(620, 1), 20)
    assert indices.tolist() == by_key(many.T, 20)


def test_one_value_of_a_tile_beats_a_full_heap_of_nan(implementation):
    gallery = torch.full((500, 1), float("nan"))
    gallery[450:] = -torch.arange(50.0)[:, None] - 1e30
    _, indices = implementation.topk(torch.ones(2, 1), gallery, torch.ones(2, 1), torch.zeros(500, 1), 3)
    assert indices.tolist() == [[450, 451, 452]] * 2


def test_closed_gates(implementation, seed):
    brain_image, image, brain_text, text = random_embeddings(20, 300, 16, 8)
    plain = exact(brain_image, image, torch.zeros_like(brain_text), text)
    brain_text.fill_(torch.nan)
    values, indices = implementation.topk(brain_image, image, brain_text, text, 5, row_gate=torch.zeros(20))
    check_topk(values, indices, plain, 2e-6)


def test_no_recordings(implementation):
    values, indices = implementation.topk(*random_embeddings(0, 5, 4, 3), 2)
    assert values.shape == indices.shape == (0, 2)


@pytest.mark.parametrize("implementation", ["cuda", "triton"], indirect=True)
def test_indices_beyond_32_bits_are_refused(implementation):
    most = {"cuda": "4,294,967,294", "triton": "4,294,967,296"}[implementation.backend]
    one = torch.ones(1, 1, dtype=torch.float16, device=implementation.device)
    gallery = one.expand(2**32 + 1, 1)
    message = f"image has 4,294,967,297 rows; backend '{implementation.backend}' ranks at most {most}"
    with pytest.raises(ValueError, match=message):
        implementation.topk(one, gallery, one, gallery, 3)
