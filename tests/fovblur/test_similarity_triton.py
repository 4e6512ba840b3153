"""The Triton similarity alone: independence of tiles and slices, large k, precision, limits, offsets."""

import functools

import pytest
import torch
from backends_under_test import ON_GPU, Implementation
from similarity_under_test import exact, random_embeddings

from fovblur.enhanced_similarity import chunked_topk
from fovblur.enhanced_similarity import triton as triton_backend
from fovblur.enhanced_similarity.params import Inputs

implementation = Implementation("triton")


def ranked(scores: torch.Tensor, k: int) -> list[list[int]]:
    """Return indices: larger first, then the lower index."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k].tolist()


def integers(n: int, m: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Return embeddings with exact sums and many equal scores."""
    return [torch.randint(-1, 2, shape).to(dtype) for shape in ((n, 3), (m, 3), (n, 2), (m, 2))]


@pytest.mark.parametrize("slices", [1, 2, 5])
def test_ties_across_tiles_and_slices(slices, monkeypatch, seed):
    monkeypatch.setattr(triton_backend, "slices_of", lambda rows, columns, programs: slices)
    embeddings = integers(2, 300)
    for k in (1, 17):
        values, indices = implementation.topk(*embeddings, k)
        scores = exact(*embeddings)
        assert indices.tolist() == ranked(scores, k)
        assert torch.equal(values.double(), scores.gather(1, indices))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_k_above_the_fused_limit(dtype, monkeypatch, seed):
    """Several chunks of the gallery and of the recordings; values of half embeddings are not rounded to half."""
    monkeypatch.setattr(chunked_topk, "GALLERY_CHUNK", 140)
    monkeypatch.setattr(chunked_topk, "SCORES", 300)
    k = triton_backend.LARGEST_FUSED_K + 1
    brain_image, image, brain_text, text = integers(3, 200, dtype)
    brain_image[:, 0] = 2049 / 1024  # its products have more digits than a half
    embeddings, gate = (brain_image, image, brain_text, text), torch.tensor([1.0, 0.0, 0.5])
    values, indices = implementation.topk(*embeddings, k, row_gate=gate)
    scores = exact(*embeddings, row_gate=gate)
    assert indices.tolist() == ranked(scores, k)
    assert torch.equal(values.double(), scores.gather(1, indices))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("k", [3, 20, 40])
def test_descriptors_and_pointers_give_the_same(dtype, k, monkeypatch, seed):
    """Several tiles in every direction, the last of each cut; rows beside the embeddings and between them are NaN.

    Sums of eighths are exact in any order, so that equal scores are equal in both.
    """
    torch.set_float32_matmul_precision("high")
    sizes = ((70, 96), (300, 96), (70, 72), (300, 72))
    embeddings = [torch.full((rows + 2, width + 8), torch.nan).to(dtype)[1:-1, :width] for rows, width in sizes]
    for x in embeddings:
        x.copy_(torch.randint(-4, 5, x.shape) / 8)
    gate = torch.rand(300) * (torch.rand(300) > 0.3)
    results = []
    for architectures in ((0, 90), ()):
        monkeypatch.setattr(triton_backend, "_DESCRIBED", architectures)
        configuration = triton_backend._configuration(Inputs(*embeddings, None, gate), 0, k)
        assert configuration["DESCRIBED"] == bool(architectures) and configuration["KEPT"] >= k
        results.append(
            (
                implementation.matrix(*embeddings, column_gate=gate),
                *implementation.topk(*embeddings, k, column_gate=gate),
            )
        )
    torch.testing.assert_close(results[0][0].double(), exact(*embeddings, column_gate=gate), rtol=2**-7, atol=2**-7)
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-5 if dtype == torch.float32 else 0, atol=1e-6)


def test_embeddings_that_the_copy_engine_does_not_take():
    x = torch.zeros(6, 32, dtype=torch.float16)
    assert triton_backend._can_be_described(x) and triton_backend._can_be_described(x[::2, 8:24])
    for other in (x[:, 1:], x[:, ::2], x.T, x[:0], x[:, :0], x[:1].expand(6, 32), x[:, :30].contiguous()):
        assert not triton_backend._can_be_described(other), other.stride()


def test_keys_keep_every_score_and_its_order():
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[nan, -inf, -3.5, -1e-45, 0.0, -0.0, 1e-45, 2.0, inf]])
    keys = chunked_topk.keys_of(scores, 2**32 - 9)
    assert ranked(keys, 9) == [[8, 7, 6, 4, 5, 3, 2, 1, 0]]
    values, indices = torch.empty(1, 9), torch.empty(1, 9, dtype=torch.int64)
    chunked_topk.decode(keys, values, indices)
    torch.testing.assert_close(values, scores, rtol=0, atol=0, equal_nan=True)
    assert indices.tolist() == [list(range(2**32 - 9, 2**32))]


def test_tf32_is_used_only_if_pytorch_allows_it():
    for setting, precision in (("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")):
        torch.set_float32_matmul_precision(setting)
        for kept in (0, 16):
            chosen = functools.partial(triton_backend.launch_configuration, kept=kept, described=False)
            assert chosen(torch.float32, 90, 1000)["PRECISION"] == precision
            assert chosen(torch.float16, 90, 1000)["PRECISION"] == "ieee"


@pytest.mark.skipif(ON_GPU, reason="takes addresses, not memory, on a CPU only")
@pytest.mark.parametrize("which", ["rows", "columns", "out"])
def test_offsets_beyond_32_bits(which, seed):
    """Only the pages that are touched, of 4 GiB of addresses, become memory."""
    embeddings = [x.half() for x in random_embeddings(2, 2, 2, 2)]
    strides = (1, 2**31 + 50) if which == "columns" else (2**31 + 50, 1)
    far = torch.empty(2**31 + 100, dtype=torch.float16).as_strided((2, 2), strides)
    out = torch.empty(2, 2, dtype=torch.float16)
    if which == "out":
        out = far
    else:
        embeddings[1] = far.copy_(embeddings[1])
    triton_backend.triton_similarity(out, Inputs(*embeddings, None, None))
    torch.testing.assert_close(out.double(), exact(*embeddings), rtol=2**-10, atol=2**-10)
