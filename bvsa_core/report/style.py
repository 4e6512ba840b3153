"""One style for all figures: SVG for the page, PNG and PDF for papers and slides.

The palette is Okabe and Ito's, which is readable with any colour vision. Dashes tell apart curves that share
one of its eight colours.
"""

import base64
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from PIL import Image

from bvsa_core.io.atomic import write_atomically

INK, QUIET, RULE = "#1b1b1f", "#5f5f6a", "#dadae0"  # text, secondary text and lines, grid
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f8a", "#8a6d3b")
CORRECT = "#006e50"
DASHES = ("-", "--", ":", "-.")
_LEGEND_LINE = 0.16  # inches
WIDTH = 5.0  # inches: one column of the page, and close to the width of a phone
DPI = 200
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 8.5, "axes.titlesize": 8.5, "axes.labelsize": 8.5,
    "legend.fontsize": 7.5, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET,
    "xtick.color": QUIET, "ytick.color": QUIET, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": RULE,
    "grid.linewidth": 0.6, "axes.titlelocation": "left", "lines.linewidth": 1.5, "legend.frameon": False,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "svg.fonttype": "none", "pdf.fonttype": 42, "savefig.dpi": DPI,
    "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class FigureSpec:
    """A figure and its texts; `draw` makes it when it is needed."""

    name: str  # file name without suffix
    section: str  # of the page
    title: str
    caption: str
    alt: str  # description for screen readers
    draw: Callable[[], Figure]


def save(figures: Iterable[FigureSpec], folder: Path) -> list[Path]:
    """Write every figure as PNG and as PDF; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for spec in figures:
        with matplotlib.rc_context(STYLE):
            figure = spec.draw()
            for suffix, field in (("png", "Description"), ("pdf", "Subject")):
                file = io.BytesIO()
                figure.savefig(file, format=suffix, metadata={"Title": spec.title, field: spec.caption})
                written.append(folder / f"{spec.name}.{suffix}")
                write_atomically(written[-1], file.getvalue())
    return written


def to_svg(spec: FigureSpec) -> str:
    """Return an <svg> for HTML; its colours are the page's variables --ink, --quiet, --rule, --c0 ... --c7."""
    file = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": spec.name, "savefig.dpi": 120}):
        spec.draw().savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = re.sub(r'<g id="rows ([\d ]+)">', r'<g data-rows="\1">', text)
    text = re.sub(r'<g id="[A-Za-z]+[\d._]*">', "<g>", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text, count=1)
    text = re.sub(r"(?<=data:image/png;base64,)[A-Za-z0-9+/=\s]+", lambda match: _smaller_png(match[0]), text)
    variables = {INK: "ink", QUIET: "quiet", RULE: "rule", **{colour: f"c{i}" for i, colour in enumerate(PALETTE)}}
    for colour, name in variables.items():
        text = text.replace(colour, f"var(--{name})")
    return text.strip()


def _smaller_png(content: str) -> str:
    """Encode a PNG file in base64 again, with a palette: its colours are those of a colour map, at most 256."""
    file = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(content))).quantize(256).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def curve_style(index: int) -> dict[str, str]:
    """Colour and dashes of the curve with this index."""
    return {"color": PALETTE[index % len(PALETTE)], "ls": DASHES[index // len(PALETTE) % len(DASHES)]}


def legend_below(figure: Figure, handles: Sequence[Any], labels: Iterable[str]) -> None:
    """Put a legend below the axes, in as many columns as fit, and make the figure higher by as much as it takes."""
    labels = [textwrap.fill(label, 80) for label in labels]
    columns = max(1, min(len(labels), 84 // (max(map(len, labels)) + 7)))
    lines = math.ceil(len(labels) / columns) + sum(label.count("\n") for label in labels)
    figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * (lines - 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=1.8)


def mark_rows(artists: Iterable[Artist], rows: Iterable[int]) -> None:
    """Mark parts of a figure as those of rows of the table: the page shows and hides them together."""
    for artist in artists:
        artist.set_gid(f"rows {' '.join(map(str, rows))}")


def slug(name: str) -> str:
    """Turn any text into part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"


def subplots(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """Make a figure of the standard width, `height` inches high, with axes (rows, columns)."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)
