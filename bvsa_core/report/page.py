"""A self-contained HTML page: it loads nothing from the network or from other files.

The template escapes all text that comes from files, and a content security policy admits no script but the page's own.
"""

import base64
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from bvsa_core.data.dataset import SYNTHETIC
from bvsa_core.io.text_files import flatten
from bvsa_core.report.comparison_table import ABSENT, ComparisonRow, caveats, difference_text, gain_text, notes
from bvsa_core.report.content import RecordingExamples, Report, ReportRow, RetrievalExample
from bvsa_core.report.head_map import EDGE, map_weights
from bvsa_core.report.result_figures import report_figures, subject_bars
from bvsa_core.report.style import to_svg
from bvsa_core.report.tables import ADDED, MethodResult, interval, scoring_text
from bvsa_core.retrieval.gates import INDUCTIVE
from bvsa_core.retrieval.result import ranks_by_subject
from bvsa_core.retrieval.statistics import PairedHits, compare_hits, crossed_bootstrap

SECTIONS = {
    "results": "Results", "retrieved": "Retrieved images", "blur": "Blur", "training": "Training",
    "similarity": "Similarity", "repetitions": "Repetitions", "decoding": "Where and when", "origin": "Provenance",
}  # fmt: skip
# Parts of the protocol that are named once above the table where all rows share them.
_TAGS = {
    "dataset": "{} data", "modality": "{}", "setting": "{}", "gallery": "{}-way", "channels": "{} channels",
    "sampling_rate": "{:g} Hz", "window": "{0[0]:g} to {0[1]:g} s", "source": "source {}",
    "repetitions": "{} repetitions averaged", "encoder": "images by {}",
}  # fmt: skip
RANKS = ((1, 1), (2, 5), (6, 10), (11, 50), (51, None))  # groups of ranks of the correct image
INSTEAD = 4  # images named that are found in place of the correct one
PAIRS = 10  # of runs in the table of pairs; any two can be chosen
STATIC = 3  # recordings shown without JavaScript
SHOWN_FIGURES = 6  # of a section; the others unfold


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
        headlines=headlines(report),
        table=results_table(report.rows),
        side_by_side=[(data, lines) for data, rows in report.rows_by_data.items() if (lines := side_by_side(rows))],
        comparisons=report.comparisons,
        difference_text=difference_text,
        figures={name: [(each, Markup(to_svg(each))) for each in figures if each.section == name] for name in SECTIONS},
        data=_retrieval_data(report),
        misses=[misses(report, each) for each in _first_of_rows(report)],
        rank_groups=[_range(*ends) for ends in RANKS],
        pairs=_pairs_of_rows(report)[:PAIRS],
        static=STATIC,
        shown_figures=SHOWN_FIGURES,
        subjects=[(data, _subject_table(rows)) for data, rows in report.rows_by_data.items()],
        settings=_settings(report),
    )


def results_table(rows: Sequence[ReportRow]) -> dict:
    """Return the results table: tags that all rows share, the rows with the others, and footnotes.

    Rows that are rescored come after all others.
    """
    tags = [_tags(row) for row in rows]
    first = next(filter(None, tags), {})
    shared = [text for name, text in first.items() if all(each.get(name) == text for each in tags if each)]
    with_papers = any(row.comparison.published for row in rows)
    footnotes: list[str] = []
    cells: list[tuple[int, ComparisonRow, list[str], list[int]]] = []
    for row, own in zip(rows, tags):
        comparison = row.comparison
        remarks = notes(comparison) if with_papers else list(caveats(comparison))
        footnotes += [note for note in dict.fromkeys(remarks) if note not in footnotes]
        others = [text for text in own.values() if text not in shared]
        cells.append((len(cells), comparison, others, sorted({footnotes.index(note) + 1 for note in remarks})))
    cells.sort(key=lambda cell: bool(cell[1].result and cell[1].result.protocol.rescoring))
    protocols = [row.result.protocol for row in rows if row.comparison.result]
    return {
        "rows": cells,
        "shared": shared,
        "footnotes": footnotes,
        "with_papers": with_papers,
        "galleries": sorted({protocol.gallery for protocol in protocols}),
        "synthetic": any(protocol.dataset == SYNTHETIC for protocol in protocols),
    }


