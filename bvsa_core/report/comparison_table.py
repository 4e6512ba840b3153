"""The table of a grid: our scores beside published ones, and footnotes on how their protocols differ."""

from __future__ import annotations

import csv
import io
import itertools
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from bvsa_core.errors import import_pandas, printable
from bvsa_core.report.tables import (
    MethodResult,
    is_toy,
    markdown_table,
    recordings_text,
    rich_table,
    score_cells,
    scoring_text,
)
from bvsa_core.retrieval.gates import BIJECTION, TRANSDUCTIVE
from bvsa_core.retrieval.result import RunResult, ranks_by_subject
from bvsa_core.retrieval.scoring import window_text
from bvsa_core.retrieval.statistics import Comparison
from bvsa_core.vision.clip import PRETRAINED

if TYPE_CHECKING:
    import pandas as pd

# Subjects, channels, sampling rate and test repetitions of THINGS-EEG2 and THINGS-MEG as the field reports them.
USUAL = {"eeg": (10, 17, 250, 80), "meg": (4, 271, 200, 12)}
USUAL_WINDOW = (0.0, 1.0)  # seconds after image onset
USUAL_SOURCE = "ubp"  # the files that UBP and BVSA publish and use
USUAL_GALLERY = 200
OURS = "ours"
PAPER = "published"


@dataclass(frozen=True)
class PaperResult:
    """Scores that a paper reports for one method in one setting; accuracies are in percent."""

    method: str
    year: int
    top1: float
    top5: float
    selection: str  # of the epoch
    source: str  # who printed them
    encoder: str | None = None  # of the images
    channels: int | None = None  # default: as usual
    gallery: str | None = None  # default: one image per concept
    caveat: str | None = None
    uses_labels: bool = False


@dataclass(frozen=True)
class ComparisonRow:
    """One row of the table: our result, a published one, or both."""

    modality: str  # eeg or meg
    setting: str  # intra or inter
    system: str
    encoder: str = ""  # of recordings
    result: MethodResult | None = None  # None if cells are missing, or the grid does not have the method
    missing: int = 0  # number of missing cells
    cells: int = 0
    published: PaperResult | None = None
    planned_seeds: int = 0  # of the grid; 0 if there is no plan

    @property
    def data(self) -> str:
        """Modality and setting, after the name of the data set if there is a result."""
        dataset = f"{self.result.protocol.dataset} " if self.result else ""
        return f"{dataset}{self.modality.upper()} {self.setting}-subject"


def notes(row: ComparisonRow) -> list[str]:
    """Return footnotes: caveats of our result and of the published one, and how their protocols differ."""
    result = row.result
    own = [*caveats(row), *_deviations(result, row.published, *USUAL[row.modality])] if result else []
    return [*own, *(_differences(row.published, result) if row.published else [])]


def caveats(row: ComparisonRow) -> Iterable[str]:
    """Yield what a reader has to know about our result, if there is one."""
    if (result := row.result) is None:
        return
    protocol = result.protocol
    if protocol.leak:
        yield f"LEAK: {protocol.leak} (concepts or images, as --allow_leak allows); this is no test"
    if protocol.dataset == "synthetic":
        yield (
            "synthetic data: made on the machine by a forward model, not recorded from people; "
            "do not compare them with published scores"
        )
    if result.note:
        yield f"{result.method}: {result.note}"
    yield from (f"{result.method}: {deviation}" for deviation in result.deviations)
    if protocol.information == "uses labels":
        yield f"gate {protocol.gate} uses labels: it reads which text belongs to which test recording"
    elif protocol.rescoring:
        yield f"{TRANSDUCTIVE}: test recordings inform each other's ranking"
    if protocol.information == BIJECTION:
        yield f"{protocol.rescoring} {BIJECTION.split(', ')[1]}: no two test recordings may show the same image"
    if protocol.threshold:
        yield f"threshold {protocol.threshold} by hand: not learnt on training recordings, so it may fit the test set"
    if protocol.training:
        yield f"transductive: {result.method} {protocol.training}, those of the test images and their texts"
    if protocol.brain:
        yield f"recordings by {protocol.brain}"
    if protocol.texts == "shuffled":
        yield "control: every image has another's text, so any gain comes from the gate's knowledge of the pairing"
    if protocol.texts_of:
        yield f"texts of images: {protocol.texts_of}, in place of prompts with the names of concepts"
    if protocol.gallery_of:
        yield f"gallery of {protocol.gallery_of}: no scores of the test images themselves; compare like with like"
    if protocol.selection != "last":
        long = {"validation": "the best epoch on concepts held out of the training data"}
        yield f"selection: {OURS} {long.get(protocol.selection, protocol.selection)}"
    if is_toy(protocol):
        toy = "a toy encoder for synthetic images; take another with --vision, such as RN50"
        yield f"images by {protocol.encoder}: {toy}"
    if protocol.repeated:
        shown = f"{protocol.repeated} test condition(s) show the image of another"
        yield f"{shown}: their recordings are averaged, and the image is in the gallery once"
    if result.seeds < row.planned_seeds:
        yield f"{OURS}: {result.seeds} seed(s); the grid plans {row.planned_seeds}"
    if not result.checked:
        yield f"{result.method}: not checked: runs of an earlier version, whose files have no checksums"


