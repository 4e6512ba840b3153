"""From cells on disk to the files of a grid: table.md, table.csv, table.tex and statistics.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from bvsa_core.errors import UserError
from bvsa_core.experiments import paper_results
from bvsa_core.experiments.cell import complete, load_scores
from bvsa_core.experiments.grid import Cell, Grid
from bvsa_core.io.atomic import write_atomically
from bvsa_core.report.comparison_table import (
    ComparisonRow,
    comparisons_text,
    markdown_table,
    mean_statistics,
    subject_rows,
    to_csv,
    to_latex,
    to_markdown,
)
from bvsa_core.report.tables import MethodResult, method_results, scoring, statistics_lines
from bvsa_core.retrieval.result import RunResult
from bvsa_core.retrieval.statistics import Comparison, compare


class GridRow(NamedTuple):
    """One row of the table of a grid with the runs behind it: none if cells are missing or nobody runs it here."""

    entry: ComparisonRow
    results: list[RunResult] = []
    folders: list[Path] = []  # of the results, in the folder of the grid


def comparison_rows(cells: Sequence[Cell], root: Path, list_others: bool) -> list[GridRow]:
    """Return the rows of the table; `list_others` adds the published methods that the grid does not have."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        config = cell.config
        groups.setdefault((cell.modality, config.setting, cell.system, config.vision, config.encoder), []).append(cell)
    found: list[GridRow] = []
    for number, ((modality, setting, system, _, encoder), group) in enumerate(groups.items()):
        ready = [cell for cell in group if complete(cell, root)]
        scored = [load_scores(root / cell.folder) for cell in ready]
        missing = len(group) - len(scored)
        for place, row in enumerate(group[0].rows):
            results = [] if missing else [each[place] for each in scored]
            beside = paper_results.find(row.published, modality, setting) if row.published else None
            name = row.name or system
            joined = method_results(results) if results else [None]
            if len(joined) > 1:
                raise UserError(
                    f"{name}: subjects differ in gallery, channels or repetitions, and have no mean; name those that agree"
                )
            (ours,) = joined
            entry = ComparisonRow(modality, setting, name, encoder, ours, missing, len(group), beside)
            found.append(GridRow(entry, results, [cell.folder for cell in ready] if results else []))
        following = list(groups)[number + 1 : number + 2]
        if list_others and (not following or following[0][:2] != (modality, setting)):
            here = {row.published for cell in cells for row in cell.rows if row.published}
            found += [
                GridRow(ComparisonRow(modality, setting, each.method, published=each))
                for each in paper_results.others(modality, setting, here)
            ]
    return found


def write(grid: Grid, cells: Sequence[Cell], left_out: Sequence[str], root: Path) -> list[GridRow]:
    """Write the files and return the rows of the table. The same cells give the same bytes."""
    found = comparison_rows(cells, root, grid.list_others)
    entries = [row.entry for row in found]
    tests = comparisons(found, grid.baseline)
    sections = [
        to_markdown(grid.title, entries),
        *(f"{told}.\n" for told in left_out),
        _subjects(found),
        _statistics(found),
    ]
    sections += [f"## Comparisons, {data}\n\n{comparisons_text(told)}\n" for data, told in tests.items()]
    content = {
        "rows": [
            {**_described(entry, row), "subjects": subject_rows(results), **mean_statistics(results)}
            for entry, results, _ in found
            if (row := entry.row)
        ],
        "comparisons": {
            data: told if isinstance(told, str) else [asdict(each) for each in told] for data, told in tests.items()
        },
        "left_out": list(left_out),
    }
    root.mkdir(parents=True, exist_ok=True)
    files = {
        "table.md": "\n".join(sections),
        "table.csv": to_csv(entries),
        "table.tex": to_latex(grid.title, entries),
        "statistics.json": json.dumps(content, indent=1) + "\n",
    }
    for name, text in files.items():
        write_atomically(root / name, text.encode())
    return found


def comparisons(found: Sequence[GridRow], baseline: str | None) -> dict[str, list[Comparison] | str]:
    """Paired tests across subjects in every setting."""
    settings: dict[str, dict[str, list[float]]] = {}
    reference: dict[str, str] = {}
    for entry, results, _ in found:
        if row := entry.row:
            name = _named(entry, row)
            settings.setdefault(entry.data, {})[name] = [top1 for top1, _ in subject_rows(results).values()]
            if entry.system == baseline:
                reference.setdefault(entry.data, name)
    return {data: compare(accuracies, reference.get(data)) for data, accuracies in settings.items()}


def _named(entry: ComparisonRow, row: MethodResult) -> str:
    return f"{entry.system}, gate {scoring(row.protocol)} ({entry.encoder}, images by {row.protocol.encoder})"


def _described(entry: ComparisonRow, row: MethodResult) -> dict:
    return {"data": entry.data, "row": _named(entry, row), "method": row.method, "protocol": row.protocol.to_json()}


def _subjects(found: Sequence[GridRow]) -> str:
    table = []
    for entry, results, _ in found:
        if row := entry.row:
            parts = [*subject_rows(results).items(), ("mean", (row.top1, row.top5))]
            table += [
                (entry.data, _named(entry, row), who, f"{100 * top1:.1f}", f"{100 * top5:.1f}")
                for who, (top1, top5) in parts
            ]
    return (
        f"## Subjects, mean over seeds\n\n{markdown_table(('data', 'row', 'subject', 'Top-1 %', 'Top-5 %'), table)}\n"
    )


def _statistics(found: Sequence[GridRow]) -> str:
    told = []
    for entry, results, _ in found:
        if row := entry.row:
            told.append(f"- {entry.data}, {_named(entry, row)}")
            told += [f"  - {line}" for line in statistics_lines(mean_statistics(results))]
    return "\n".join(["## Statistics, mean over subjects and seeds", "", *told, ""])
