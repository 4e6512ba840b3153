"""One HTML page that needs nothing else: no network, no other file, no program but a browser.

Whatever comes from files is escaped by the template, and a content security policy lets no script run but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from bvsa_core.report.comparison_table import ABSENT, caveats, notes
from bvsa_core.report.content import BlurExample, Report, ReportRow, flat
from bvsa_core.report.result_figures import bars_of, drawings
from bvsa_core.report.style import to_svg
from bvsa_core.report.tables import scoring
from bvsa_core.retrieval.scoring import Protocol

PARTS = {
    "results": "Results",
    "training": "Training",
    "blur": "Blur",
    "retrieved": "Retrieved images",
    "similarity": "Similarity",
    "repetitions": "Repetitions",
    "origin": "What produced this",
}
# The rest of a protocol, in words; selection, information and gate stand in every line.
_TAGS = {
    "dataset": "{} data",
    "modality": "{}",
    "setting": "{}",
    "gallery": "{}-way",
    "channels": "{} channels",
    "repetitions": "{} repetitions averaged",
    "encoder": "images by {}",
}


def to_html(report: Report) -> str:
    """The page."""
    folder = files("bvsa_core.report") / "template"
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    script = (folder / "page.js").read_text(encoding="utf-8")
    shown = drawings(report)
    return environment.from_string((folder / "page.html").read_text(encoding="utf-8")).render(
        title=report.title,
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        parts=PARTS,
        table=table(report.lines),
        figures={part: [(each, Markup(to_svg(each))) for each in shown if each.part == part] for part in PARTS},
        blurred=[_blurred(each) for each in report.blurred],
        data=_retrieved(report),
        subjects=[(data, _subjects(lines)) for data, lines in report.data.items()],
        missing=report.missing,
        made_by=report.made_by,
        runs=[(line, run) for line in report.lines for run in line.runs],
        settings=_settings(report),
    )


def table(lines: Sequence[ReportRow]) -> dict:
    """The table of results: tags that all lines share, the lines with the rest, footnotes."""
    ours = [line.entry.row.protocol for line in lines if line.entry.row]
    tagged = [
        {name: text.format(known[name]) for name, text in _TAGS.items() if name in known}
        for known in (protocol.to_json() for protocol in ours)
    ]
    for tags, line in zip(tagged, (line for line in lines if line.entry.row)):
        tags["brain"] = f"brain encoder {line.entry.encoder}"
    shared = (
        [text for name, text in tagged[0].items() if all(tags.get(name) == text for tags in tagged)] if tagged else []
    )
    beside = any(line.entry.published for line in lines)
    footnotes: list[str] = []
    found = []
    waiting = iter(tagged)
    for line in lines:
        entry = line.entry
        row = entry.row
        told = notes(entry) if beside else list(caveats(row)) if row else []
        footnotes += [note for note in dict.fromkeys(told) if note not in footnotes]
        found.append(
            {
                "system": entry.system,
                "ours": _figures(line) if row else None,
                "absent": f"{entry.missing} of {entry.cells} cells missing" if entry.cells and not row else ABSENT,
                "data": entry.data,
                "tags": _scored(row.protocol) + [(text, False) for text in next(waiting).values() if text not in shared]
                if row
                else [],
                "published": entry.published,
                "notes": sorted({footnotes.index(note) + 1 for note in told}),
            }
        )
    return {"lines": found, "shared": shared, "footnotes": footnotes, "beside": beside, "chance": _chance(ours)}


def _scored(protocol: Protocol) -> list[tuple[str, bool]]:
    """Selection, information and gate, and whether each is one to be wary of."""
    selection, information = protocol.selection, protocol.information
    return [
        (f"selection {selection}", selection.startswith("oracle")),
        (information, information != "inductive"),
        (f"gate {scoring(protocol)}", False),
    ]


def _chance(protocols: Sequence[Protocol]) -> str:
    sizes = sorted({protocol.gallery for protocol in protocols})
    return "; ".join(
        f"Top-1 {100 / size:.3g} %, Top-5 {100 * min(1, 5 / size):.3g} % in {size} images" for size in sizes
    )


def _figures(line: ReportRow) -> dict:
    row = line.row
    percent = lambda value, bounds: (f"{100 * value:.1f}", f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}")  # noqa: E731
    return {
        "top1": percent(row.top1, row.top1_interval),
        "top5": percent(row.top5, row.top5_interval),
        "map": f"{100 * row.map:.1f}",
        "median_rank": f"{row.median_rank:g}",
        "cells": f"{row.subjects} × {row.seeds}",  # noqa: RUF001
    }


def _subjects(lines: Sequence[ReportRow]) -> dict:
    """Top-1 and Top-5 of every subject, in lines and columns."""
    found = [(line.label, bars_of(line, 1), bars_of(line, 5)) for line in lines]
    names = list(dict.fromkeys(name for _, top1, _ in found for name in top1))
    cell = lambda bars, name: f"{bars[name][0]:.1f}" if name in bars else ABSENT  # noqa: E731
    return {
        "names": names,
        "lines": [(label, [(cell(top1, name), cell(top5, name)) for name in names]) for label, top1, top5 in found],
    }


def data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _blurred(blurred: BlurExample) -> dict:
    shares = [None, *blurred.shares]
    return {
        "label": blurred.label,
        "falloff": blurred.falloff,
        "levels": list(
            zip(["not blurred", *blurred.levels], ["" if share is None else f"{100 * share:.1f} %" for share in shares])
        ),
        "rows": [
            (name, [data_uri(image) for image in images]) for name, images in zip(blurred.names, blurred.thumbnails)
        ],
    }


def _retrieved(report: Report) -> dict:
    """What the script shows, as plain as it gets."""
    runs: list[dict[str, Any]] = [
        {
            "name": ", ".join(
                [each.label, *([each.data] if len(report.data) > 1 else []), each.subject, f"seed {each.seed}"]
            ),
            "right": each.right,
            "ranks": each.ranks,
            "best": each.best,
            "scores": [[round(score, 3) for score in scores] for scores in each.scores],
        }
        for each in report.retrievals
    ]
    used = {number for run in runs for row in [run["right"], *run["best"]] for number in row}
    images = {
        number: [image.concept, image.name, data_uri(image.thumbnail) if image.thumbnail else ""]
        for number, image in enumerate(report.images)
        if number in used
    }
    return {"runs": runs, "images": images}


def _settings(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings of all trainings, then those of each that differ."""
    known = {name: flat(runs[0].settings) for name, runs in report.trainings().items()}
    for settings in known.values():
        for own in ("subject", "seed"):
            settings.pop(own, None)
    first = next(iter(known.values()), {})
    shared = {name: value for name, value in first.items() if all(each.get(name) == value for each in known.values())}
    tables = [("all runs" if len(known) > 1 else next(iter(known), ""), shared)]
    tables += [
        (label, {name: value for name, value in each.items() if name not in shared}) for label, each in known.items()
    ]
    return [(label, [(name, str(value)) for name, value in settings.items()]) for label, settings in tables if settings]
