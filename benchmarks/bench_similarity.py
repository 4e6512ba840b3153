"""The similarity and its k best against the alternatives on the same embeddings; outputs are checked first."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import fovblur
from benchmarks.harness import largest_difference
from fovblur import backends

SUITE = "similarity"
CHUNK = 65_536  # images that the chunked peer scores at once
OURS = ("cpu", "cuda", "triton")
ERROR = {torch.float32: 1e-5, torch.float16: 4e-3}
CHECKED = 16  # recordings whose results are compared


@dataclass(frozen=True)
class Case:
    """Top-k, or the whole matrix for k = 0; `gate` is the row gate of all recordings."""

    recordings: int
    images: int
    width: int
    dtype: torch.dtype
    k: int = 0
    gate: float = 1.0

    def __str__(self) -> str:
        what = f"top-{self.k}" if self.k else "matrix"
        shape = f"{self.recordings:,} x {self.images:,} x {self.width}"
        return f"{what}, {shape} {str(self.dtype).removeprefix('torch.')}, gates {self.gate:.0f}"


CASES = [
    Case(64, 1_000_000, 512, torch.float32, k=10),
    Case(64, 1_000_000, 512, torch.float32, k=10, gate=0.0),
    Case(1024, 4096, 512, torch.float32),
    Case(1024, 4096, 512, torch.float16),
    Case(200, 200, 1024, torch.float32),  # THINGS' test
    Case(200, 200, 1024, torch.float32, k=5, gate=0.0),
]


def eager(brain_image: Tensor, image: Tensor, brain_text: Tensor, text: Tensor, gate: Tensor) -> Tensor:
    """Return the formula in the dtype of the embeddings."""
    return (brain_image @ image.T) * (1 + gate * (brain_text @ text.T))


def by_eager(case: Case, embeddings: list[Tensor], gate: Tensor) -> Callable[[], object]:
    if case.k:
        return lambda: eager(*embeddings, gate).topk(case.k)
    return lambda: eager(*embeddings, gate)


def by_chunks(case: Case, embeddings: list[Tensor], gate: Tensor) -> Callable[[], object]:
    brain_image, image, brain_text, text = embeddings

    def topk() -> tuple[Tensor, Tensor]:
        best = []
        for first in range(0, case.images, CHUNK):
            chunk = slice(first, first + CHUNK)
            values, indices = eager(brain_image, image[chunk], brain_text, text[chunk], gate).topk(case.k)
            best.append((values, indices + first))
        values, order = torch.cat([values for values, _ in best], 1).topk(case.k)
        return values, torch.cat([indices for _, indices in best], 1).gather(1, order)

    return topk


def by_compiler(case: Case, embeddings: list[Tensor], gate: Tensor) -> Callable[[], object]:
    compiled = torch.compile(lambda *x: eager(*x).topk(case.k) if case.k else eager(*x))
    return lambda: compiled(*embeddings, gate)


def by_faiss(case: Case, embeddings: list[Tensor], gate: Tensor) -> Callable[[], object]:
    """Search by image similarity alone, for closed gates; filling the index is not timed."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(case.width)
    index.add(embeddings[1].numpy())
    queries = embeddings[0].numpy()
    return lambda: tuple(map(torch.from_numpy, index.search(queries, case.k)))


PEERS = {
    "eager PyTorch": by_eager,
    "eager, in chunks": by_chunks,
    "torch.compile": by_compiler,
    "faiss IndexFlatIP": by_faiss,
}


def providers_of(case: Case, device_name: str) -> list[str]:
    names = [name for name in OURS if (name == "cpu") == (device_name == "cpu")]
    names = [name for name in names if backends.unavailable_reason(name) is None]
    names += ["eager PyTorch", *(["eager, in chunks"] if case.k else []), "torch.compile"]
    if case.k and case.gate == 0 and device_name == "cpu" and case.dtype == torch.float32:
        names.append("faiss IndexFlatIP")
    return names


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        device_name = metafunc.config.getoption("--device")
        pairs = [(case, name) for case in CASES for name in providers_of(case, device_name)]
        metafunc.parametrize(("case", "provider"), pairs, ids=[f"{case}-{name}" for case, name in pairs])


@functools.lru_cache(maxsize=1)
def make_embeddings(recordings: int, images: int, width: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return rows of length 1, made in parts, so that no large gallery is made in float32 first."""
    generator = torch.Generator(device).manual_seed(0)

    def unit_rows(rows: int) -> Tensor:
        out = torch.empty(rows, width, dtype=dtype, device=device)
        for part in out.split(CHUNK):
            part.copy_(torch.nn.functional.normalize(torch.randn(part.shape, generator=generator, device=device)))
        return out

    return [unit_rows(rows) for rows in (recordings, images, recordings, images)]


def moved_and_multiplied(case: Case) -> tuple[int, int]:
    """Return the bytes a call reads and writes, and its multiply-adds; without the texts if their gates are closed."""
    products = 2 if case.gate else 1
    read = products * (case.recordings + case.images) * case.width * case.dtype.itemsize
    written = case.recordings * (case.k * 12 if case.k else case.images * case.dtype.itemsize)
    return read + written, products * case.recordings * case.images * case.width


def error_of(case: Case, result, embeddings: list[Tensor], gate: Tensor) -> float:
    """Return how far a few recordings are from the formula in float64: the matrix, or the k best and their scores."""
    brain_image, image, brain_text, text = embeddings
    few, of_few = (brain_image[:CHECKED], brain_text[:CHECKED]), gate[:CHECKED].double()
    if not case.k:
        exact = eager(few[0].double(), image.double(), few[1].double(), text.double(), of_few)
        return largest_difference(result[:CHECKED], exact)
    values, indices = (x[:CHECKED] for x in result)
    best, _ = fovblur.enhanced_topk(few[0], image, few[1], text, case.k, row_gate=of_few[:, 0], backend="reference")
    at_indices = lambda one, other: torch.einsum("nd,nkd->nk", one.double(), other[indices].double())  # noqa: E731
    named = at_indices(few[0], image) * (1 + of_few * at_indices(few[1], text))
    return max(largest_difference(values, best), largest_difference(values, named))


def bench_similarity(case, provider, device, limits, time_provider):
    if provider.startswith("faiss"):
        pytest.importorskip("faiss", reason="faiss is absent; install it with: pip install -e '.[faiss]'")
    embeddings = make_embeddings(case.recordings, case.images, case.width, case.dtype, device)
    gate = torch.full((case.recordings, 1), case.gate, dtype=case.dtype, device=device)
    if provider in OURS:
        rows = gate[:, 0].float()
        function = {
            True: lambda: fovblur.enhanced_topk(*embeddings, case.k, row_gate=rows, backend=provider),
            False: lambda: fovblur.enhanced_similarity(*embeddings, row_gate=rows, backend=provider),
        }[case.k > 0]
    else:
        function = PEERS[provider](case, embeddings, gate)
    assert error_of(case, function(), embeddings, gate) < ERROR[case.dtype], provider
    limit = limits.seconds(*moved_and_multiplied(case), half=case.dtype == torch.float16)
    time_provider(function, suite=SUITE, case=str(case), provider=provider, ours=provider in OURS, limit_s=limit)
