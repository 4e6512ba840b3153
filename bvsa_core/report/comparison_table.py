"""The table of a grid: ours beside what was published, never mixed, with the differences of protocol in footnotes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from bvsa_core.report.tables import MethodResult, scoring
from bvsa_core.retrieval.result import RunResult
from bvsa_core.retrieval.statistics import Comparison

# Subjects, channels and test repetitions of THINGS-EEG2 and THINGS-MEG as the field reports them, and their gallery.
USUAL = {"eeg": (10, 17, 80), "meg": (4, 271, 12)}
USUAL_GALLERY = 200
OURS = "ours"
PAPER = "published"


@dataclass(frozen=True)
class PaperResult:
    """One published row in one setting; accuracies in percent."""

    method: str
    year: int
    top1: float
    top5: float
    selection: str
    encoder: str | None = None  # of the images
    gallery: str | None = None  # where it is not one image a concept
    caveat: str | None = None
    uses_labels: bool = False


@dataclass(frozen=True)
class ComparisonRow:
    """One line: what we have, what was published, or both."""

    modality: str  # eeg or meg
    setting: str  # intra or inter
    system: str
    encoder: str = ""  # of recordings
    row: MethodResult | None = None  # None where cells are missing, or nobody runs it here
    missing: int = 0  # cells
    cells: int = 0
    published: PaperResult | None = None

    @property
    def data(self) -> str:
        """Which data in which setting; synthetic data are called so."""
        own = f"{self.row.protocol.dataset} " if self.row else ""
        return f"{own}{self.modality.upper()} {self.setting}-subject"


def notes(entry: ComparisonRow) -> list[str]:
    """What a reader has to know of a line, and in what ours and the published figure differ."""
    ours = _of_ours(entry.row, *USUAL[entry.modality]) if entry.row else []
    return [*ours, *(_of_published(entry.published, entry.row) if entry.published else [])]


def _of_ours(row: MethodResult, subjects: int, channels: int, repetitions: int) -> Iterable[str]:
    yield from caveats(row)
    protocol = row.protocol
    for what, usual in (("channels", channels), ("repetitions", repetitions)):
        if (value := getattr(protocol, what)) not in (None, usual):
            yield f"{OURS}: {value} {'test repetitions averaged' if what == 'repetitions' else what}; usual are {usual}"
    if row.subjects != subjects:
        yield f"{OURS}: {row.subjects} subject(s); published are means over {subjects}"


def caveats(row: MethodResult) -> Iterable[str]:
    """What a reader has to know of our figures, whatever stands beside them."""
    protocol = row.protocol
    if protocol.dataset == "synthetic":
        yield "synthetic data: made on the machine by a forward model, not recorded from people; published figures are no yardstick"
    if row.note:
        yield f"{row.method}: {row.note}"
    if protocol.information == "uses labels":
        yield f"gate {protocol.gate} uses labels: it reads which text belongs to which test recording"
    elif protocol.information != "inductive":
        yield f"{protocol.information}: test recordings inform each other's ranking"
    if protocol.texts == "shuffled":
        yield "control: every image has another's text, so what is gained comes from the gate's knowledge of the pairing"
    if protocol.selection != "last":
        told = {"validation": "the best epoch on concepts held out of the training data"}
        yield f"selection: {OURS} {told.get(protocol.selection, protocol.selection)}"


def _of_published(published: PaperResult, row: MethodResult | None) -> Iterable[str]:
    if published.caveat:
        yield f"{PAPER} {published.method}: {published.caveat}"
    if row is None:
        yield f"{PAPER} {published.method}: selection {published.selection}, images by {published.encoder or 'not stated'}"
        return
    selection, gallery, encoder = row.protocol.selection, row.protocol.gallery, row.protocol.encoder
    if not published.selection.startswith(selection.split()[0]):
        yield f"selection: {OURS} {selection}{' epoch' if selection == 'last' else ''}, {PAPER} {published.selection}"
    if published.gallery or gallery != USUAL_GALLERY:
        yield f"gallery: {OURS} {gallery} images, {PAPER} {published.gallery or f'{USUAL_GALLERY} images'}"
    if encoder != published.encoder:
        yield f"images by: {OURS} {encoder}, {PAPER} {published.encoder or 'not stated'}"
    if published.uses_labels and row.protocol.information != "uses labels":
        yield f"information: {OURS} {row.protocol.information}, {PAPER} uses labels"


COLUMNS = (
    "data", "system", "brain encoder", "gate", "Top-1 %", "Top-5 %", "mAP %", "median rank", "subjects x seeds",
    "published", "published Top-1 %", "published Top-5 %", "notes",
)  # fmt: skip
ABSENT = "–"  # noqa: RUF001


def lines(entries: Sequence[ComparisonRow]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Texts of the columns, and the footnotes they count, numbered as they first appear."""
    footnotes: list[str] = []
    table = []
    for entry in entries:
        marks = []
        for note in notes(entry):
            if note not in footnotes:
                footnotes.append(note)
            marks.append(footnotes.index(note) + 1)
        table.append(
            (entry.data, entry.system, *_ours(entry), *_theirs(entry.published), " ".join(map(str, sorted(marks))))
        )
    return table, footnotes


