"""Search of galleries on disk against the full matrix: chunks, processes, and candidates of an index."""

import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn.functional import normalize

from bvsa_core.errors import UserError
from bvsa_core.retrieval.gallery import EmbeddingMatrix, Gallery
from bvsa_core.retrieval.gates import Reliability
from bvsa_core.retrieval.index import Index, default_kind, recall, search_candidates
from bvsa_core.retrieval.scoring import Embeddings, Scoring, similarity
from bvsa_core.retrieval.search import Queries, TopK, merge_topk, search

ROWS, D, E = 700, 24, 10
LABEL_FREE = [Scoring("label_free", Reliability(*of)) for of in (("margin", 0.05), ("max", 0.6))]
SCORINGS = [Scoring(), Scoring("always"), *LABEL_FREE]


@pytest.fixture
def queries(seed) -> Queries:
    return Queries(normalize(torch.randn(9, D)), normalize(torch.randn(9, E)))


@pytest.fixture
def gallery(tmp_path, seed) -> Gallery:
    """Return a gallery with rows that repeat, near and far apart, and that are not of unit norm."""
    image, text = torch.randn(ROWS, D), torch.randn(ROWS, E)
    image[350:] = image[:350]
    text[350:] = text[:350]
    image[5] = image[6]
    np.save(tmp_path / "image.npy", image.numpy())
    safetensors.torch.save_file({"other": torch.zeros(1), "text": text}, tmp_path / "text.safetensors")
    return Gallery([EmbeddingMatrix(tmp_path / "image.npy")], EmbeddingMatrix(f"{tmp_path}/text.safetensors:text"))


def expected(queries: Queries, gallery: Gallery, k: int, scoring: Scoring) -> TopK:
    every = slice(0, ROWS)
    scores = similarity(
        Embeddings(queries.brain_image, gallery.image(every), queries.brain_text, gallery.text(every)), scoring
    )
    values, rows = scores.sort(dim=1, descending=True, stable=True)
    return TopK(values[:, :k], rows[:, :k])


@pytest.mark.parametrize("chunk_rows", [None, 1, 64, 699])
@pytest.mark.parametrize("scoring", SCORINGS, ids=lambda s: f"{s.gate}-{s.reliability.kind if s.reliability else ''}")
def test_chunks_give_the_best_of_the_full_matrix(queries, gallery, scoring, chunk_rows):
    if chunk_rows == 1 and scoring.gate != "none":
        chunk_rows = 5
    result, best = search(queries, gallery, 12, scoring, chunk_rows), expected(queries, gallery, 12, scoring)
    torch.testing.assert_close(result.values, best.values, rtol=0, atol=1e-6)
    assert torch.equal(result.rows, best.rows)  # rows repeat bitwise, so that scores are really tied
    assert torch.equal(result.values, search(queries, gallery, 12, scoring).values)


def test_the_whole_gallery_can_be_ranked(queries, gallery):
    result = search(queries, gallery, ROWS, chunk_rows=100)
    assert torch.equal(result.rows.sort(1).values, torch.arange(ROWS).expand(9, -1))


def test_one_two_and_four_processes_find_the_same(queries, gallery, tmp_path, fork_server):
    torch.save(tuple(queries), tmp_path / "queries.pt")
    for processes in (1, 2, 4):
        ended = fork_server.run("distributed_workers:searches", tmp_path, processes=processes)
        assert not any(each.code for each in ended), ended
    alone = torch.load(tmp_path / "0_of_1.pt", weights_only=True)
    for name in ("0_of_2", "1_of_2", "0_of_4", "1_of_4", "2_of_4", "3_of_4"):
        for one, other in zip(alone, torch.load(tmp_path / f"{name}.pt", weights_only=True)):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]), name
    here = search(queries, gallery, 10, chunk_rows=64)
    assert torch.equal(alone[0][0], here.values) and torch.equal(alone[0][1], here.rows)


def test_merging_orders_ties_by_row():
    merged = merge_topk([TopK(torch.tensor([[3.0, 1.0]]), torch.tensor([rows])) for rows in ([9, 2], [4, 1])], 3)
    assert merged.values.tolist() == [[3, 3, 1]] and merged.rows.tolist() == [[4, 9, 1]]


def test_several_levels_are_put_side_by_side(queries, gallery, tmp_path):
    three = Gallery(gallery.images * 3, gallery.texts, text_embeddings=lambda features: features.repeat(1, 3))
    repeated = Queries(*(x.repeat(1, 3) for x in queries))
    result, once = search(repeated, three, 5), search(queries, gallery, 5)
    assert torch.equal(result.rows, once.rows)
    torch.testing.assert_close(result.values, 3 * once.values)


@pytest.mark.parametrize("scoring", SCORINGS[:2], ids=lambda s: s.gate)
def test_candidates_of_an_index_are_ranked_by_exact_scores(queries, gallery, scoring, tmp_path):
    index = Index(tmp_path / "some.faiss", gallery, "IVF8,Flat")
    exact = search(queries, gallery, 10, scoring)
    everything = search_candidates(queries, gallery, index.propose(queries.brain_image, ROWS, probes=8), 10, scoring)
    assert torch.equal(everything.values, exact.values) and torch.equal(everything.rows, exact.rows)
    few = index.propose(queries.brain_image, 20, probes=1)
    result = search_candidates(queries, gallery, few, 10, scoring)
    assert 0 < recall(result.rows, exact.rows) < 1
    for i in range(9):
        allowed = torch.isin(torch.arange(ROWS), few[i])
        ranked = search(Queries(*(x[i : i + 1] for x in queries)), gallery, ROWS, scoring)
        assert result.rows[i].tolist() == ranked.rows[0][allowed[ranked.rows[0]]][:10].tolist()