@dataclass(frozen=True)
class SideBySide:
    """One training with one gate: scored inductively, and rescored."""

    name: str
    inductive: MethodResult | None
    transductive: list[tuple[str, MethodResult, str]]  # steps, result, and what it adds to Top-1, with its interval


def side_by_side(rows: Sequence[ReportRow]) -> list[SideBySide]:
    """Put the rescored rows of some data beside those of the same training and gate that are not."""
    groups: dict[tuple, list[ReportRow]] = {}
    for row in rows:
        gate = scoring_text(replace(row.result.protocol, rescoring=None))
        groups.setdefault((row.training_label, gate), []).append(row)
    gates = Counter(training for training, _ in groups)
    lines = []
    for (training, gate), of_gate in groups.items():
        plain = next((row for row in of_gate if not row.result.protocol.rescoring), None)
        rescored = [row for row in of_gate if row.result.protocol.rescoring]
        if rescored:
            name = training if gates[training] == 1 and gate == "none" else f"{training}, gate {gate}"
            others = [(_steps(row), row.result, _gain(row, plain)) for row in rescored]
            lines.append(SideBySide(name, plain.result if plain else None, others))
    return lines


def _steps(row: ReportRow) -> str:
    return (row.result.protocol.rescoring or "").replace(",", " + ")


def _gain(row: ReportRow, plain: ReportRow | None) -> str:
    """Return how much more often a row's runs find the right image than the same runs of another row."""
    if plain is None:
        return ABSENT
    hits, others = (
        np.stack([*ranks_by_subject(run.result for run in each.runs).values()]) == 1 for each in (row, plain)
    )
    difference = hits.astype(float) - others
    return gain_text(float(difference.mean()), crossed_bootstrap(difference))


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


@dataclass(frozen=True)
class Headline:
    """The best row of some data that is a fair test; None if no row is."""

    data: str
    row: ReportRow | None
    rows: int  # that are fair tests
    images: int  # of the test set


def headlines(report: Report) -> list[Headline]:
    """Return the headline of each data.

    A fair test is inductive, without a leak or shuffled texts, and its epoch was not selected on the test set.
    """
    best = []
    for data, rows in report.rows_by_data.items():
        fair = [row for row in rows if _is_fair(row)]
        row = max(fair, key=lambda row: row.result.top1, default=None)
        best.append(Headline(data, row, len(fair), len(rows[0].runs[0].result.ranks)))
    return best


def _is_fair(row: ReportRow) -> bool:
    protocol = row.result.protocol
    tested = protocol.knowledge == INDUCTIVE and not protocol.selection.startswith("oracle")
    return tested and not protocol.leak and protocol.texts != "shuffled"


@dataclass(frozen=True)
class Misses:
    """How far from the first place a run ranks the correct images, and what it finds instead."""

    name: str
    shares: list[float]  # of recordings, by the groups of RANKS
    instead: list[tuple[str, int]]  # concepts found first for several wrong recordings, and how often


def misses(report: Report, retrieval: RetrievalExample) -> Misses:
    """Group the recordings of a run by the rank of the correct image, and count what is found first instead."""
    ranks = np.array(retrieval.ranks)
    shares = [float(((ranks >= low) & (ranks <= (high or ranks.max()))).mean()) for low, high in RANKS]
    wrong = Counter(best[0] for best, target in zip(retrieval.top, retrieval.targets) if best[0] != target)
    instead = [(report.images[index].concept, count) for index, count in wrong.most_common(INSTEAD) if count > 1]
    return Misses(_run_name(report, retrieval), shares, instead)


def _range(low: int, high: int | None) -> str:
    if high is None:
        return f"{low} or more"
    return f"{low} to {high}" if high > low else str(low)