def _deviations(
    result: MethodResult, paper: PaperResult | None, subjects: int, channels: int, rate: float, repetitions: int
) -> Iterable[str]:
    """Yield how our result deviates from the usual protocol of its data set."""
    protocol = result.protocol
    if protocol.channels not in (None, channels) and not (paper and paper.channels):  # which `_differences` compares
        yield f"{OURS}: {protocol.channels} channels; usual are {channels}"
    if protocol.sampling_rate not in (None, rate):
        yield f"{OURS}: recordings of {protocol.sampling_rate:g} Hz; usual are {rate:g} Hz"
    if protocol.window and not _covers_usual_window(protocol.window, protocol.sampling_rate or rate):
        yield f"{OURS}: recordings from {window_text(protocol.window)}; usual are {window_text(USUAL_WINDOW)}"
    if protocol.source not in (None, USUAL_SOURCE, "synthetic"):
        yield f"{OURS}: recordings of the source {protocol.source}; UBP and BVSA used those of {USUAL_SOURCE}"
    if None in (protocol.sampling_rate, protocol.window, protocol.source):
        yield f"{OURS}: recordings of {recordings_text(protocol)}: a run of an earlier version, or files without times"
    if protocol.repetitions not in (None, repetitions):
        yield f"{OURS}: {protocol.repetitions} test repetitions averaged; usual are {repetitions}"
    if not paper and not protocol.gallery_of and protocol.gallery != USUAL_GALLERY:  # else `_differences` compares
        yield f"{OURS}: gallery of {protocol.gallery} images; usual are {USUAL_GALLERY}"
    if result.subjects != subjects:
        yield f"{OURS}: {result.subjects} subject(s); published are means over {subjects}"


def _covers_usual_window(window: tuple[float, float], rate: float) -> bool:
    """Return whether a window of samples is the usual one, which may end a sample before its last second."""
    first, last = (given - usual for given, usual in zip(window, USUAL_WINDOW))
    return max(abs(first), abs(last)) <= 1.01 / rate


def _differences(paper: PaperResult, result: MethodResult | None) -> Iterable[str]:
    """Yield the caveat of a published result and how its protocol differs from ours."""
    encoder = paper.encoder or "not stated"
    if paper.caveat:
        yield f"{PAPER} {paper.method}: {paper.caveat}"
    if result is None:
        yield f"{PAPER} {paper.method}: images by {encoder}, source {paper.source}"
        return
    protocol = result.protocol
    if not paper.selection.startswith(protocol.selection.split()[0]):
        epoch = " epoch" if protocol.selection == "last" else ""
        yield f"selection: {OURS} {protocol.selection}{epoch}, {PAPER} {paper.selection}"
    if paper.channels and protocol.channels not in (None, paper.channels):
        yield f"channels: {OURS} {protocol.channels}, {PAPER} {paper.channels}"
    ours = protocol.gallery_of or f"{protocol.gallery} images"
    if ours != (theirs := paper.gallery or f"{USUAL_GALLERY} images"):
        yield f"gallery: {OURS} {ours}, {PAPER} {theirs}"
    usual = {paper.encoder, f"{paper.encoder}/{PRETRAINED.get(encoder)}"}
    if paper.encoder is None or protocol.encoder not in usual:
        yield f"images by: {OURS} {protocol.encoder}, {PAPER} {encoder}"
    if paper.uses_labels and protocol.information != "uses labels":
        yield f"information: {OURS} {protocol.knowledge}, {PAPER} uses labels"


