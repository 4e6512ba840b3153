"""Scores that papers report, read from published_results.json, to be compared with those of runs."""

import functools
from pathlib import Path
from typing import Any

from bvsa_core.errors import UserError, unknown_name
from bvsa_core.io.text_files import read_json
from bvsa_core.report.comparison_table import PaperResult


@functools.cache
def content() -> dict[str, Any]:
    """Return the content of the file; rows named in "uses_labels" are scored with BVSA's published gate."""
    return read_json(Path(__file__).with_name("published_results.json"), "install fovblur again")


def check(reference: str) -> None:
    """Raise a UserError unless a published row is known."""
    if reference not in known():
        raise UserError(unknown_name("published row", reference, known()))


def known() -> list[str]:
    """Return all references that `find` takes: names of methods, and TABLE/ROW."""
    tables = [(name, rows) for name, rows in content().items() if isinstance(rows, dict)]
    return [*(row["method"] for row in content()["rows"]), *(f"{name}/{row}" for name, rows in tables for row in rows)]


def find(reference: str, modality: str, setting: str) -> PaperResult | None:
    """Return the row of a method, or TABLE/ROW; None if it is not published for this modality and setting."""
    place, rows = f"{modality}_{setting}", {row["method"]: row for row in content()["rows"]}
    table, _, name = reference.partition("/") if reference not in rows else ("", "", "")
    method = table.split("_")[0].upper() if name else reference  # the name of a table starts with its method
    row = rows[method]
    accuracies = row.get(place)
    if name:
        accuracies = content()[table][name] if table.endswith(place) else None
    if accuracies is None:
        return None
    keys = ("year", "selection", "source", "encoder", "channels", "gallery", "caveat")
    about = {key: row[key] for key in keys if key in row}
    about |= {"top1": accuracies[0], "top5": accuracies[1], "uses_labels": reference in content()["uses_labels"]}
    return PaperResult(f"{method} ({name})" if name else method, **about)


def others(modality: str, setting: str, listed: set[str]) -> list[PaperResult]:
    """Return the published results of a setting, without those of the listed methods."""
    names = [row["method"] for row in content()["rows"] if row["method"] not in listed]
    return [result for name in names if (result := find(name, modality, setting))]
