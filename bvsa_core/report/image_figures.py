"""Figures that show images: under every blur level, as retrieved, and their similarity to all recordings."""

import io
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from bvsa_core.report.content import BlurExample, Report, RetrievalExample
from bvsa_core.report.style import CORRECT, INK, WIDTH, FigureSpec, slug, subplots

MAX_MATRICES = 6  # in one figure; each takes about 100 kB of the page


def blur_figure(example: BlurExample) -> FigureSpec:
    """Show images under every blur level of a training: one image per row, one level per column."""

    def draw() -> Figure:
        rows, columns = example.images.shape[:2]
        figure, axes = subplots(rows, columns, WIDTH / columns * rows + 0.3)
        figure.set_layout_engine("constrained", w_pad=0.015, h_pad=0.015, hspace=0, wspace=0)
        for panel, image in zip(axes.flat, example.images.reshape(-1, *example.images.shape[2:])):
            panel.imshow(image)
            panel.set_axis_off()
        for panel, level in zip(axes[0], ["not blurred", *example.levels]):
            panel.set_title(level.replace(" gain", "\ngain"), fontsize=6.5, loc="center")
        return figure

    caption = (
        "Images of the data set as the image encoder sees them, blurred by fovblur; "
        f"k: kernel size in pixels; sigma: in pixels; {example.falloff}."
    )
    alt = f"Images of {', '.join(example.concepts)}, first not blurred, then at {', '.join(example.levels)}."
    return FigureSpec(f"blurred-{slug(example.label)}", "", f"Blurred images, {example.label}", caption, alt, draw)


def retrieval_figure(report: Report, retrieval: RetrievalExample, rows: int = 6) -> FigureSpec:
    """Show what a run retrieves for some recordings, evenly spaced over the test set."""
    count, best, images = len(retrieval.top), len(retrieval.top[0]), retrieval.similarity.shape[1]
    rows = min(rows, count)
    queries = [i * (count - 1) // max(1, rows - 1) for i in range(rows)]

    def show(axes: Axes, index: int, correct: bool = False) -> None:
        image, colour = report.images[index], CORRECT if correct else INK
        if image.thumbnail:
            axes.imshow(Image.open(io.BytesIO(image.thumbnail)))
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        for side in axes.spines.values():
            side.set(visible=correct, color=colour, linewidth=2.5)
        title = textwrap.fill(("\N{CHECK MARK} " if correct else "") + image.concept, 17)
        axes.set_title(title, fontsize=6 if title.count("\n") < 2 else 5, color=colour, loc="left", pad=3)

    def draw() -> Figure:
        widths = [1, 0.12, *[1] * best]
        height = (WIDTH / (best + 1) + 0.24) * len(queries) + 0.2
        figure, axes = subplots(len(queries), len(widths), height, width_ratios=widths)
        figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, hspace=0, wspace=0)
        for panels, query in zip(axes, queries):
            target = retrieval.targets[query]
            show(panels[0], target)
            panels[1].set_visible(False)
            for panel, index in zip(panels[2:], retrieval.top[query]):
                show(panel, index, index == target)
        for panel, header in ((axes[0, 0], "seen"), (axes[0, 2], "found")):
            above = 14 + 7 * panel.get_title(loc="left").count("\n")  # points
            panel.annotate(header, (0, 1), (0, above), "axes fraction", "offset points", fontsize=9, fontweight="bold")
        return figure

    those = "test set" if count == len(retrieval.targets) else f"first {count} recordings"
    caption = (
        f"Left: the image that was seen. Right: the best {best} of {images} images for its recording, best first, for "
        f"{len(queries)} recordings evenly spaced over the {those} of {retrieval.subject}, seed {retrieval.seed}. "
        f"The correct image is framed. {retrieval.data}."
    )
    hits = sum(retrieval.ranks[query] <= best for query in queries)
    alt = f"Rows of images; the correct one is among the best {best} in {hits} of {len(queries)}."
    return FigureSpec("retrieved", "", f"Retrieved images, {retrieval.label}", caption, alt, draw)


def similarity_figure(data: str, retrievals: Sequence[RetrievalExample]) -> FigureSpec:
    """Show the similarity matrices (recordings, images) of several runs."""
    ends = [np.quantile(each.similarity, [0.5, 0.995]) for each in retrievals]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)

    def draw() -> Figure:
        columns = min(2, len(retrievals))
        rows = math.ceil(len(retrievals) / columns)
        figure, axes = subplots(rows, columns, 1.08 * min(WIDTH / columns, 3.4) * rows + 0.5)
        for panel, retrieval in zip(axes.flat, retrievals):
            matrix = panel.imshow(retrieval.similarity, cmap="cividis", vmin=low, vmax=high, interpolation="none")
            panel.set(
                title=textwrap.fill(retrieval.label, 40 if columns > 1 else 80), xlabel="image", ylabel="recording"
            )
            panel.grid(False)
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_locator(MaxNLocator("auto", integer=True))
        for panel in axes.flat[len(retrievals) :]:
            panel.set_visible(False)
        figure.colorbar(matrix, ax=axes, label="similarity", location="bottom", shrink=0.6, aspect=40)
        return figure

    caption = (
        "Similarity of every test recording to every image of the gallery, for one run (first subject and seed) of up "
        f"to {MAX_MATRICES} systems. Correct images are on the diagonal. Colours range from the median to the 99.5th "
        "percentile."
    )
    separations = ", ".join(f"{each.label} {_separation(each):.1f}" for each in retrievals)
    alt = f"Similarity matrices. Mean difference of correct to other images, in standard deviations: {separations}"
    return FigureSpec(f"similarity-{slug(data)}", "similarity", f"Similarity, {data}", caption, alt, draw)


def _separation(retrieval: RetrievalExample) -> float:
    """Return by how many standard deviations correct images are more similar than the others."""
    correct = retrieval.similarity.diagonal()
    others = retrieval.similarity[np.eye(*retrieval.similarity.shape) == 0]
    return float((correct.mean() - others.mean()) / (others.std() or 1))
