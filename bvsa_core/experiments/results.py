"""From cells on disk to the files of a grid: table.md, table.csv, table.tex and statistics.json."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bvsa_core.errors import UserError, printable
from bvsa_core.experiments import paper_results
from bvsa_core.experiments.cell import is_complete, load_scores
from bvsa_core.experiments.grid import Cell, Grid
from bvsa_core.io.atomic import write_atomically
from bvsa_core.report import comparison_table
from bvsa_core.report.comparison_table import ComparisonRow, mean_statistics, subject_rows
from bvsa_core.report.tables import MethodResult, markdown_table, method_results, scoring_text, statistics_lines
from bvsa_core.retrieval.result import RunResult, ranks_by_subject
from bvsa_core.retrieval.statistics import Comparison, compare


class GridRow(NamedTuple):
    """One row of the table of a grid and the results it is computed from; none if the row has no result of ours."""

    comparison: ComparisonRow
    results: list[RunResult] = []
    folders: list[Path] = []  # of the results, in the folder of the grid
    baseline: str | None = None  # system that the row's is compared with

    @property
    def joined(self) -> MethodResult:
        """The joined result of a row that has results."""
        assert self.comparison.result is not None
        return self.comparison.result

    @property
    def label(self) -> str:
        """Name of the row in statistics and comparisons."""
        row, protocol = self.comparison, self.joined.protocol
        return f"{row.system}, gate {scoring_text(protocol)} ({row.encoder}, images by {protocol.encoder})"


Scored = dict[Path, list[RunResult]]  # by the folder of a cell


def load_complete(cells: Sequence[Cell], root: Path) -> tuple[Scored, dict[str, str]]:
    """Return the results of complete cells, and what is wrong with those that are damaged, by the name of the cell."""
    scored: Scored = {}
    damaged: dict[str, str] = {}
    for cell in cells:
        if is_complete(cell, root):
            try:
                scored[cell.folder] = load_scores(root / cell.folder)
            except UserError as error:
                damaged[str(cell)] = str(error)
    return scored, damaged


def comparison_rows(cells: Sequence[Cell], scored: Scored, list_others: bool, planned_seeds: int = 0) -> list[GridRow]:
    """Return the rows of the table; `list_others` adds the published methods that the grid does not have."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        config = cell.config
        groups.setdefault((cell.modality, config.setting, cell.system, config.vision, config.encoder), []).append(cell)
    rows: list[GridRow] = []
    for number, ((modality, setting, system, _, encoder), group) in enumerate(groups.items()):
        folders = [cell.folder for cell in group if cell.folder in scored]
        missing = len(group) - len(folders)
        for place, spec in enumerate(group[0].rows):
            results = [] if missing else [scored[folder][place] for folder in folders]
            paper = paper_results.find(spec.published, modality, setting) if spec.published else None
            name = spec.name or system
            joined: list[MethodResult | None] = [*method_results(results)] or [None]
            if len(joined) > 1:
                differ = (
                    "subjects differ in gallery, channels, rate, window, source, repetitions or leaks, and have no mean"
                )
                raise UserError(f"{name}: {differ}; name those that agree")
            row = ComparisonRow(modality, setting, name, encoder, joined[0], missing, len(group), paper, planned_seeds)
            rows.append(GridRow(row, results, [] if missing else folders, group[0].baseline))
        following = list(groups)[number + 1 : number + 2]
        if list_others and (not following or following[0][:2] != (modality, setting)):
            listed = {spec.published for cell in cells for spec in cell.rows if spec.published}
            papers = paper_results.others(modality, setting, listed)
            rows += [GridRow(ComparisonRow(modality, setting, paper.method, published=paper)) for paper in papers]
    return rows


