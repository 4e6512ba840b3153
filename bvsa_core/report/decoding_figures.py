"""Figures of linear decoding by time, place and layer, and of how far a system's confidence can be trusted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bvsa_core.errors import import_mne
from bvsa_core.report.content import Accuracy, LinearDecoding, RetrievalExample
from bvsa_core.report.recording_figures import located_channels
from bvsa_core.report.style import (
    INK,
    PALETTE,
    QUIET,
    WIDTH,
    FigureSpec,
    curve_style,
    legend_below,
    mark_rows,
    slug,
    subplots,
)
from bvsa_core.retrieval.statistics import crossed_bootstrap

SECTION = "decoding"
GROUPS = 8  # of recordings, by confidence
_METHOD = "Ridge regression to image features"


def decoding_figures(decoding: LinearDecoding) -> list[FigureSpec]:
    """Return the figures of one subject's linear decoding: by time, by place, and by layer where there are several."""
    figures = [_by_time(decoding)]
    if decoding.regions or decoding.channels:
        figures.append(_by_place(decoding))
    if decoding.layers:
        figures.append(_by_layer(decoding))
    return figures


def _name(figure: str, decoding: LinearDecoding) -> str:
    return f"{figure}-{slug(f'{decoding.data} {decoding.subject}')}"


def _percent(accuracies: Mapping[Any, Accuracy]) -> np.ndarray:
    """Return accuracies (n, 3) in percent: value, low and high end."""
    return 100 * np.array([*accuracies.values()])


def _chance(axes: Axes, decoding: LinearDecoding) -> None:
    axes.axhline(100 / decoding.images, color=QUIET, lw=0.8, ls=":")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))


def _bars(axes: Axes, accuracies: Mapping[str, Accuracy], decoding: LinearDecoding) -> None:
    values = _percent(accuracies)
    errors = {"yerr": np.abs(values[:, 1:] - values[:, :1]).T, "error_kw": {"ecolor": INK, "elinewidth": 0.8}}
    axes.bar(range(len(values)), values[:, 0], 0.6, color=PALETTE[0], **errors)
    axes.set_xticks(range(len(values)), list(accuracies), rotation=30 if len(values) > 4 else 0)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("Top-1 / %")
    _chance(axes, decoding)


def _caption(decoding: LinearDecoding, parts: str) -> str:
    whole = 100 * decoding.everything.top1
    return (
        f"{_METHOD} ({decoding.target}), fitted on the training recordings of the run and tested on {decoding.subject}:"
        f" {parts}. With all channels and times together: {whole:.1f} %. {decoding.images} images; dotted: chance; 95 %"
        " bootstrap intervals over images. It does not use the trained methods."
    )


def _by_time(decoding: LinearDecoding) -> FigureSpec:
    milliseconds, values = 1000 * np.array([*decoding.windows]), _percent(decoding.windows)

    def draw() -> Figure:
        figure, ((axes,),) = subplots(1, 1, 2.5)
        axes.plot(milliseconds, values[:, 0], marker="o", ms=3, color=PALETTE[0])
        axes.fill_between(milliseconds, values[:, 1], values[:, 2], color=PALETTE[0], alpha=0.15, lw=0)
        axes.set(xlabel="middle of the window, time from image onset (ms)", ylabel="Top-1 / %")
        _chance(axes, decoding)
        return figure

    best = int(values[:, 0].argmax())
    parts = f"accuracy from each window of {1000 * decoding.window:.0f} ms alone"
    alt = f"Curve of accuracy over time. The highest is {values[best, 0]:.1f} percent at {milliseconds[best]:.0f} ms."
    title = f"Time-resolved decoding, {decoding.data}, {decoding.subject}"
    return FigureSpec(_name("time", decoding), SECTION, title, _caption(decoding, parts), alt, draw)


