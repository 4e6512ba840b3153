"""The figures that show images: what a blur does to them, what is retrieved, and how similar all are to all recordings."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from bvsa_core.report.content import BlurExample, Report, RetrievalExample
from bvsa_core.report.style import INK, RIGHT, WIDTH, Drawing, axes_of, slug

MATRICES = 6  # of one figure, some 100 kB each on a page


def blurred_images(blurred: BlurExample) -> Drawing:
    def draw() -> Figure:
        rows, columns = blurred.images.shape[:2]
        figure, axes = axes_of(rows, columns, WIDTH / columns * rows + 0.3)
        figure.set_layout_engine("constrained", w_pad=0.015, h_pad=0.015, hspace=0, wspace=0)
        for row, images in zip(axes, blurred.images):
            for each, image in zip(row, images):
                each.imshow(image)
                each.set_axis_off()
        for each, level in zip(axes[0], ["not blurred", *blurred.levels]):
            each.set_title(level.replace(" gain", "\ngain"), fontsize=6.5, loc="center")
        return figure

    return Drawing(
        f"blurred-{slug(blurred.label)}",
        "",
        f"What the blur does, {blurred.label}",
        f"Images of the data set as the image encoder's input, blurred by fovblur; k: kernel size in pixels; {blurred.falloff}.",
        f"Images of {', '.join(blurred.names)}, first as they are, then at {', '.join(blurred.levels)}.",
        draw,
    )


def retrieved(report: Report, of: RetrievalExample, rows: int = 6) -> Drawing:
    """What a run finds for a few recordings, taken evenly from all."""
    chosen = [i * (len(of.right) - 1) // max(1, rows - 1) for i in range(min(rows, len(of.right)))]

    def show(axes: Axes, number: int, title: str, colour: str) -> None:
        image = report.images[number]
        if image.thumbnail:
            axes.imshow(Image.open(io.BytesIO(image.thumbnail)))
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        for side in axes.spines.values():
            side.set(visible=colour != INK, color=colour, linewidth=2.5)
        axes.set_title(title if len(title) < 18 else f"{title[:15]}...", fontsize=6, color=colour, loc="left", pad=3)

    def draw() -> Figure:
        columns = len(of.best[0])
        widths = [1, 0.12, *[1] * columns]
        figure, axes = axes_of(
            len(chosen), len(widths), (WIDTH / (columns + 1) + 0.16) * len(chosen), width_ratios=widths
        )
        figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, hspace=0, wspace=0)
        for row, query in zip(axes, chosen):
            show(row[0], of.right[query], report.images[of.right[query]].concept, INK)
            row[1].set_visible(False)
            for each, number in zip(row[2:], of.best[query]):
                right = number == of.right[query]
                show(
                    each,
                    number,
                    ("\N{CHECK MARK} " if right else "") + report.images[number].concept,
                    RIGHT if right else INK,
                )
        return figure

    hits = sum(of.ranks[query] <= len(of.best[query]) for query in chosen)
    return Drawing(
        "retrieved",
        "",
        f"Retrieved images, {of.label}",
        f"What was seen (left) and the best {len(of.best[0])} of {of.similarity.shape[1]} images for its recording, best first, for "
        f"{len(chosen)} recordings taken evenly from the test set of {of.subject}, seed {of.seed}; framed: the right image. {of.data}.",
        f"Rows of images; the right one is among the best {len(of.best[0])} in {hits} of {len(chosen)}.",
        draw,
    )


def similarity(data: str, shown: Sequence[RetrievalExample]) -> Drawing:
    ends = [np.quantile(each.similarity, [0.5, 0.995]) for each in shown]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)

    def draw() -> Figure:
        columns = min(2, len(shown))
        rows = math.ceil(len(shown) / columns)
        figure, axes = axes_of(rows, columns, 1.08 * min(WIDTH / columns, 3.4) * rows + 0.5)
        for each, one in zip(axes.flat, shown):
            drawn = each.imshow(one.similarity, cmap="cividis", vmin=low, vmax=high)
            each.set(title=one.label, xlabel="image", ylabel="recording")
            each.grid(False)
        for each in axes.flat[len(shown) :]:
            each.set_visible(False)
        figure.colorbar(drawn, ax=axes, label="similarity", location="bottom", shrink=0.6, aspect=40)
        return figure

    clear = [f"{each.label} {_clearness(each):.1f}" for each in shown]
    return Drawing(
        f"similarity-{slug(data)}",
        "similarity",
        f"Similarity, {data}",
        "Similarity of every test recording to every image of the gallery, of one run each (first subject and seed) of up to "
        f"{MATRICES} systems; right images lie on the diagonal. Colours go from the median to the upper half percent.",
        f"Matrices of similarity. By how much right images are the more similar ones, in standard deviations: {', '.join(clear)}",
        draw,
    )


def _clearness(retrieval: RetrievalExample) -> float:
    right = retrieval.similarity.diagonal()
    others = retrieval.similarity[np.eye(*retrieval.similarity.shape) == 0]
    return float((right.mean() - others.mean()) / (others.std() or 1))
