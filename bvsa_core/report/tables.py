"""Results of methods as tables: means with intervals, and the protocol beside every number."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich import box
from rich.table import Table
from rich.text import Text

from bvsa_core.errors import import_pandas, printable
from bvsa_core.retrieval.result import RunResult, ranks_by_subject
from bvsa_core.retrieval.scoring import Protocol, score, window_text
from bvsa_core.retrieval.statistics import Statistics, crossed_bootstrap

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class MethodResult:
    """Scores of a method under one protocol, over subjects and seeds; accuracies are fractions."""

    method: str
    top1: float
    top1_interval: tuple[float, float]
    top5: float
    top5_interval: tuple[float, float]
    map: float
    median_rank: float
    subjects: int
    seeds: int
    protocol: Protocol
    note: str = ""  # on the method, for readers of its scores
    deviations: Sequence[str] = ()  # from the released code of the method
    checked: bool = True  # the files of all runs have checksums


ADDED = ("sampling_rate", "window", "source")  # conditions that results of earlier versions do not have


def method_results(results: Sequence[RunResult]) -> list[MethodResult]:
    """Join results of runs by method and protocol; every method needs the same seeds for each of its subjects.

    Results of earlier versions, which do not know rate, window and source of their recordings, join those that do.
    """
    groups: dict[tuple, list[RunResult]] = {}
    for result in results:
        alike = result.method, result.preset, replace(result.protocol, sampling_rate=None, window=None, source=None)
        groups.setdefault(alike, []).append(result)
    joined: list[MethodResult] = []
    for group in groups.values():
        parts: dict[tuple, list[RunResult]] = {}
        for result in group:
            parts.setdefault(tuple(getattr(result.protocol, name) for name in ADDED), []).append(result)
        compatible = all(len(set(values) - {None}) <= 1 for values in zip(*parts))
        joined += map(_join, [group] if compatible else parts.values())
    return joined


def _join(group: list[RunResult]) -> MethodResult:
    known = lambda result: sum(getattr(result.protocol, name) is not None for name in ADDED)  # noqa: E731
    first = max(group, key=known)
    ranks = np.stack(list(ranks_by_subject(group).values()))  # (subjects, seeds, images)
    scores = score(torch.from_numpy(ranks.ravel()))
    return MethodResult(
        method=f"{first.method} ({first.preset})",
        top1=scores.top1,
        top1_interval=crossed_bootstrap(ranks <= 1),
        top5=scores.top5,
        top5_interval=crossed_bootstrap(ranks <= 5),
        map=scores.map,
        median_rank=scores.median_rank,
        subjects=ranks.shape[0],
        seeds=ranks.shape[1],
        protocol=first.protocol,
        note=first.note,
        deviations=first.deviations,
        checked=all(result.files for result in group),
    )


COLUMNS = ("method", "Top-1 %", "Top-5 %", "mAP %", "median rank", "selection", "information", "gate")


def interval(value: float, bounds: tuple[float, float], form: str = "{} [{}, {}]") -> str:
    """Format an accuracy and its bounds in percent."""
    return form.format(*(f"{100 * each:.1f}" for each in (value, *bounds)))


def score_cells(result: MethodResult) -> tuple[str, str, str, str]:
    """Return Top-1, Top-5, mAP and median rank as text."""
    top1, top5 = interval(result.top1, result.top1_interval), interval(result.top5, result.top5_interval)
    return top1, top5, f"{100 * result.map:.1f}", f"{result.median_rank:g}"


def cells(result: MethodResult) -> tuple[str, ...]:
    """Return the texts of COLUMNS."""
    name, protocol = f"{result.method}, {result.note}" if result.note else result.method, result.protocol
    return (name, *score_cells(result), protocol.selection, protocol.knowledge, scoring_text(protocol))


def scoring_text(protocol: Protocol) -> str:
    """Return the gate, whatever else turned embeddings into scores, and what makes them no test, as text."""
    alpha = f", alpha {protocol.alpha:g}" if protocol.alpha is not None else ""
    threshold = f" {protocol.threshold} by hand" if protocol.threshold else ""
    rescoring = "".join(f" + {step}" for step in (protocol.rescoring or "").split(",") if step)
    others = {
        "texts shuffled": protocol.texts == "shuffled",
        f"texts: {protocol.texts_of}": protocol.texts_of,
        f"gallery of {protocol.gallery_of}": protocol.gallery_of,
        "LEAK": protocol.leak,
        "toy encoder": is_toy(protocol),
    }
    return ", ".join([f"{protocol.gate}{threshold}{alpha}{rescoring}", *(name for name in others if others[name])])


def is_toy(protocol: Protocol) -> bool:
    """Return whether the images of real data were encoded by the encoder that is shipped for synthetic ones."""
    return (protocol.encoder or "").partition(" ")[0] == "tiny" and protocol.dataset != "synthetic"


def recordings_text(protocol: Protocol) -> str:
    """Return rate, window and source of the recordings as text."""
    rate = f"{protocol.sampling_rate:g} Hz" if protocol.sampling_rate else "unknown rate"
    window = window_text(protocol.window) if protocol.window else "unknown window"
    return f"{rate}, {window}, source {protocol.source or 'unknown'}"


def caption(table: Sequence[MethodResult]) -> str:
    """Return the conditions that all rows share, and the recordings of each if they differ."""
    first, protocol = table[0], table[0].protocol
    recordings = "; ".join(dict.fromkeys(recordings_text(result.protocol) for result in table))
    repeated = f" ({protocol.repeated} condition(s) with the image of another join it)" if protocol.repeated else ""
    return (
        f"{protocol.dataset} data, {protocol.gallery}-way retrieval (chance {100 / protocol.gallery:.3g} %), "
        f"{protocol.channels} channels ({recordings}), "
        f"{protocol.repetitions} repetitions averaged{repeated}, images by {protocol.encoder}; "
        f"{first.subjects} subject(s) x {first.seeds} seed(s), 95 % crossed bootstrap intervals"
    )


class PlainTable(Table):
    """Table for the terminal whose cells are shown as they are: no markup, control characters as escapes."""

    def add_row(self, *cells: str) -> None:  # type: ignore[override]
        """Add a row of text."""
        super().add_row(*(Text(printable(cell)) for cell in cells))


def rich_table(columns: Sequence[str], left: Sequence[str], caption: str = "", **options) -> PlainTable:
    """Return an empty table for the terminal; columns not in `left` are aligned to the right."""
    shown = Text(printable(caption), style="table.caption") if caption else None
    table = PlainTable(caption=shown, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", **options)
    return table


def to_rich(table: Sequence[MethodResult]) -> Table:
    """Return a table for a terminal of 80 columns: two or more lines per row, the protocol in the last column."""
    columns = ("method", "Top-1 %", "Top-5 %", "mAP %", "median\nrank", "protocol")
    shown = rich_table(columns, ("method", "protocol"), caption(table), no_wrap=True)
    for result in table:
        _, top1, top5, mean_precision, rank, selection, information, gate = cells(result)
        in_two_lines = [text.replace(" ", "\n", 1) for text in (result.method, top1, top5)]
        protocol = textwrap.wrap(f"{selection}, {information}", 17, break_on_hyphens=False)
        for part in f"gate {gate}".replace(" + ", "\n+ ").replace(", ", "\n").splitlines():
            protocol += textwrap.wrap(part, 17, break_on_hyphens=False)
        shown.add_row(*in_two_lines, mean_precision, rank, "\n".join([*protocol, *filter(None, [result.note])]))
    return shown


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows of text as Markdown; vertical bars in a cell are escaped."""
    shown = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in shown)


