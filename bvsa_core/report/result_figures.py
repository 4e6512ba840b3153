"""Every figure of a report: what it shows, and the words that go with it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bvsa_core.report.content import Report, ReportRow, RunSummary
from bvsa_core.report.image_figures import MATRICES, blurred_images, retrieved, similarity
from bvsa_core.report.style import DASHES, INK, PALETTE, QUIET, Drawing, axes_of, slug
from bvsa_core.retrieval.bootstrap import crossed_bootstrap

BARS = 32  # of one axes; more of them get axes of their own
LEVELS = 12  # bands of one figure


def drawings(report: Report) -> list[Drawing]:
    """Every figure that the report has something for."""
    found = []
    for data, lines in report.data.items():
        found.append(_accuracy(data, lines))
    trainings = report.trainings()
    if any(run.metrics for runs in trainings.values() for run in runs):
        found.append(_training(trainings))
    for name, runs in trainings.items():
        if shares := blur_shares(runs):
            found.append(_levels(name, *shares))
    found += [blurred_images(each) for each in report.blurred]
    if report.retrievals and any(image.thumbnail for image in report.images):
        found.append(retrieved(report, report.retrievals[0]))
    for data, lines in report.data.items():
        if shown := [each for each in report.retrievals if each.data == data]:
            found.append(
                similarity(data, list({each.label: each for each in reversed(shown)}.values())[::-1][:MATRICES])
            )
        if any(run.repetitions for line in lines for run in line.runs):
            found.append(_repetitions(data, lines))
    names = [drawing.name for drawing in found]
    return [
        replace(each, name=f"{each.name}-{i}") if names.count(each.name) > 1 else each
        for i, each in enumerate(found, start=1)
    ]


def _percent(axes: Axes, what: str) -> None:
    axes.set_ylim(bottom=0)
    axes.set_ylabel(what)
    axes.grid(axis="x", visible=False)


def _epochs(axes: Axes, count: int) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if count == 1:
        axes.set_xticks([1])


def _legend(figure: Figure, handles: Sequence[Any], labels: Iterable[str]) -> None:
    labels = list(labels)
    longest = max(map(len, labels))
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(1, min(len(labels), 84 // (longest + 7))),
        handlelength=1.8,
    )


def _by_subject(line: ReportRow) -> dict[str, np.ndarray]:
    """Ranks (seeds, queries) of every subject."""
    found: dict[str, list] = {}
    for run in sorted(line.runs, key=lambda run: (run.subject, run.seed)):
        found.setdefault(run.subject, []).append(run.ranks)
    return {subject: np.array(ranks) for subject, ranks in found.items()}


def bars_of(line: ReportRow, k: int) -> dict[str, tuple[float, float, float]]:
    """Top-k accuracy of every subject in percent, with the ends of its 95 % interval; where there are several, their mean comes first."""
    found = {}
    subjects = _by_subject(line)
    if len(subjects) > 1:
        row = line.row
        value, bounds = (row.top1, row.top1_interval) if k == 1 else (row.top5, row.top5_interval)
        found["mean"] = (100 * value, 100 * bounds[0], 100 * bounds[1])
    for subject, ranks in subjects.items():
        low, high = crossed_bootstrap((ranks <= k)[None], resamples=2000)
        found[subject] = (100 * float((ranks <= k).mean()), 100 * low, 100 * high)
    return found


def _accuracy(data: str, lines: Sequence[ReportRow]) -> Drawing:
    known = {k: [bars_of(line, k) for line in lines] for k in (1, 5)}
    subjects = list(dict.fromkeys(name for bars in known[1] for name in bars))
    gallery = {line.row.protocol.gallery for line in lines}

    def bars(axes: Axes, shown: Sequence[dict], k: int) -> list[Any]:
        width, handles = 0.8 / len(shown), []
        for number, found in enumerate(shown):
            colour = PALETTE[number]
            places = [subjects.index(name) + (number - (len(shown) - 1) / 2) * width for name in found]
            values = np.array(list(found.values()))
            reach = np.abs(values[:, 1:] - values[:, :1]).T
            handles.append(
                axes.bar(
                    places,
                    values[:, 0],
                    width * 0.9,
                    color=colour,
                    yerr=reach,
                    error_kw={"ecolor": INK, "elinewidth": 0.8},
                )
            )
        for size in gallery:
            axes.axhline(100 * k / size, color=QUIET, lw=0.8, ls=":")
        axes.set_xticks(range(len(subjects)), subjects, rotation=45 if len(subjects) > 6 else 0)
        _percent(axes, f"Top-{k} / %")
        return handles

    def together() -> Figure:
        figure, axes = axes_of(1, 2, 2.7)
        handles, _ = (bars(each, known[k], k) for k, each in zip(known, axes.flat))
        _legend(figure, handles, [line.label for line in lines])
        return figure

    def apart() -> Figure:
        titles = [textwrap.fill(line.label, 38) for line in lines]
        rows, tallest = math.ceil(len(lines) / 2), 1 + max(title.count("\n") for title in titles)
        figure, axes = axes_of(rows, 2, (1.2 + 0.16 * tallest) * rows + 0.3, sharex=True, sharey=True)
        for shown, title, each in zip(known[1], titles, axes.flat):
            bars(each, [shown], 1)
            each.set_title(title, fontsize=7.5)
        for each in axes.flat[len(lines) :]:
            each.set_visible(False)
        return figure

    crowded = len(lines) > len(PALETTE) or len(lines) * len(subjects) > BARS
    best = max(lines, key=lambda line: line.row.top1)
    who = "mean over subjects, then each" if len(subjects) > 1 else subjects[0]
    return Drawing(
        f"accuracy-{slug(data)}",
        "results",
        f"Accuracy, {data}",
        f"{'Top-1' if crowded else 'Top-1 and Top-5'} accuracy in percent, {who}, mean over seeds; whiskers: 95 % bootstrap interval "
        f"over test images and seeds{' (of the mean over subjects too)' if len(subjects) > 1 else ''}; dotted: chance.",
        f"Bars of accuracy for {', '.join(line.label for line in lines)}. The highest mean Top-1 accuracy is "
        f"{100 * best.row.top1:.1f} percent, of {best.label}.",
        apart if crowded else together,
    )


def _series(runs: Sequence[RunSummary], name: str) -> np.ndarray | None:
    """(runs, epochs) of one metric; None where not every run has it in as many epochs."""
    found = [[each[name] for each in run.metrics if name in each] for run in runs]
    return np.array(found, dtype=float) if found and found[0] and len({len(each) for each in found}) == 1 else None


_CHOSEN_BY = {"validation_top1": "Top-1 on held-out concepts / %", "test_top1": "Top-1 on the test set / % (oracle)"}


def _training(trainings: dict[str, list[RunSummary]]) -> Drawing:
    metrics = ("loss", "validation_loss", *_CHOSEN_BY)
    known = {name: {metric: _series(runs, metric) for metric in metrics} for name, runs in trainings.items()}
    chosen = [metric for metric in _CHOSEN_BY if any(each[metric] is not None for each in known.values())]

    def draw() -> Figure:
        figure, axes = axes_of(1 + len(chosen), 1, 2.6 + 1.6 * len(chosen), sharex=True)
        handles: list[Any] = []
        for number, metrics in enumerate(known.values()):
            look = {"color": PALETTE[number % len(PALETTE)], "ls": DASHES[number // len(PALETTE) % len(DASHES)]}
            for metric, values in metrics.items():
                if values is None:
                    continue
                on, scale = (axes[0, 0], 1) if metric.endswith("loss") else (axes[1 + chosen.index(metric), 0], 100)
                epochs = np.arange(1, values.shape[1] + 1)
                lines = on.plot(
                    epochs, scale * values.mean(0), **(look | ({"ls": ":"} if metric == "validation_loss" else {}))
                )
                if len(epochs) == 1:
                    lines[0].set_marker("o")
                if len(values) > 1:
                    on.fill_between(
                        epochs,
                        *(scale * end for end in (values.min(0), values.max(0))),
                        color=look["color"],
                        alpha=0.15,
                        lw=0,
                    )
                handles += lines if metric == "loss" else []
        axes[0, 0].set_ylabel("loss")
        for metric, each in zip(chosen, axes[1:, 0]):
            _percent(each, _CHOSEN_BY[metric])
        _epochs(axes[-1, 0], max(len(run.metrics) for runs in trainings.values() for run in runs))
        _legend(figure, handles, [name for name, metrics in known.items() if metrics["loss"] is not None])
        return figure

    ends = [f"{name} {each['loss'][:, -1].mean():.2f}" for name, each in known.items() if each["loss"] is not None]
    held_out = any(each["validation_loss"] is not None for each in known.values())
    also = "; dotted: loss of held-out recordings" if held_out else ""
    return Drawing(
        "training",
        "training",
        "Loss",
        f"Loss of every epoch, mean over runs; bands: from the least to the greatest of them{also}.",
        f"Curves of the training loss over epochs. Loss of the last epoch: {', '.join(ends) or 'not kept'}.",
        draw,
    )


def blur_shares(runs: Sequence[RunSummary]) -> tuple[list[str], np.ndarray, bool] | None:
    """Names of blur levels, least blur first, their shares (levels, epochs) of training samples, and whether gains were joined.

    None where a training saw one level only.
    """
    census = [[each["blur"] for each in run.metrics if "blur" in each] for run in runs]
    epochs = min(map(len, census), default=0)
    names = {name for each in census for epoch in each[:epochs] for name in epoch}
    if len(names) < 2:
        return None
    joined = len(names) > LEVELS
    shown = {name: name.split(" gain ")[0] if joined else name for name in names}
    order = sorted(set(shown.values()), key=_blur)
    shares = np.zeros((len(order), epochs))
    for each in census:
        for epoch in range(epochs):
            total = sum(each[epoch].values()) * len(census)
            for name, count in each[epoch].items():
                shares[order.index(shown[name]), epoch] += count / total
    return order, shares, joined


def _blur(level: str) -> tuple[float, float]:
    """What sorts levels such as "k51 gain 0.5" by how much they blur."""
    size, _, gain = level.removeprefix("k").partition(" gain ")
    return float(size), -float(gain or 0)


def _levels(name: str, levels: list[str], shares: np.ndarray, joined: bool) -> Drawing:
    def draw() -> Figure:
        figure, ((axes,),) = axes_of(1, 1, 2.7)
        epochs = np.arange(1, shares.shape[1] + 1)
        colours = matplotlib.colormaps["viridis"](np.linspace(0.95, 0.05, len(levels)))
        if len(epochs) == 1:
            under = 100 * (shares.cumsum(0) - shares)
            bands = [
                axes.bar(epochs, 100 * share, 0.5, start, color=colour)
                for share, start, colour in zip(shares, under, colours)
            ]
        else:
            bands = axes.stackplot(epochs, 100 * shares, colors=colours, lw=0)
            axes.set_xlim(1, len(epochs))
        axes.set(ylim=(0, 100), ylabel="training samples / %")
        _epochs(axes, len(epochs))
        figure.legend(
            list(bands)[::-1],
            levels[::-1],
            loc="outside right upper",
            handlelength=1,
            title="blur level",
            alignment="left",
        )
        return figure

    most = int(shares[:, -1].argmax())
    what = "kernel size in pixels (gains joined)" if joined else "kernel size in pixels and gain at the fixation"
    return Drawing(
        f"levels-{slug(name)}",
        "blur",
        f"Blur levels, {name}",
        f"Share of training samples that will next be seen at each blur level: {what}; mean over runs.",
        f"Stacked areas over epochs of {len(levels)} blur levels. After the last epoch {100 * shares[most, -1]:.0f} percent of training "
        f"samples are at {levels[most]}.",
        draw,
    )


def _repetitions(data: str, lines: Sequence[ReportRow]) -> Drawing:
    known = {line.label: [run.repetitions for run in line.runs if run.repetitions] for line in lines}
    curves = {label: _mean_curve(found) for label, found in known.items() if found}

    def draw() -> Figure:
        figure, axes = axes_of(1, 2, 2.7)
        for each, metric, name in zip(axes.flat, ("top1", "top5"), ("Top-1 / %", "Top-5 / %")):
            handles = []
            for number, curve in enumerate(curves.values()):
                look = {"color": PALETTE[number % len(PALETTE)], "ls": DASHES[number // len(PALETTE) % len(DASHES)]}
                value, spread = 100 * curve[metric], 100 * curve[f"{metric}_std"]
                handles += each.plot(curve["averaged"], value, marker="o", ms=3, **look)
                each.fill_between(
                    curve["averaged"], value - spread, value + spread, color=look["color"], alpha=0.15, lw=0
                )
            each.set_xscale("log", base=2)
            averaged = sorted({int(n) for curve in curves.values() for n in curve["averaged"]})
            ticks = [n for n in averaged if n == averaged[-1] or 1.5 * n < averaged[-1]]  # 64 would touch 80
            each.set_xticks(ticks, ticks)
            each.minorticks_off()
            _percent(each, name)
            each.set_xlabel("test repetitions averaged")
        _legend(figure, handles, curves)
        return figure

    told = [
        f"{label} from {100 * curve['top1'][0]:.1f} to {100 * curve['top1'][-1]:.1f} percent"
        for label, curve in curves.items()
    ]
    draws = max(int(curve["resamples"]) for curve in curves.values())
    runs = max(int(curve["runs"]) for curve in curves.values())
    return Drawing(
        f"repetitions-{slug(data)}",
        "repetitions",
        f"Test repetitions, {data}",
        f"Accuracy by the number of test repetitions averaged, mean of {draws} random subset(s) and of {runs} run(s)"
        f"{'; bands: a standard deviation between subsets' if draws > 1 else ''}.",
        f"Curves of accuracy. Top-1 from the fewest repetitions to the most: {'; '.join(told)}.",
        draw,
    )


def _mean_curve(curves: Sequence[list[dict]]) -> dict[str, Any]:
    """Means over runs, of the repetitions that all of them have."""
    common = sorted(set.intersection(*({point["averaged"] for point in curve} for curve in curves)))
    at = [{point["averaged"]: point for point in curve} for curve in curves]
    found = {
        name: np.array([np.mean([each[n][name] for each in at]) for n in common])
        for name in ("top1", "top1_std", "top5", "top5_std")
    }
    return {
        **found,
        "averaged": np.array(common),
        "resamples": max(point["resamples"] for point in curves[0]),
        "runs": len(curves),
    }