def _ours(entry: ComparisonRow) -> tuple[str, ...]:
    row = entry.row
    if row is None:
        missing = f"{entry.missing} of {entry.cells} cells missing" if entry.cells else ABSENT
        return (entry.encoder or ABSENT, ABSENT, missing, *[ABSENT] * 4)
    interval = lambda value, bounds: f"{100 * value:.1f} [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"  # noqa: E731
    return (
        entry.encoder,
        scoring(row.protocol),
        interval(row.top1, row.top1_interval),
        interval(row.top5, row.top5_interval),
        f"{100 * row.map:.1f}",
        f"{row.median_rank:g}",
        f"{row.subjects} x {row.seeds}",
    )


def _theirs(published: PaperResult | None) -> tuple[str, ...]:
    if published is None:
        return (ABSENT,) * 3
    return (f"{published.method} {published.year}", f"{published.top1:.1f}", f"{published.top5:.1f}")


def caption(title: str, entries: Sequence[ComparisonRow]) -> str:
    """What holds for the whole table."""
    galleries = sorted({entry.row.protocol.gallery for entry in entries if entry.row})
    ways = ", ".join(f"{size}-way retrieval (chance {100 / size:.3g} %)" for size in galleries) or "retrieval"
    ours = "ours: mean over subjects and seeds with 95 % crossed bootstrap interval"
    return f"{title or 'Grid'}. {ways}; {ours}; published: as printed by its authors, mean over subjects"


def to_markdown(title: str, entries: Sequence[ComparisonRow]) -> str:
    """The table, its caption and footnotes."""
    table, footnotes = lines(entries)
    return "\n".join(
        [
            markdown_table(COLUMNS, table),
            "",
            f"{caption(title, entries)}.",
            "",
            *(f"{number}. {note}" for number, note in enumerate(footnotes, start=1)),
            "",
        ]
    )


def markdown_table(columns: Sequence[str], table: Iterable[Sequence[str]]) -> str:
    """Rows of text; a bar in one of them does not end its cell."""
    shown = [columns, ["---"] * len(columns), *table]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in shown)