def to_markdown(table: Sequence[MethodResult]) -> str:
    """Return the table as Markdown, with its caption."""
    return f"{markdown_table(COLUMNS, map(cells, table))}\n\n{caption(table)}.\n"


def to_frame(table: Sequence[MethodResult]) -> pd.DataFrame:
    """Return a pandas.DataFrame with a row for each method: scores as fractions, and the protocol."""
    records = []
    for result in table:
        scores = {name: getattr(result, name) for name in ("top1", "top5", "map", "median_rank", "subjects", "seeds")}
        for name in ("top1", "top5"):
            scores[f"{name}_low"], scores[f"{name}_high"] = getattr(result, f"{name}_interval")
        records.append({"method": result.method, **scores, **result.protocol.to_row()})
    return import_pandas("frames").DataFrame(records)


def statistics_lines(statistics: Statistics) -> list[str]:
    """Describe `RunResult.statistics` in sentences; accuracies are in percent."""
    both = lambda part: f"{100 * part['top1']:.1f} / {100 * part['top5']:.1f}"  # noqa: E731
    lines = []
    if hubs := statistics.get("hubness"):
        skewness, k = f"skewness {hubs['skewness']:.2f}", hubs["k"]
        never = f"{100 * hubs['never_retrieved']:.1f} % of images never"
        lines.append(f"hubness: {skewness} of the {k}-occurrence, {never} among the {k} best")
    if galleries := statistics.get("galleries"):
        sizes = ", ".join(f"{part['size']}: {both(part)}" for part in galleries)
        lines.append(f"Top-1 / Top-5 % expected in random galleries of size {sizes}")
    if curve := statistics.get("repetitions"):
        points = ", ".join(f"{point['averaged']}: {both(point)}" for point in curve)
        draws = max(point["resamples"] for point in curve)
        lines.append(f"Top-1 / Top-5 % by test repetitions averaged, mean of {draws} draws: {points}")
    return lines