def _by_place(decoding: LinearDecoding) -> FigureSpec:
    info, _ = located_channels([*decoding.channels], "EEG") if decoding.channels else (None, "")

    def draw() -> Figure:
        panels = bool(decoding.regions) + (info is not None)
        figure = Figure((WIDTH, 2.7), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        if decoding.regions:
            _bars(axes[0], decoding.regions, decoding)
        if info is not None:
            accuracies = [100 * decoding.channels[name].top1 for name in info.ch_names]
            options: Any = {"show": False, "cmap": "viridis", "vlim": (0, max(accuracies) or 1), "contours": 0}
            plot = import_mne("topographic maps").viz.plot_topomap
            image, _ = plot(accuracies, info, axes=axes[-1], extrapolate="local", **options)
            figure.colorbar(image, ax=axes[-1], label="Top-1 / %", location="bottom", shrink=0.8)
        return figure

    parts = []
    if decoding.regions:
        parts.append("accuracy from the channels over one part of the head alone")
    if info is not None:
        parts.append("map: accuracy from each channel and the four nearest to it")
    accuracies = decoding.regions or decoding.channels
    best = max(accuracies, key=lambda name: accuracies[name].top1)
    alt = f"Accuracy by place on the head. The highest is {100 * accuracies[best].top1:.1f} percent: {best}."
    title = f"Decoding by channels, {decoding.data}, {decoding.subject}"
    return FigureSpec(_name("channels", decoding), SECTION, title, _caption(decoding, "; ".join(parts)), alt, draw)


def _by_layer(decoding: LinearDecoding) -> FigureSpec:
    def draw() -> Figure:
        figure, ((axes,),) = subplots(1, 1, 2.5)
        _bars(axes, decoding.layers, decoding)
        return figure

    best = max(decoding.layers, key=lambda name: decoding.layers[name].top1)
    parts = "accuracy for the features of each layer of the image encoder; test images choose nothing here"
    alt = f"Accuracy by layer. The highest is {100 * decoding.layers[best].top1:.1f} percent: {best}."
    title = f"Decoding by layer, {decoding.data}, {decoding.subject}"
    return FigureSpec(_name("layers", decoding), SECTION, title, _caption(decoding, parts), alt, draw)


def confidence(retrievals: Sequence[RetrievalExample]) -> np.ndarray:
    """Return accuracies (up to GROUPS, 3) in percent with their intervals, for the least confident recordings first.

    The confidence of a retrieval is the margin of its best similarity over the second best. Recordings of each run are
    ordered by it and divided into groups of equal size; the same group of all runs is taken together.
    """
    count = min(GROUPS, *(len(each.similarity) for each in retrievals))
    groups: list[list[bool]] = [[] for _ in range(count)]
    for each in retrievals:
        best = np.sort(each.similarity, axis=1)
        margin = best[:, -1] - best[:, -2]
        hit = (each.similarity >= each.similarity.diagonal()[:, None]).sum(1) == 1
        for group, chosen in zip(groups, np.array_split(np.argsort(margin, kind="stable"), count)):
            group.extend(hit[chosen].tolist())
    hits = [np.array(group, dtype=float) for group in groups]
    return 100 * np.array([(each.mean(), *crossed_bootstrap(each[None, None], resamples=2000)) for each in hits])


def confidence_figure(data: str, retrievals: Sequence[RetrievalExample]) -> FigureSpec:
    """Show for each system whether its confident retrievals are right more often."""
    systems: dict[str, list[RetrievalExample]] = {}
    for each in retrievals:
        systems.setdefault(each.label, []).append(each)
    curves = {label: confidence(retrievals) for label, retrievals in systems.items()}

    def draw() -> Figure:
        figure, ((axes,),) = subplots(1, 1, 2.7)
        handles: list[Any] = []
        for i, (label, values) in enumerate(curves.items()):
            style, middles = curve_style(i), (np.arange(len(values)) + 0.5) * 100 / len(values)
            parts: list[Artist] = [*axes.plot(middles, values[:, 0], marker="o", ms=3, **style)]
            handles += parts
            if len(curves) <= 3:  # more bands would hide each other
                band = axes.fill_between(middles, values[:, 1], values[:, 2], color=style["color"], alpha=0.12, lw=0)
                parts.append(band)
            mark_rows(parts, [systems[label][0].row])
        axes.set(xlabel="recordings by confidence / % (least to most)", ylabel="Top-1 / %", xlim=(0, 100))
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
        legend_below(figure, handles, curves)
        return figure

    caption = (
        f"Top-1 accuracy of recordings in up to {GROUPS} groups of equal size by confidence: the margin of the "
        "best similarity over the second best. Where the curve rises, a confident retrieval is right more often; a "
        f"flat curve says that the margin tells nothing.{' Bands: 95 % intervals.' if len(curves) <= 3 else ''}"
    )
    ends = "; ".join(
        f"{label} from {values[0, 0]:.0f} to {values[-1, 0]:.0f} percent" for label, values in curves.items()
    )
    alt = f"Curves of accuracy from the least to the most confident recordings: {ends}."
    return FigureSpec(f"confidence-{slug(data)}", SECTION, f"Confidence, {data}", caption, alt, draw)
