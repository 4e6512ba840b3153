"""Exact search of a gallery on disk, in chunks that several processes share.

Chunks do not depend on the number of processes, every score is computed by one process, and equal scores are ordered by
row: any number of processes gives the same result to the bit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import fovblur
from bvsa_core.distributed.processes import ProcessGroup
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress, no_progress
from bvsa_core.retrieval.gallery import Gallery, first_invalid_row
from bvsa_core.retrieval.gates import (
    BY_HAND,
    INDUCTIVE,
    gates,
    reliability_from_top2,
    top2_text_similarities,
    two_largest,
)
from bvsa_core.retrieval.scoring import Scoring

CHUNK_BYTES = 64 * 2**20  # of float32 embeddings that a process reads at a time


class Queries(NamedTuple):
    """Unit-norm embeddings of recordings."""

    brain_image: Tensor  # (N, D)
    brain_text: Tensor  # (N, E)


class TopK(NamedTuple):
    """The k best images of every recording, descending; equal scores are in the order of their rows."""

    values: Tensor  # (N, k) float32
    rows: Tensor  # (N, k) int64


def search(
    queries: Queries,
    gallery: Gallery,
    k: int,
    scoring: Scoring = Scoring(),
    chunk_rows: int | None = None,
    progress: Progress = no_progress,
    processes: ProcessGroup = ProcessGroup(),
) -> TopK:
    """Return the k best images of a gallery for every recording.

    Args:
        scoring: an inductive one.
        chunk_rows: rows of the gallery that are read at a time; default: CHUNK_BYTES of them.
        progress: called after every chunk.
        processes: those that share the gallery. All pass the same arguments and get the whole result.

    Raises:
        UserError: the embeddings do not fit, the gallery has fewer than k images, or the scoring is not inductive.
    """
    check(queries, gallery, k, scoring)
    shard = processes.shard(chunks(gallery, chunk_rows))
    gate = row_gate(queries, gallery, scoring, shard, processes)
    count = len(queries.brain_image)
    best = TopK(torch.empty(count, 0), torch.empty(count, 0, dtype=torch.int64))
    for chunk in shard:
        image, brain_text, text = compared(queries, gallery, scoring, chunk)
        inputs = queries.brain_image, image, brain_text, text
        values, rows = fovblur.enhanced_topk(*inputs, min(k, len(image)), row_gate=gate)
        best = merge_topk([best, TopK(values, rows.cpu() + chunk.start)], k)
        progress("rows searched", chunk.stop, shard[-1].stop)
    return merge_topk(processes.gather(best), k)


def check(queries: Queries, gallery: Gallery, k: int, scoring: Scoring) -> None:
    """Raise the errors of `search`."""
    if scoring.information not in (INDUCTIVE, BY_HAND) or scoring.shuffle_texts:
        name = "shuffle_texts" if scoring.shuffle_texts else scoring.gate
        name = name if scoring.rescoring == "none" else scoring.rescoring
        alone = "a search scores each recording alone, without knowing its image"
        raise UserError(f"{alone}; {name} belongs to 'bvsa evaluate'")
    if not 1 <= k <= len(gallery):
        raise UserError(f"{k} images are requested; the gallery has {len(gallery)}")
    pairs = [(queries.brain_image, gallery.image, gallery.images[0])]
    if scoring.gate != "none":
        if gallery.texts is None:
            remedy = "the gallery has none (--gallery_text)"
            raise UserError(f"gate {scoring.gate!r} compares recordings with texts; {remedy}")
        pairs.append((queries.brain_text, gallery.text, gallery.texts))
    for brain, embeddings, features in pairs:
        if (row := first_invalid_row(brain)) is not None:
            raise UserError(f"the embedding of recording {row} is NaN or infinite")
        if (width := embeddings(slice(0, 1)).shape[1]) != brain.shape[1]:
            expected = f"those of recordings have {brain.shape[1]}"
            raise UserError(f"{features.path}: embeddings of {width} dimensions, and {expected}")


def compared(
    queries: Queries, gallery: Gallery, scoring: Scoring, rows: slice | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings of images, recordings and texts for rows of the gallery; texts only if gated."""
    image = gallery.image(rows)
    if scoring.gate == "none":
        return image, queries.brain_image, image
    return image, queries.brain_text, gallery.text(rows)


def row_gate(
    queries: Queries, gallery: Gallery, scoring: Scoring, shard: Sequence[slice], processes: ProcessGroup
) -> Tensor | None:
    """Return the gates (N,) of an inductive scoring, None if all are 1.

    `label_free` reads the texts of this process's `shard` of the gallery and gathers the largest similarities.
    """
    if scoring.gate != "label_free":
        return gates(scoring.gate, queries.brain_image, queries.brain_image)[0]
    if scoring.reliability is None:
        raise UserError("gate 'label_free' needs the reliability that a run learns; train it again")
    best = torch.full((len(queries.brain_text), 1), -1.0)
    for chunk in shard:
        of_chunk = top2_text_similarities(queries.brain_text, gallery.text(chunk))
        best = two_largest(torch.cat([best, of_chunk.cpu()], dim=1))
    measured = reliability_from_top2(torch.cat(processes.gather(best), dim=1))
    open_rows = measured[scoring.reliability.kind] >= scoring.reliability.threshold
    return open_rows.to(queries.brain_image)


def merge_topk(parts: list[TopK], k: int) -> TopK:
    """Return the k best of several lists."""
    values, rows = (torch.cat([part[i].cpu() for part in parts], dim=1) for i in range(2))
    by_row = rows.argsort(dim=1)
    by_value = values.gather(1, by_row).argsort(dim=1, descending=True, stable=True)[:, :k]
    order = by_row.gather(1, by_value)
    return TopK(values.gather(1, order), rows.gather(1, order))


def chunks(gallery: Gallery, chunk_rows: int | None = None) -> list[slice]:
    """Return the chunks of a gallery, in the order of the file."""
    width = sum(part.width for part in (*gallery.images, *([gallery.texts] if gallery.texts else [])))
    step = chunk_rows or max(1, CHUNK_BYTES // (4 * width))
    return [slice(start, min(start + step, len(gallery))) for start in range(0, len(gallery), step)]
