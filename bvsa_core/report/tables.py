"""Results as tables: means with intervals, and the protocol of every number."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich import box
from rich.table import Table

from bvsa_core.retrieval.result import RunResult
from bvsa_core.retrieval.scoring import Protocol, score
from bvsa_core.retrieval.statistics import crossed_bootstrap


@dataclass(frozen=True)
class MethodResult:
    """One line of a table: a method under one protocol, over subjects and seeds."""

    method: str
    top1: float  # fractions
    top1_interval: tuple[float, float]
    top5: float
    top5_interval: tuple[float, float]
    map: float
    median_rank: float
    subjects: int
    seeds: int
    protocol: Protocol
    note: str = ""  # what a reader of the figures has to know of the method


def method_results(results: Sequence[RunResult]) -> list[MethodResult]:
    """Join results of runs by method and protocol; every method needs the same seeds for each of its subjects."""
    groups: dict[tuple, list[RunResult]] = {}
    for result in results:
        groups.setdefault((result.method, result.preset, result.protocol), []).append(result)
    return [_row(group) for group in groups.values()]


def _row(group: list[RunResult]) -> MethodResult:
    subjects = sorted({result.subject for result in group})
    seeds = sorted({result.seed for result in group})
    by_cell = {(result.subject, result.seed): result.ranks for result in group}
    ranks = np.array([[by_cell[subject, seed] for seed in seeds] for subject in subjects])  # (subjects, seeds, images)
    scores = score(torch.from_numpy(ranks.ravel()))
    return MethodResult(
        method=f"{group[0].method} ({group[0].preset})",
        top1=scores.top1,
        top1_interval=crossed_bootstrap(ranks <= 1),
        top5=scores.top5,
        top5_interval=crossed_bootstrap(ranks <= 5),
        map=scores.map,
        median_rank=scores.median_rank,
        subjects=len(subjects),
        seeds=len(seeds),
        protocol=group[0].protocol,
        note=group[0].note,
    )


COLUMNS = ("method", "Top-1 %", "Top-5 %", "mAP %", "median rank", "selection", "information", "gate")


def cells(row: MethodResult) -> tuple[str, ...]:
    """A row as the text of its columns."""
    interval = lambda value, bounds: f"{100 * value:.1f} [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"  # noqa: E731
    return (
        f"{row.method}, {row.note}" if row.note else row.method,
        interval(row.top1, row.top1_interval),
        interval(row.top5, row.top5_interval),
        f"{100 * row.map:.1f}",
        f"{row.median_rank:g}",
        row.protocol.selection,
        row.protocol.information,
        scoring(row.protocol),
    )


def scoring(protocol: Protocol) -> str:
    """The gate, and whatever else made scores of embeddings."""
    rescoring = f" + {protocol.rescoring}" if protocol.rescoring else ""
    return f"{protocol.gate}{rescoring}{', texts shuffled' if protocol.texts == 'shuffled' else ''}"


def caption(table: Sequence[MethodResult]) -> str:
    """What holds for all rows: data, gallery, channels, repetitions, encoder, subjects and seeds."""
    first = table[0]
    protocol = first.protocol
    chance = 100 / protocol.gallery
    return (
        f"{protocol.dataset} data, {protocol.gallery}-way retrieval (chance {chance:g} %), "
        f"{protocol.channels} channels, {protocol.repetitions} repetitions averaged, images by {protocol.encoder}; "
        f"{first.subjects} subject(s) x {first.seeds} seed(s), 95 % crossed bootstrap intervals"
    )


def to_rich(table: Sequence[MethodResult]) -> Table:
    """For the terminal, 80 columns wide: every row in two lines or more, its protocol in the last column."""
    shown = Table(caption=caption(table), caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("method", "Top-1 %", "Top-5 %", "mAP %", "median\nrank", "protocol"):
        shown.add_column(column, justify="left" if column in ("method", "protocol") else "right", no_wrap=True)
    for row in table:
        _, top1, top5, mean_precision, rank, selection, information, gate = cells(row)
        in_two_lines = [text.replace(" ", "\n", 1) for text in (row.method, top1, top5)]
        made_by = f"gate {gate}".replace(" + ", "\n+ ").replace(", ", "\n")
        protocol = [*textwrap.wrap(f"{selection}, {information}", 17, break_on_hyphens=False), made_by]
        shown.add_row(*in_two_lines, mean_precision, rank, "\n".join([*protocol, *([row.note] if row.note else [])]))
    return shown


def to_markdown(table: Sequence[MethodResult]) -> str:
    """For a file."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(cells(row))} |" for row in table]
    return "\n".join([*lines, "", f"{caption(table)}.", ""])


def statistics_lines(statistics: dict) -> list[str]:
    """What `retrieval.statistics` and curves over repetitions found, in words; accuracies in percent."""
    both = lambda part: f"{100 * part['top1']:.1f} / {100 * part['top5']:.1f}"  # noqa: E731
    lines = []
    if hubs := statistics.get("hubness"):
        never = f"{100 * hubs['never_retrieved']:.1f} % of images never"
        lines.append(
            f"hubness: skewness {hubs['skewness']:.2f} of the {hubs['k']}-occurrence, {never} among the {hubs['k']} best"
        )
    if galleries := statistics.get("galleries"):
        told = ", ".join(f"{part['size']}: {both(part)}" for part in galleries)
        lines.append(f"Top-1 / Top-5 % expected in random galleries of size {told}")
    if curve := statistics.get("repetitions"):
        told = ", ".join(f"{point['averaged']}: {both(point)}" for point in curve)
        lines.append(
            f"Top-1 / Top-5 % by test repetitions averaged, mean of {max(p['resamples'] for p in curve)} draws: {told}"
        )
    return lines
