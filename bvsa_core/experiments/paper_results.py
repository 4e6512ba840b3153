"""What papers printed, to be put beside what runs here give. The figures are those of published_results.json."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from bvsa_core.errors import UserError, unknown_name
from bvsa_core.report.comparison_table import PaperResult

# Retrieval with BVSA's published gate, which reads the text of the recording's own image.
_GATED = (
    "BVSA",
    "bvsa_ablation_eeg_intra/+ enhancement",
    *(f"bvsa_c_sweep_eeg_intra/{c}" for c in (0.1, 0.2, 0.3, 0.5)),
)


@functools.cache
def content() -> dict:
    """The file, as plain data."""
    return json.loads(Path(__file__).with_name("published_results.json").read_text())


def check(reference: str) -> None:
    """Whether a row is there.

    Raises:
        UserError: it is not.
    """
    if reference not in known():
        raise UserError(unknown_name("published row", reference, known()))


def known() -> list[str]:
    """Everything that `find` takes: names of methods, and TABLE/ROW."""
    tables = [(name, rows) for name, rows in content().items() if isinstance(rows, dict)]
    return [*(row["method"] for row in content()["rows"]), *(f"{name}/{row}" for name, rows in tables for row in rows)]


def find(reference: str, modality: str, setting: str) -> PaperResult | None:
    """The row of a method, or TABLE/ROW, where it was published for this setting."""
    table, _, name = reference.partition("/")
    place = f"{modality}_{setting}"
    of = table.split("_")[0].upper() if name else reference  # a table is called after its method
    row = next(row for row in content()["rows"] if row["method"] == of)
    if name:
        figures = content()[table][name] if table.endswith(place) else None
    else:
        figures = row.get(place)
    if figures is None:
        return None
    return PaperResult(
        method=f"{row['method']} ({name})" if name else row["method"],
        year=row["year"],
        top1=figures[0],
        top5=figures[1],
        selection=row["selection"],
        encoder=row.get("encoder"),
        gallery=row.get("gallery"),
        caveat=row.get("caveat"),
        uses_labels=reference in _GATED,
    )


def others(modality: str, setting: str, besides: set[str]) -> list[PaperResult]:
    """Methods published for a setting, except some."""
    names = [row["method"] for row in content()["rows"] if row["method"] not in besides]
    return [row for name in names if (row := find(name, modality, setting))]
