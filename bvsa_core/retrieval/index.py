"""For galleries beyond exact search: a FAISS index proposes images by image similarity, and exact scores rank those."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fovblur
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress, no_progress
from bvsa_core.retrieval.gallery import Gallery
from bvsa_core.retrieval.scoring import Scoring
from bvsa_core.retrieval.search import Queries, TopK, check, row_gate

ROWS_AT_ONCE = 65_536
TRAINING_ROWS_PER_CELL = 64  # FAISS asks for 39 to 256


class Index:
    """A FAISS index of a gallery's image embeddings, by inner product.

    Args:
        path: the file it is read from, or where it is kept once it is built.
        kind: FAISS's index factory string, such as "IVF4096,SQ8" or "HNSW32"; left out, IVF with about 4 sqrt(M) cells
            of 8-bit rows.

    Raises:
        UserError: FAISS is not installed, the kind is not one of its, or the file is not an index of this gallery.
    """

    def __init__(self, path: Path, gallery: Gallery, kind: str | None = None, progress: Progress = no_progress):
        try:
            import faiss
        except ImportError as error:
            raise UserError(
                "an approximate index needs FAISS; install it with: pip install 'fovblur[faiss]'"
            ) from error
        self.faiss, self.gallery, self.path = faiss, gallery, path
        faiss.omp_set_num_threads(torch.get_num_threads())
        self.index = self._read() if path.exists() else self._build(kind or default_kind(len(gallery)), progress)

    def propose(self, brain_image: Tensor, count: int, probes: int) -> Tensor:
        """Rows (N, count) of the images likely to be nearest to recordings (N, D), ascending; -1 where there are fewer."""
        if hasattr(self.index, "nprobe"):
            self.index.nprobe = probes
        elif hasattr(self.index, "hnsw"):
            self.index.hnsw.efSearch = max(count, probes)
        _, rows = self.index.search(
            np.ascontiguousarray(brain_image.float().cpu().numpy()), min(count, len(self.gallery))
        )
        return torch.from_numpy(rows).sort(dim=1).values

    def _read(self):
        try:
            index = self.faiss.read_index(str(self.path))
        except RuntimeError as error:
            raise UserError(f"{self.path}: not a FAISS index, or damaged; delete it, and it is built again") from error
        width = self.gallery.image(slice(0, 1)).shape[1]
        if (index.ntotal, index.d) != (len(self.gallery), width):
            raise UserError(
                f"{self.path}: an index of {index.ntotal} x {index.d} embeddings, the gallery has {len(self.gallery)} x {width}; "
                "delete it, and it is built again, or name another file"
            )
        return index

    def _build(self, kind: str, progress: Progress):
        rows = len(self.gallery)
        width = self.gallery.image(slice(0, 1)).shape[1]
        try:
            index = self.faiss.index_factory(width, kind, self.faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise UserError(
                f"index kind {kind!r} is not one that FAISS makes, such as IVF4096,SQ8 or HNSW32"
            ) from error
        if not index.is_trained:
            wanted = TRAINING_ROWS_PER_CELL * getattr(index, "nlist", 256)
            chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:wanted].sort().values
            try:
                index.train(self.gallery.image(chosen).cpu().numpy())
            except RuntimeError as error:
                raise UserError(
                    f"index kind {kind!r} cannot be trained on {len(chosen)} images; choose fewer cells"
                ) from error
        for start in range(0, rows, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, rows)
            index.add(self.gallery.image(slice(start, stop)).cpu().numpy())
            progress("rows indexed", stop, rows)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        try:
            self.faiss.write_index(index, str(partial))
            partial.replace(self.path)
        except RuntimeError as error:
            raise UserError(f"{self.path}: the index cannot be written there; name another file") from error
        finally:
            partial.unlink(missing_ok=True)
        return index


def default_kind(rows: int) -> str:
    """IVF with the power of two nearest to 4 sqrt(rows) cells, of 8-bit rows; all rows where there are few."""
    return "Flat" if rows < 10_000 else f"IVF{2 ** round(math.log2(4 * math.sqrt(rows)))},SQ8"


def search_candidates(
    queries: Queries, gallery: Gallery, candidates: Tensor, k: int, scoring: Scoring = Scoring()
) -> TopK:
    """The k best of the candidate rows (N, c) of every recording, by the scores that `retrieval.search.search` gives.

    A place without candidate has value -inf and row -1.

    Raises:
        UserError: as for `retrieval.search.search`.
    """
    check(queries, gallery, k, scoring)
    gate = row_gate(queries, gallery, scoring)
    found = TopK(torch.full((len(candidates), k), -math.inf), torch.full((len(candidates), k), -1))
    for i, proposed in enumerate(candidates):
        rows = proposed[proposed >= 0]
        if not len(rows):
            continue
        image = gallery.image(rows)
        text = image if scoring.gate == "none" else gallery.text(rows)
        brain_text = queries.brain_image if scoring.gate == "none" else queries.brain_text
        best = min(k, len(rows))
        one = slice(i, i + 1)
        values, places = fovblur.enhanced_topk(
            queries.brain_image[one], image, brain_text[one], text, best, row_gate=None if gate is None else gate[one]
        )
        found.values[i, :best], found.rows[i, :best] = values[0].cpu(), rows[places[0].cpu()]
    return found


def recall(found: Tensor, exact: Tensor) -> float:
    """The share of the exact rows (N, k) that were found (N, k)."""
    return (found[:, :, None] == exact[:, None, :]).any(1).double().mean().item()