def test_an_index_is_kept_and_belongs_to_its_gallery(queries, gallery, tmp_path):
    path = tmp_path / "kept.faiss"
    first = Index(path, gallery).propose(queries.brain_image, 10, probes=1)
    written = path.read_bytes()
    assert torch.equal(Index(path, gallery, "IVF8,Flat").propose(queries.brain_image, 10, probes=1), first)
    assert path.read_bytes() == written and default_kind(ROWS) == "Flat" and default_kind(1_000_000) == "IVF4096,SQ8"
    np.save(tmp_path / "fewer.npy", np.ones((10, D), np.float32))
    with pytest.raises(UserError, match=f"an index of 700 x {D} embeddings, the gallery has 10 x {D}; delete it"):
        Index(path, Gallery([EmbeddingMatrix(tmp_path / "fewer.npy")]))
    path.write_bytes(written[:100])
    with pytest.raises(UserError, match="not a FAISS index, or damaged"):
        Index(path, gallery)
    with pytest.raises(UserError, match="'IFV8' is not one that FAISS makes"):
        Index(tmp_path / "b.faiss", gallery, "IFV8")
    with pytest.raises(UserError, match="cannot be trained on 700 images"):
        Index(tmp_path / "b.faiss", gallery, "IVF4096,Flat")
    with pytest.raises(UserError, match="cannot be written there"):
        Index(tmp_path / "nowhere" / "b.faiss", gallery)
    assert sorted(p.name for p in tmp_path.glob("*faiss*")) == ["kept.faiss"]


def test_without_faiss_the_extra_is_named(gallery, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'fovblur\[faiss\]'"):
        Index(tmp_path / "a.faiss", gallery)


def test_recall_counts_rows_in_any_order():
    assert recall(torch.tensor([[3, 1, -1]]), torch.tensor([[1, 2, 3]])) == pytest.approx(2 / 3)


def test_invalid_searches_are_refused(queries, gallery, tmp_path):
    np.save(tmp_path / "narrow.npy", np.ones((ROWS, 3), np.float32))
    broken = gallery.image(slice(0, ROWS)).numpy()
    broken[431, 2] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    narrow, broken = EmbeddingMatrix(tmp_path / "narrow.npy"), EmbeddingMatrix(tmp_path / "nan.npy")
    wide = "narrow.npy: embeddings of 3 dimensions, and those of recordings have 24"
    for gallery_, k, scoring, message in (
        (gallery, 0, Scoring(), "0 images are requested; the gallery has 700"),
        (gallery, 701, Scoring(), "701 images are requested; the gallery has 700"),
        (gallery, 5, Scoring("paper"), "paper belongs to 'bvsa evaluate'"),
        (gallery, 5, Scoring(rescoring="csls"), "csls belongs to 'bvsa evaluate'"),
        (gallery, 5, Scoring("always", shuffle_texts=True), "shuffle_texts belongs to"),
        (gallery, 5, Scoring("label_free"), "needs the reliability that a run learns"),
        (Gallery(gallery.images), 5, Scoring("always"), "compares recordings with texts; the gallery has none"),
        (Gallery([narrow]), 5, Scoring(), wide),
        (Gallery(gallery.images, narrow), 5, Scoring("always"), "embeddings of 3 dimensions"),
        (Gallery([broken], gallery.texts), 5, Scoring(), "nan.npy: row 431 has NaN or infinite values"),
    ):
        with pytest.raises(UserError, match=message):
            search(queries, gallery_, k, scoring, chunk_rows=100)
    queries.brain_image[4] = float("nan")
    with pytest.raises(UserError, match="the embedding of recording 4 is NaN"):
        search(queries, gallery, 5)


def test_invalid_gallery_files_are_refused(gallery, tmp_path):
    np.save(tmp_path / "whole.npy", np.ones((4, 3), np.int64))
    np.save(tmp_path / "cube.npy", np.ones((4, 3, 2), np.float32))
    np.save(tmp_path / "objects.npy", np.array([[None], [1]], dtype=object))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "image.npy").read_bytes()[:5000])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "text.safetensors").read_bytes()[:5000])
    (tmp_path / "a.pt").touch()
    for name, message in (
        ("nothing.npy", "nothing.npy: no such file"),
        ("a.pt", "unknown kind of gallery; give .npy or .safetensors"),
        ("whole.npy", r"torch.int64 of shape \(4, 3\); embeddings are floats"),
        ("cube.npy", r"of shape \(4, 3, 2\); embeddings are floats"),
        ("objects.npy", "damaged or not numbers"),
        ("cut.npy", "damaged or not numbers"),
        ("cut.safetensors", "damaged or not numbers"),
        ("text.safetensors", "holds other, text; pick an entry"),
        ("text.safetensors:nope", "holds other, text; pick an entry"),
    ):
        with pytest.raises(UserError, match=message):
            EmbeddingMatrix(f"{tmp_path}/{name}")
    with pytest.raises(UserError, match="text.safetensors has 700 rows and .*few.npy 2"):
        np.save(tmp_path / "few.npy", np.ones((2, 3), np.float32))
        Gallery([EmbeddingMatrix(tmp_path / "few.npy")], gallery.texts)
