"""Approximate search of large galleries: a FAISS index proposes images, and exact scores rank them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fovblur
from bvsa_core.distributed.processes import ProcessGroup
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import temporary_path
from bvsa_core.progress import Progress, no_progress
from bvsa_core.retrieval.gallery import Gallery
from bvsa_core.retrieval.scoring import Scoring
from bvsa_core.retrieval.search import Queries, TopK, check, chunks, compared, row_gate

ROWS_AT_ONCE = 65_536
TRAINING_ROWS_PER_CELL = 64  # FAISS asks for 39 to 256


class Index:
    """FAISS index of the image embeddings of a gallery, by inner product.

    Args:
        path: file of the index; it is read if it exists, and written otherwise.
        kind: FAISS index factory string, such as "IVF4096,SQ8" or "HNSW32"; default: see `default_kind`.

    Raises:
        UserError: FAISS is not installed, the kind is unknown, or the file is not an index of this gallery.
    """

    def __init__(self, path: Path, gallery: Gallery, kind: str | None = None, progress: Progress = no_progress):
        try:
            import faiss
        except ImportError as error:
            raise UserError("an approximate index needs FAISS; install it: pip install 'fovblur[faiss]'") from error
        self.faiss, self.gallery, self.path = faiss, gallery, path
        self.width = gallery.image(slice(0, 1)).shape[1]
        faiss.omp_set_num_threads(torch.get_num_threads())
        self.index = self._read() if path.exists() else self._build(kind or default_kind(len(gallery)), progress)

    def propose(self, brain_image: Tensor, count: int, probes: int) -> Tensor:
        """Return rows (N, count) of images probably nearest to recordings (N, D), ascending; -1 is no image."""
        if hasattr(self.index, "nprobe"):
            self.index.nprobe = probes
        elif hasattr(self.index, "hnsw"):
            self.index.hnsw.efSearch = max(count, probes)
        brain = np.ascontiguousarray(brain_image.float().cpu().numpy())
        _, rows = self.index.search(brain, min(count, len(self.gallery)))
        return torch.from_numpy(rows).sort(dim=1).values

    def _read(self):
        with _faiss_errors(f"{self.path}: not a FAISS index, or damaged; delete it, and it is built again"):
            index = self.faiss.read_index(str(self.path))
        shape, expected = (index.ntotal, index.d), (len(self.gallery), self.width)
        if shape != expected:
            has = "an index of {} x {} embeddings, the gallery has {} x {}".format(*shape, *expected)
            raise UserError(f"{self.path}: {has}; delete it, and it is built again, or name another file")
        return index

    def _build(self, kind: str, progress: Progress):
        rows = len(self.gallery)
        with _faiss_errors(f"index kind {kind!r} is not one that FAISS makes, such as IVF4096,SQ8 or HNSW32"):
            index = self.faiss.index_factory(self.width, kind, self.faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            wanted = TRAINING_ROWS_PER_CELL * getattr(index, "nlist", 256)
            chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:wanted].sort().values
            with _faiss_errors(f"index kind {kind!r} cannot be trained on {len(chosen)} images; choose fewer cells"):
                index.train(self.gallery.image(chosen).cpu().numpy())
        for start in range(0, rows, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, rows)
            index.add(self.gallery.image(slice(start, stop)).cpu().numpy())
            progress("rows indexed", stop, rows)
        partial = temporary_path(self.path)
        try:
            with _faiss_errors(f"{self.path}: the index cannot be written there; name another file"):
                self.faiss.write_index(index, str(partial))
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
        return index


@contextmanager
def _faiss_errors(message: str) -> Iterator[None]:
    """Report errors of FAISS as a UserError with this message."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(message) from error


def default_kind(rows: int) -> str:
    """Return the default kind of index: IVF with about 4 sqrt(rows) cells of 8-bit rows; below 10,000 rows, Flat."""
    return "Flat" if rows < 10_000 else f"IVF{2 ** round(math.log2(4 * math.sqrt(rows)))},SQ8"


def search_candidates(
    queries: Queries, gallery: Gallery, candidates: Tensor, k: int, scoring: Scoring = Scoring()
) -> TopK:
    """Return the k best of the candidate rows (N, c) of every recording, by the scores of `retrieval.search.search`.

    If there are fewer candidates, the rest has value -inf and row -1. Errors are those of `search`.
    """
    check(queries, gallery, k, scoring)
    gate = row_gate(queries, gallery, scoring, chunks(gallery), ProcessGroup())
    best = TopK(torch.full((len(candidates), k), -math.inf), torch.full((len(candidates), k), -1))
    for i, proposed in enumerate(candidates):
        rows = proposed[proposed >= 0]
        if not len(rows):
            continue
        image, brain_text, text = compared(queries, gallery, scoring, rows)
        count, one = min(k, len(rows)), slice(i, i + 1)
        inputs = queries.brain_image[one], image, brain_text[one], text
        values, places = fovblur.enhanced_topk(*inputs, count, row_gate=None if gate is None else gate[one])
        best.values[i, :count], best.rows[i, :count] = values[0].cpu(), rows[places[0].cpu()]
    return best


def recall(found: Tensor, exact: Tensor) -> float:
    """Return the fraction of the exact rows (N, k) that are among the rows found (N, k)."""
    return (found[:, :, None] == exact[:, None, :]).any(1).double().mean().item()