COLUMNS = (
    "data", "system", "brain encoder", "gate", "Top-1 %", "Top-5 %", "mAP %", "median rank", "subjects x seeds",
    "published", "published selection", "published Top-1 %", "published Top-5 %", "notes",
)  # fmt: skip
ABSENT = "–"  # noqa: RUF001


def cells(rows: Sequence[ComparisonRow]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the texts of COLUMNS for every row, and the footnotes, numbered in order of appearance."""
    footnotes: list[str] = []
    table = []
    for row in rows:
        own = notes(row)
        footnotes += [note for note in dict.fromkeys(own) if note not in footnotes]
        marks = " ".join(str(number) for number in sorted(footnotes.index(note) + 1 for note in own))
        paper = row.published
        published = [ABSENT] * 4
        if paper:
            published = [f"{paper.method} {paper.year}", paper.selection, f"{paper.top1:.1f}", f"{paper.top5:.1f}"]
        table.append((row.data, row.system, *_our_cells(row), *published, marks))
    return table, footnotes


def _our_cells(row: ComparisonRow) -> tuple[str, ...]:
    result = row.result
    if result is None:
        missing = f"{row.missing} of {row.cells} cells missing" if row.cells else ABSENT
        return (row.encoder or ABSENT, ABSENT, missing, *[ABSENT] * 4)
    return row.encoder, scoring_text(result.protocol), *score_cells(result), f"{result.subjects} x {result.seeds}"


def caption(title: str, rows: Sequence[ComparisonRow]) -> str:
    """Return the title and the conditions that all rows share."""
    galleries = sorted({row.result.protocol.gallery for row in rows if row.result})
    ways = ", ".join(f"{size}-way retrieval (chance {100 / size:.3g} %)" for size in galleries) or "retrieval"
    recordings = dict.fromkeys(f"our recordings: {recordings_text(row.result.protocol)}" for row in rows if row.result)
    ways = "; ".join([ways, *recordings])
    ours = "ours: mean over subjects and seeds with 95 % crossed bootstrap interval"
    return f"{title or 'Grid'}. {ways}; {ours}; published: as printed by its authors, mean over subjects"


def to_markdown(title: str, rows: Sequence[ComparisonRow]) -> str:
    """Return the table with its caption and footnotes as Markdown."""
    table, footnotes = cells(rows)
    numbered = "".join(f"{number}. {note}\n" for number, note in enumerate(footnotes, start=1))
    return f"{markdown_table(COLUMNS, table)}\n\n{caption(title, rows)}.\n\n{numbered}"


def to_csv(rows: Sequence[ComparisonRow]) -> str:
    """Return one record per row: accuracies in percent, footnotes in full, absent values empty."""
    file = io.StringIO()
    records = [_record(row) for row in rows]
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def to_frame(rows: Sequence[ComparisonRow]) -> pd.DataFrame:
    """Return the records of `to_csv` as a pandas.DataFrame."""
    return import_pandas("frames").DataFrame([_record(row) for row in rows])


_OF_PAPER = ("method", "year", "top1", "top5", "selection", "source")


def _record(row: ComparisonRow) -> dict[str, object]:
    result, paper = row.result, row.published
    protocol = result.protocol if result else None
    known = lambda part, *names: {name: getattr(part, name, None) for name in names}  # noqa: E731
    values = (result.top1, *result.top1_interval, result.top5, *result.top5_interval, result.map) if result else ()
    names = ("top1", "top1_low", "top1_high", "top5", "top5_low", "top5_high", "map")
    percents: dict[str, object] = {name: round(100 * value, 4) for name, value in zip(names, values)}
    return {
        "data": getattr(protocol, "dataset", None),
        **known(row, "modality", "setting", "system"),
        **known(result, "method"),
        "brain_encoder": row.encoder,
        "image_encoder": getattr(protocol, "encoder", None),
        **known(protocol, "selection"),
        "information": getattr(protocol, "knowledge", None),
        "gate": scoring_text(protocol) if protocol else None,
        **known(protocol, "gallery", "channels", "sampling_rate"),
        "window": window_text(protocol.window) if protocol and protocol.window else None,
        **known(protocol, "source", "texts_of", "gallery_of", "repetitions"),
        **known(result, "subjects", "seeds"),
        **(percents or dict.fromkeys(names)),
        **known(result, "median_rank"),
        **{f"published_{key}": getattr(paper, key, None) for key in _OF_PAPER},
        "notes": "; ".join(notes(row)),
    }


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "–": "--",  # noqa: RUF001
}  # fmt: skip


def escape(text: str) -> str:
    """Escape text for LaTeX; control characters are shown as escapes."""
    return "".join(_LATEX.get(character, character) for character in printable(text))


def to_latex(title: str, rows: Sequence[ComparisonRow]) -> str:
    """Return a table for the package booktabs, with a rule between data sets and settings."""
    table, footnotes = cells(rows)
    line = lambda texts: " & ".join(map(escape, texts)) + r" \\"  # noqa: E731
    groups = itertools.groupby(table, key=lambda texts: texts[0])
    body = [part for _, group in groups for part in (r"\midrule", *map(line, group))]
    numbered = [rf"\textsuperscript{{{number}}} {escape(note)}.\\" for number, note in enumerate(footnotes, start=1)]
    head = ["% needs \\usepackage{booktabs}", r"\begin{table*}", r"\centering\scriptsize"]
    head += [rf"\caption{{{escape(caption(title, rows))}.}}", rf"\begin{{tabular}}{{{'l' * 4 + 'r' * 5 + 'llrrl'}}}"]
    foot = [r"\bottomrule", r"\end{tabular}", "", r"\raggedright", *numbered, r"\end{table*}", ""]
    return "\n".join([*head, r"\toprule", line(COLUMNS), *body, *foot])


def to_rich(title: str, rows: Sequence[ComparisonRow]) -> Table:
    """Return a table for a terminal of 80 columns, without the columns that do not fit."""
    columns = ("data", "system", "Top-1 %", "Top-5 %", "published\nTop-1, Top-5\nselection")
    shown = rich_table(columns, ("data", "system"), caption(title, rows), overflow="fold")
    for (data, system, _, gate, top1, top5, *_), row in zip(cells(rows)[0], rows):
        paper = ABSENT
        if row.published:
            scores = f"{row.published.top1:.1f}, {row.published.top5:.1f}"
            paper = "\n".join([scores, *textwrap.wrap(row.published.selection, len("Top-1, Top-5"))])
        name = system if gate in ("none", ABSENT) else f"{system}, gate {gate}"
        if row.result and row.result.protocol.selection.startswith("oracle"):
            name += ", oracle"
        shown.add_row(data, name, *(text.replace(" [", "\n[") for text in (top1, top5)), paper)
    return shown


def subject_rows(results: Sequence[RunResult]) -> dict[str, tuple[float, float]]:
    """Return Top-1 and Top-5 accuracy of every subject, mean over seeds and images."""
    accuracy = lambda ranks, k: float((ranks <= k).mean())  # noqa: E731
    return {name: (accuracy(each, 1), accuracy(each, 5)) for name, each in ranks_by_subject(results).items()}


def mean_statistics(results: Sequence[RunResult]) -> Any:
    """Return the mean of the statistics that all results have; the spread of a curve, over draws, is averaged too."""
    return _mean([result.statistics or {} for result in results])


def _mean(parts: Sequence) -> Any:
    first = parts[0]
    if isinstance(first, dict):
        return {key: _mean([part[key] for part in parts]) for key in first if all(key in part for part in parts)}
    if isinstance(first, list):
        return [_mean(list(each)) for each in zip(*parts)]
    return float(np.mean(parts)) if isinstance(first, float) else first


def comparisons_frame(tests: Sequence[Comparison]) -> pd.DataFrame:
    """Return paired tests as a pandas.DataFrame, with the fields of `Comparison`."""
    return import_pandas("frames").DataFrame([asdict(test) for test in tests])


def comparisons_text(tests: list[Comparison] | str) -> str:
    """Return paired tests as a table, or the reason why there are none."""
    if isinstance(tests, str):
        return f"Wilcoxon: {tests}."
    columns = ("first", "second", "difference of Top-1, points", f"p (Wilcoxon over {tests[0].over}, Holm)")
    rows = [(each.first, each.second, difference_text(each), f"{each.p:.2g}") for each in tests]
    return markdown_table(columns, rows)


def difference_text(test: Comparison) -> str:
    """Return a difference of Top-1 in points with its 95 % interval."""
    return gain_text(test.difference, test.interval)


def gain_text(difference: float, interval: tuple[float, float]) -> str:
    """Format a difference of accuracies and its bounds in points.

    >>> gain_text(0.1, (-0.02, 0.2))
    '+10.0 [-2.0, +20.0]'
    """
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * each for each in (difference, *interval)))
