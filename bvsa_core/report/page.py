"""A self-contained HTML page: it loads nothing from the network or from other files.

The template escapes all text that comes from files, and a content security policy admits no script but the page's own.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from bvsa_core.io.text_files import flatten
from bvsa_core.report.comparison_table import ABSENT, caveats, notes
from bvsa_core.report.content import Report, ReportRow
from bvsa_core.report.result_figures import report_figures, subject_bars
from bvsa_core.report.style import to_svg
from bvsa_core.report.tables import ADDED, interval, scoring_text

SECTIONS = {
    "results": "Results", "training": "Training", "blur": "Blur", "retrieved": "Retrieved images",
    "similarity": "Similarity", "repetitions": "Repetitions", "decoding": "Where and when", "origin": "Provenance",
}  # fmt: skip
# Parts of the protocol that are named once above the table where all rows share them.
_TAGS = {
    "dataset": "{} data", "modality": "{}", "setting": "{}", "gallery": "{}-way", "channels": "{} channels",
    "sampling_rate": "{:g} Hz", "window": "{0[0]:g} to {0[1]:g} s", "source": "source {}",
    "repetitions": "{} repetitions averaged", "encoder": "images by {}",
}  # fmt: skip


def to_html(report: Report) -> str:
    """Render the page."""
    folder = files("bvsa_core.report") / "template"
    template, style, script = ((folder / f"page.{suffix}").read_text("utf-8") for suffix in ("html", "css", "js"))
    figures = report_figures(report)
    options: Any = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    page = jinja2.Environment(**options).from_string(template)
    return page.render(
        report=report,
        style=Markup(style),
        script=Markup(script),
        absent_value=ABSENT,
        interval=interval,
        scoring_text=scoring_text,
        data_uri=data_uri,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sections=SECTIONS,
        table=results_table(report.rows),
        figures={name: [(each, Markup(to_svg(each))) for each in figures if each.section == name] for name in SECTIONS},
        data=_retrieval_data(report),
        subjects=[(data, _subject_table(rows)) for data, rows in report.rows_by_data.items()],
        settings=_settings(report),
    )


def results_table(rows: Sequence[ReportRow]) -> dict:
    """Return the results table: tags that all rows share, the rows with the others, and footnotes."""
    tags = [_tags(row) for row in rows]
    first = next(filter(None, tags), {})
    shared = [text for name, text in first.items() if all(each.get(name) == text for each in tags if each)]
    with_papers = any(row.comparison.published for row in rows)
    footnotes: list[str] = []
    cells = []
    for row, own in zip(rows, tags):
        comparison = row.comparison
        remarks = notes(comparison) if with_papers else list(caveats(comparison))
        footnotes += [note for note in dict.fromkeys(remarks) if note not in footnotes]
        others = [text for text in own.values() if text not in shared]
        cells.append((comparison, others, sorted({footnotes.index(note) + 1 for note in remarks})))
    sizes = sorted({row.result.protocol.gallery for row in rows if row.comparison.result})
    return {"rows": cells, "shared": shared, "footnotes": footnotes, "with_papers": with_papers, "galleries": sizes}


def _tags(row: ReportRow) -> dict[str, str]:
    """Return the tags of a row by name; none without a result."""
    if row.comparison.result is None:
        return {}
    known = row.result.protocol.to_json()
    unknown = {name: f"unknown {name.replace('_', ' ')}" for name in ADDED}  # in results of earlier versions
    texts = {name: text.format(known[name]) if name in known else unknown.get(name) for name, text in _TAGS.items()}
    tags = {name: text for name, text in texts.items() if text}
    return {**tags, "brain": f"brain encoder {row.comparison.encoder}"}


def _subject_table(rows: Sequence[ReportRow]) -> dict:
    """Return Top-1 and Top-5 of every subject (column) in every row."""
    bars = [(row.label, subject_bars(row, 1), subject_bars(row, 5)) for row in rows]
    return {"subjects": list(dict.fromkeys(name for _, top1, _ in bars for name in top1)), "rows": bars}


def data_uri(jpeg: bytes) -> str:
    """Return a JPEG file as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _retrieval_data(report: Report) -> dict:
    """Return the data of the page's script as plain JSON values."""
    runs: list[dict[str, Any]] = []
    for each in report.retrievals:
        data = [each.data] if len(report.rows_by_data) > 1 else []
        scores = [[round(score, 3) for score in scores] for scores in each.scores]
        name = ", ".join([each.label, *data, each.subject, f"seed {each.seed}"])
        runs.append({"name": name, "targets": each.targets, "ranks": each.ranks, "top": each.top, "scores": scores})
    used = {index for run in runs for row in [run["targets"], *run["top"]] for index in row}
    images = {
        index: [image.concept, image.name, data_uri(image.thumbnail) if image.thumbnail else ""]
        for index, image in enumerate(report.images)
        if index in used
    }
    return {"runs": runs, "images": images}


def _settings(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the settings that all trainings share, then those of each training that differ."""
    trainings = {}
    for label, runs in report.trainings().items():
        trainings[label] = flatten({k: v for k, v in runs[0].settings.items() if k not in ("subject", "seed")})
    first = next(iter(trainings.values()), {})
    shared = {k: value for k, value in first.items() if all(each.get(k) == value for each in trainings.values())}
    tables = [("all runs" if len(trainings) > 1 else next(iter(trainings), ""), shared)]
    tables += [(label, {k: v for k, v in each.items() if k not in shared}) for label, each in trainings.items()]
    return [(label, [(name, str(value)) for name, value in settings.items()]) for label, settings in tables if settings]
