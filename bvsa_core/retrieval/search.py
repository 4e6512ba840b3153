"""Exact search of a gallery on disk, in chunks, shared out over the processes of torch.distributed.

Chunks are the same whatever the number of processes, every score is computed by one of them, and equal scores are ordered
by row: the result of any number of processes is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

import fovblur
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress, no_progress
from bvsa_core.retrieval.gallery import Gallery
from bvsa_core.retrieval.gates import INDUCTIVE, reliability_from_top2, top2_text_similarities
from bvsa_core.retrieval.scoring import Scoring

CHUNK_BYTES = 64 * 2**20  # of float32 embeddings that a process reads at once


class Queries(NamedTuple):
    """Unit-norm embeddings of recordings."""

    brain_image: Tensor  # (N, D)
    brain_text: Tensor  # (N, E)


class TopK(NamedTuple):
    """The k best images of every recording, descending; of equal scores the lower row first."""

    values: Tensor  # (N, k) float32
    rows: Tensor  # (N, k) int64


def search(
    queries: Queries,
    gallery: Gallery,
    k: int,
    scoring: Scoring = Scoring(),
    chunk_rows: int | None = None,
    progress: Progress = no_progress,
    group: dist.ProcessGroup | None = None,
) -> TopK:
    """The k best images of a gallery for every recording.

    Args:
        chunk_rows: rows of the gallery read at once; left out, as many as fill CHUNK_BYTES.
        group: the processes that share the gallery out; all of torch.distributed where left out, if it is initialised. Each
            calls with the same arguments and gets the whole result.

    Raises:
        UserError: embeddings that do not fit, a k that the gallery does not have, or a scoring that needs to know which
            recording belongs to which image, or all recordings.
    """
    check(queries, gallery, k, scoring)
    shard = list(_shard(gallery, chunk_rows, group))
    gate = row_gate(queries, gallery, scoring, shard, group)
    found = TopK(
        queries.brain_image.new_empty(len(queries.brain_image), 0),
        torch.empty(len(queries.brain_image), 0, dtype=torch.int64),
    )
    for chunk in shard:
        image = gallery.image(chunk)
        text = image if scoring.gate == "none" else gallery.text(chunk)
        brain_text = queries.brain_image if scoring.gate == "none" else queries.brain_text
        values, rows = fovblur.enhanced_topk(
            queries.brain_image, image, brain_text, text, min(k, len(image)), row_gate=gate
        )
        found = merge_topk([found, TopK(values, rows.cpu() + chunk.start)], k)
        progress("rows searched", chunk.stop, shard[-1].stop)
    return merge_topk([TopK(*parts) for parts in zip(_gather(found.values, group), _gather(found.rows, group))], k)


def check(queries: Queries, gallery: Gallery, k: int, scoring: Scoring) -> None:
    """UserError for what `search` refuses."""
    if scoring.information != INDUCTIVE or scoring.shuffle_texts:
        name = (
            scoring.rescoring
            if scoring.rescoring != "none"
            else "shuffle_texts"
            if scoring.shuffle_texts
            else scoring.gate
        )
        raise UserError(
            f"a search scores each recording alone, without knowing its image; {name} belongs to 'bvsa evaluate'"
        )
    if not 1 <= k <= len(gallery):
        raise UserError(f"{k} images are asked for; the gallery has {len(gallery)}")
    compared = [(queries.brain_image, gallery.image, gallery.images[0])]
    if scoring.gate != "none":
        if gallery.texts is None:
            raise UserError(
                f"gate {scoring.gate!r} compares recordings with texts; the gallery has none (--gallery_text)"
            )
        compared.append((queries.brain_text, gallery.text, gallery.texts))
    for brain, embeddings, features in compared:
        if not brain.isfinite().all():
            raise UserError(
                f"the embedding of recording {int((~brain.isfinite()).any(1).int().argmax())} is NaN or infinite"
            )
        if (width := embeddings(slice(0, 1)).shape[1]) != brain.shape[1]:
            raise UserError(
                f"{features.path}: embeddings of {width} dimensions, and those of recordings have {brain.shape[1]}"
            )


def row_gate(
    queries: Queries,
    gallery: Gallery,
    scoring: Scoring,
    shard: list[slice] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor | None:
    """Gates (N,) of an inductive scoring; None where all are 1. `label_free` reads the texts of the whole gallery."""
    if scoring.gate == "none":
        return queries.brain_image.new_zeros(len(queries.brain_image))
    if scoring.gate == "always":
        return None
    if scoring.reliability is None:
        raise UserError("gate 'label_free' needs the reliability that a run learns; train it again")
    best = torch.full((len(queries.brain_text), 1), -1.0)
    for chunk in _shard(gallery, None, group) if shard is None else shard:
        of_chunk = top2_text_similarities(queries.brain_text, gallery.text(chunk))
        best = _two_largest(torch.cat([best, of_chunk.cpu()], dim=1))
    best = _two_largest(torch.cat(_gather(best, group), dim=1))
    open_rows = reliability_from_top2(best)[scoring.reliability.kind] >= scoring.reliability.threshold
    return open_rows.to(queries.brain_image)


def merge_topk(parts: list[TopK], k: int) -> TopK:
    """The k best of several lists, exactly."""
    values, rows = (torch.cat([part[i].cpu() for part in parts], dim=1) for i in range(2))
    by_row = rows.argsort(dim=1)
    by_value = values.gather(1, by_row).argsort(dim=1, descending=True, stable=True)[:, :k]
    order = by_row.gather(1, by_value)
    return TopK(values.gather(1, order), rows.gather(1, order))


def _two_largest(values: Tensor) -> Tensor:
    """The largest value of each row (N, m) and the largest one below it: (N, 2). What is equal is of the same text."""
    largest = values.amax(1, keepdim=True)
    return torch.cat([largest, values.masked_fill(values == largest, -1).amax(1, keepdim=True)], dim=1)


def _shard(gallery: Gallery, chunk_rows: int | None, group: dist.ProcessGroup | None) -> Iterator[slice]:
    """The chunks of this process, one after another in the file."""
    width = sum(part.width for part in (*gallery.images, *([gallery.texts] if gallery.texts else [])))
    step = chunk_rows or max(1, CHUNK_BYTES // (4 * width))
    starts = range(0, len(gallery), step)
    rank, world = (dist.get_rank(group), dist.get_world_size(group)) if dist.is_initialized() else (0, 1)
    for number in range(rank * len(starts) // world, (rank + 1) * len(starts) // world):
        yield slice(starts[number], min(starts[number] + step, len(gallery)))


def _gather(tensor: Tensor, group: dist.ProcessGroup | None) -> list[Tensor]:
    """The tensors (N, any) of all processes, in the order of their ranks, on the CPU."""
    if not dist.is_initialized():
        return [tensor.cpu()]
    parts: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, tensor.cpu().numpy(), group)
    return [torch.from_numpy(part) for part in parts]
