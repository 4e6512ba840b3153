"""Figures of results, in one style: for the page as SVG, for papers and slides as PNG and PDF.

The palette is Okabe and Ito's, which people with any colour vision tell apart; where lines are many, dashes help.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bvsa_core.io.atomic import write_atomically

INK, QUIET, RULE = "#1b1b1f", "#5f5f6a", "#dadae0"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f8a", "#8a6d3b")
RIGHT = "#006e50"
DASHES = ("-", "--", ":", "-.")
WIDTH = 5.0  # inches: one column of a page, and about a telephone's
DPI = 200
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 8.5, "axes.titlesize": 8.5, "axes.labelsize": 8.5, "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET,
    "xtick.color": QUIET, "ytick.color": QUIET, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": RULE,
    "grid.linewidth": 0.6, "axes.titlelocation": "left", "lines.linewidth": 1.5, "legend.frameon": False,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "svg.fonttype": "none", "pdf.fonttype": 42, "savefig.dpi": DPI,
    "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """One figure and its words."""

    name: str  # of its files
    part: str  # of the page
    title: str
    caption: str
    alt: str  # what someone hears who does not see it
    draw: Callable[[], Figure]


def save(drawings: Iterable[Drawing], folder: Path) -> list[Path]:
    """Write every figure as PNG and as PDF; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for drawing in drawings:
        with matplotlib.rc_context(STYLE):
            figure = drawing.draw()
            for kind in ("png", "pdf"):
                file = io.BytesIO()
                about = {
                    "Title": drawing.title,
                    **({"Subject": drawing.caption} if kind == "pdf" else {"Description": drawing.caption}),
                }
                figure.savefig(file, format=kind, metadata=about)
                path = folder / f"{drawing.name}.{kind}"
                write_atomically(path, file.getvalue())
                written.append(path)
    return written


def to_svg(drawing: Drawing) -> str:
    """An <svg> for inside HTML, whose colours and font are the page's: --ink, --quiet, --rule, --c0 ... --c7."""
    file = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": drawing.name, "savefig.dpi": 120}):
        drawing.draw().savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = re.sub(r'<g id="[A-Za-z]+[\d._]*">', "<g>", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text, count=1)
    named = {INK: "ink", QUIET: "quiet", RULE: "rule", **{colour: f"c{i}" for i, colour in enumerate(PALETTE)}}
    for colour, name in named.items():
        text = text.replace(colour, f"var(--{name})")
    return text.strip()


def slug(name: str) -> str:
    """Part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"


def axes_of(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)