def to_csv(entries: Sequence[ComparisonRow]) -> str:
    """One record a line, accuracies in percent, footnotes spelt out; absent values are empty."""
    file = io.StringIO()
    fields = [
        "data", "modality", "setting", "system", "method", "brain_encoder", "image_encoder", "selection", "information", "gate",
        "gallery", "channels", "repetitions", "subjects", "seeds", "top1", "top1_low", "top1_high", "top5", "top5_low", "top5_high",
        "map", "median_rank", "published_method", "published_year", "published_top1", "published_top5", "published_selection", "notes",
    ]  # fmt: skip
    writer = csv.DictWriter(file, fields, lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        record: dict[str, object] = {"modality": entry.modality, "setting": entry.setting, "system": entry.system}
        record["brain_encoder"] = entry.encoder
        if row := entry.row:
            protocol = row.protocol
            record |= {
                name: getattr(protocol, name)
                for name in ("selection", "information", "gallery", "channels", "repetitions")
            }
            record |= {
                "data": protocol.dataset,
                "method": row.method,
                "image_encoder": protocol.encoder,
                "gate": scoring(protocol),
            }
            record |= {"subjects": row.subjects, "seeds": row.seeds, "median_rank": row.median_rank}
            values = (row.top1, *row.top1_interval, row.top5, *row.top5_interval, row.map)
            record |= {name: round(100 * value, 4) for name, value in zip(fields[15:22], values)}
        if theirs := entry.published:
            record |= {
                f"published_{name}": getattr(theirs, name) for name in ("method", "year", "top1", "top5", "selection")
            }
        writer.writerow(record | {"notes": "; ".join(notes(entry))})
    return file.getvalue()


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "–": "--",  # noqa: RUF001
}  # fmt: skip


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_latex(title: str, entries: Sequence[ComparisonRow]) -> str:
    """A table for the package booktabs; a rule parts the data."""
    table, footnotes = lines(entries)
    line = lambda cells: " & ".join(map(escape, cells)) + r" \\"  # noqa: E731
    body = []
    for before, cells in zip([None, *table], table):
        body += [r"\midrule"] if before is None or before[0] != cells[0] else []
        body.append(line(cells))
    under = [rf"\textsuperscript{{{number}}} {escape(note)}.\\" for number, note in enumerate(footnotes, start=1)]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table*}",
            r"\centering\scriptsize",
            rf"\caption{{{escape(caption(title, entries))}.}}",
            rf"\begin{{tabular}}{{{'l' * 4 + 'r' * 5 + 'lrrl'}}}",
            r"\toprule",
            line(COLUMNS),
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
            r"\raggedright",
            *under,
            r"\end{table*}",
            "",
        ]
    )


def to_rich(title: str, entries: Sequence[ComparisonRow]) -> Table:
    """For the terminal, 80 columns wide; the files have the rest."""
    shown = Table(caption=caption(title, entries), caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("data", "system", "Top-1 %", "Top-5 %", "published\nTop-1, Top-5"):
        shown.add_column(column, justify="left" if column in ("data", "system") else "right", overflow="fold")
    table, _ = lines(entries)
    for (data, system, _, gate, top1, top5, *_), entry in zip(table, entries):
        theirs = entry.published
        beside = f"{theirs.top1:.1f}, {theirs.top5:.1f}" if theirs else ABSENT
        name = system if gate in ("none", ABSENT) else f"{system}, gate {gate}"
        shown.add_row(data, name, *(text.replace(" [", "\n[") for text in (top1, top5)), beside)
    return shown


def subject_rows(results: Sequence[RunResult]) -> dict[str, tuple[float, float]]:
    """Top-1 and Top-5 accuracy of every subject, mean over seeds and images, from results with their ranks."""
    ranks: dict[str, list] = {}
    for result in results:
        ranks.setdefault(result.subject, []).append(result.ranks)
    share = lambda name, k: float((np.array(ranks[name]) <= k).mean())  # noqa: E731
    return {name: (share(name, 1), share(name, 5)) for name in sorted(ranks)}


def mean_statistics(results: Sequence[RunResult]) -> dict:
    """Statistics of cells, averaged over them; the spread of a curve is that over draws, averaged too."""
    return _mean([result.statistics for result in results])


def _mean(parts: Sequence) -> Any:
    first = parts[0]
    if isinstance(first, dict):
        return {key: _mean([part[key] for part in parts]) for key in first}
    if isinstance(first, list):
        return [_mean(list(each)) for each in zip(*parts)]
    return float(np.mean(parts)) if isinstance(first, float) else first


def comparisons_text(found: list[Comparison] | str) -> str:
    """Paired tests, as a table or as the sentence why there are none."""
    if isinstance(found, str):
        return f"Wilcoxon: {found}."
    table = [(each.first, each.second, f"{100 * each.difference:+.1f}", f"{each.p:.2g}") for each in found]
    return markdown_table(("first", "second", "difference of Top-1, points", "p (Wilcoxon, Holm)"), table)