def _first_of_rows(report: Report) -> list[RetrievalExample]:
    """Return the first run shown of every row."""
    return [*{each.row: each for each in reversed(report.retrievals)}.values()][::-1]


def comparable(retrievals: Iterable[RetrievalExample]) -> list[tuple[RetrievalExample, RetrievalExample, PairedHits]]:
    """Compare the hits at rank 1 of every two runs that were tested on the same images."""
    return [
        (one, other, compare_hits(np.equal(one.ranks, 1), np.equal(other.ranks, 1)))
        for one, other in itertools.combinations(retrievals, 2)
        if one.data == other.data and one.targets == other.targets
    ]


def _pairs_of_rows(report: Report) -> list[tuple[str, str, PairedHits, str]]:
    """Return names and comparison of the first runs of two rows, and which runs they are, for the script.

    The best row of each data is compared first, with all others.
    """
    places = {id(each): place for place, each in enumerate(report.retrievals)}
    best = [max(rows, key=lambda row: row.result.top1).number for rows in report.rows_by_data.values()]
    runs = sorted(_first_of_rows(report), key=lambda run: run.row not in best)
    return [
        (_run_name(report, one), _run_name(report, other), hits, f"{places[id(one)]} {places[id(other)]}")
        for one, other, hits in comparable(runs)
    ]


def _run_name(report: Report, retrieval: RetrievalExample) -> str:
    data = [retrieval.data] if len(report.rows_by_data) > 1 else []
    return ", ".join([retrieval.label, *data, retrieval.subject, f"seed {retrieval.seed}"])


def _retrieval_data(report: Report) -> dict:
    """Return the data of the page's script as plain JSON values."""
    runs: list[dict[str, Any]] = []
    for each in report.retrievals:
        shown = len(each.top)
        runs.append(
            {
                "name": _run_name(report, each),
                "row": each.row,
                "targets": each.targets[:shown],
                "ranks": each.ranks[:shown],
                "top": each.top,
                "scores": [[round(score, 3) for score in scores] for scores in each.scores],
                "views": each.views,
                "level": each.view_level,
                "recordings": each.recordings,
            }
        )
    used = {index for run in runs for row in [run["targets"], run["views"], *run["top"]] for index in row}
    images = {
        index: [image.concept, image.name, data_uri(image.thumbnail) if image.thumbnail else ""]
        for index, image in enumerate(report.images)
        if index in used
    }
    places = {id(each): place for place, each in enumerate(report.retrievals)}
    pairs = {
        f"{places[id(one)]} {places[id(other)]}": [hits.both, hits.only_first, hits.only_second, hits.neither, hits.p]
        for one, other, hits in comparable(report.retrievals)
    }
    groups = [[low, high, _range(low, high)] for low, high in RANKS]
    recordings = [_recording_data(each) for each in report.recordings]
    return {"runs": runs, "images": images, "recordings": recordings, "pairs": pairs, "groups": groups}


def _recording_data(recordings: RecordingExamples) -> dict:
    """Return recordings as the page's script takes them: whole numbers of a byte, in base64."""
    values, scale = _quantised(recordings.values)
    weights = map_weights(recordings.channels)
    map_values, _ = _quantised(np.zeros(0) if weights is None else weights)
    shown = len(recordings.channels)
    return {
        "subject": recordings.subject,
        "times": [round(1000 * time) for time in recordings.times],
        "channels": shown,
        "about": f"{shown} of {recordings.recorded_channels} channels",
        "units": recordings.units,
        "scale": scale,
        "values": values,
        "map": map_values,
        "side": 0 if weights is None else weights.shape[0],
        "edge": EDGE,
    }


def _quantised(values: np.ndarray) -> tuple[str, float]:
    """Return values as bytes from -127 to 127 in base64, -128 where they are NaN, and what 127 stands for."""
    largest = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    whole = np.where(np.isnan(values), -128, np.round(127 * values / largest)).astype(np.int8)
    return base64.b64encode(whole.tobytes()).decode(), largest


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