def write(
    grid: Grid,
    cells: Sequence[Cell],
    scored: Scored,
    left_out: Sequence[str],
    root: Path,
    planned_seeds: int = 0,
) -> list[GridRow]:
    """Write the files and return the rows of the table. The same cells give the same bytes.

    Fewer seeds than planned are a footnote.
    """
    rows = comparison_rows(cells, scored, grid.list_others, planned_seeds)
    table = [row.comparison for row in rows]
    with_results = [row for row in rows if row.comparison.result]
    tests = comparisons(with_results)
    sections = [comparison_table.to_markdown(grid.title, table), *(f"{sentence}.\n" for sentence in left_out)]
    sections += [_subjects(with_results), _statistics(with_results)]
    for data, part in tests.items():
        sections.append(f"## Comparisons, {data}\n\n{comparison_table.comparisons_text(part)}\n")
    plain = {data: part if isinstance(part, str) else [asdict(each) for each in part] for data, part in tests.items()}
    described = [_described(row) for row in with_results]
    content = {"rows": described, "comparisons": plain, "left_out": list(left_out)}
    root.mkdir(parents=True, exist_ok=True)
    files = {"table.md": "\n".join(sections), "statistics.json": json.dumps(content, indent=1) + "\n"}
    files |= {"table.csv": comparison_table.to_csv(table), "table.tex": comparison_table.to_latex(grid.title, table)}
    for name, text in files.items():
        write_atomically(root / name, printable(text).encode())  # a table may be shown by a terminal
    return rows


def comparisons(rows: Sequence[GridRow], labels: Sequence[str] | None = None) -> dict[str, list[Comparison] | str]:
    """Return paired tests for every data set and setting, of rows that have results.

    Rows that are rescored alike are compared with each other, and none with one that is not: each with its baseline of
    the same gate, or the baseline's first row; without any baseline, every pair.

    Args:
        rows: also those without results.
        labels: names of the rows; default: their full ones.
    """
    groups: dict[str, dict[str, GridRow]] = {}
    for number, row in enumerate(rows):
        if row.results:
            rescoring = row.joined.protocol.rescoring
            data = f"{row.comparison.data}{f', rescored by {rescoring}' if rescoring else ''}"
            groups.setdefault(data, {})[labels[number] if labels else row.label] = row
    several = {data: group for data, group in groups.items() if len(group) > 1}
    return {data: _compare(group) for data, group in (several or groups).items()}


def _compare(rows: Mapping[str, GridRow]) -> list[Comparison] | str:
    pairs = []
    for name, row in rows.items():
        baselines = [other for other, its in rows.items() if its.comparison.system == row.baseline and other != name]
        gate = scoring_text(row.joined.protocol)
        same_gate = [other for other in baselines if scoring_text(rows[other].joined.protocol) == gate]
        if baselines:
            pairs.append((name, (same_gate or baselines)[0]))
    hits = {name: np.stack([*ranks_by_subject(row.results).values()]) == 1 for name, row in rows.items()}
    return compare(hits, pairs or list(itertools.combinations(hits, 2)))


def _described(row: GridRow) -> dict:
    """Return a row of statistics.json."""
    about = {"data": row.comparison.data, "row": row.label, "method": row.joined.method}
    protocol, subjects = row.joined.protocol.to_json(), subject_rows(row.results)
    return {**about, "protocol": protocol, "subjects": subjects, **mean_statistics(row.results)}


def _subjects(rows: Sequence[GridRow]) -> str:
    table = []
    for row in rows:
        mean = {"mean": (row.joined.top1, row.joined.top5)}
        for who, (top1, top5) in (subject_rows(row.results) | mean).items():
            table.append((row.comparison.data, row.label, who, f"{100 * top1:.1f}", f"{100 * top5:.1f}"))
    columns = ("data", "row", "subject", "Top-1 %", "Top-5 %")
    return f"## Subjects, mean over seeds\n\n{markdown_table(columns, table)}\n"


def _statistics(rows: Sequence[GridRow]) -> str:
    lines = ["## Statistics, mean over subjects and seeds", ""]
    for row in rows:
        lines.append(f"- {row.comparison.data}, {row.label}")
        lines += [f"  - {line}" for line in statistics_lines(mean_statistics(row.results))]
    return "\n".join([*lines, ""])
