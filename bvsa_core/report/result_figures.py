"""Figures of results: accuracy, training curves, blur levels and test repetitions; and all figures of a report."""

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bvsa_core.report.content import Report, ReportRow, RunSummary
from bvsa_core.report.decoding_figures import confidence_figure, decoding_figures
from bvsa_core.report.image_figures import MAX_MATRICES, blur_figure, retrieval_figure, similarity_figure
from bvsa_core.report.style import INK, PALETTE, QUIET, FigureSpec, curve_style, legend_below, mark_rows, slug, subplots
from bvsa_core.retrieval.result import ranks_by_subject
from bvsa_core.retrieval.statistics import crossed_bootstrap

MAX_BARS = 32  # on one pair of axes; with more, every row gets axes of its own
MAX_LEVELS = 12  # blur levels in one figure; with more, gains are merged
_LEARNT = {"sigma": "sigma / pixels", "gain": "gain"}
_SAME_SCALE = 3.0  # losses whose sizes differ by more get axes of their own
_SELECTION_METRICS = {
    "validation_top1": "Top-1 on held-out concepts / %",
    "test_top1": "Top-1 on the test set / % (oracle)",
}


def report_figures(report: Report) -> list[FigureSpec]:
    """Return every figure for which the report has data."""
    figures = [_accuracy(data, rows) for data, rows in report.rows_by_data.items()]
    trainings = report.trainings()
    if any(run.metrics for runs in trainings.values() for run in runs):
        figures.append(_training(trainings, [report.rows_of_training(runs) for runs in trainings.values()]))
    for name, runs in trainings.items():
        if any(run.result.layers for run in runs):
            figures.append(_layers(name, runs, report.rows_of_training(runs)))
    for name, runs in trainings.items():
        if shares := blur_shares(runs):
            figures.append(_levels(name, *shares))
        if learnt := learnt_curves(runs):
            figures.append(_learnt(name, learnt))
    figures += map(blur_figure, report.blur_examples)
    if report.retrievals and any(image.thumbnail for image in report.images):
        figures.append(retrieval_figure(report, report.retrievals[0]))
    for data, rows in report.rows_by_data.items():
        of_data = [each for each in report.retrievals if each.data == data]
        of_data = [each for each in of_data if each.similarity.shape[1] > 1]  # with images to tell the right one from
        if first_runs := {each.label: each for each in reversed(of_data)}:
            figures.append(similarity_figure(data, [*reversed(first_runs.values())][:MAX_MATRICES]))
        if of_data:
            figures.append(confidence_figure(data, of_data))
        if any(run.repetition_curve for row in rows for run in row.runs):
            figures.append(_repetitions(data, rows))
    for decoding in report.decodings:
        figures += decoding_figures(decoding)
    names = [figure.name for figure in figures]
    return [
        replace(figure, name=f"{figure.name}-{i}") if names.count(figure.name) > 1 else figure
        for i, figure in enumerate(figures, start=1)
    ]


def _percent_axis(axes: Axes, label: str) -> None:
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(axis="x", visible=False)


def _epoch_axis(axes: Axes, epochs: int) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if epochs == 1:
        axes.set_xticks([1])


def subject_bars(row: ReportRow, k: int) -> dict[str, tuple[float, float, float]]:
    """Return Top-k accuracy of every subject in percent with its 95 % interval (value, low, high).

    With several subjects, their mean comes first.
    """
    ranks = ranks_by_subject(run.result for run in row.runs)
    bars = {}
    if len(ranks) > 1:
        mean, (low, high) = (getattr(row.result, f"top{k}{suffix}") for suffix in ("", "_interval"))
        bars["mean"] = (100 * mean, 100 * low, 100 * high)
    for subject, each in ranks.items():
        hits = each <= k
        low, high = crossed_bootstrap(hits[None], resamples=2000)
        bars[subject] = (100 * float(hits.mean()), 100 * low, 100 * high)
    return bars


def _accuracy(data: str, rows: Sequence[ReportRow]) -> FigureSpec:
    bars = {k: [subject_bars(row, k) for row in rows] for k in (1, 5)}
    subjects = list(dict.fromkeys(name for each in bars[1] for name in each))
    galleries = {row.result.protocol.gallery for row in rows}
    numbers = [row.number for row in rows]
    rescored = {row.number for row in rows if row.result.protocol.rescoring}

    def fill(number: int, colour: str) -> dict[str, Any]:
        return {"fill": False, "edgecolor": colour, "hatch": "////"} if number in rescored else {"color": colour}

    def plot(axes: Axes, systems: Sequence[dict], numbers: Sequence[int], k: int) -> list[Any]:
        width, handles = 0.8 / len(systems), []
        for i, (system, number) in enumerate(zip(systems, numbers)):
            x = [subjects.index(name) + (i - (len(systems) - 1) / 2) * width for name in system]
            values = np.array(list(system.values()))
            errors = {"yerr": np.abs(values[:, 1:] - values[:, :1]).T, "error_kw": {"ecolor": INK, "elinewidth": 0.8}}
            before = len(axes.collections)
            handles.append(axes.bar(x, values[:, 0], width * 0.9, **fill(number, PALETTE[i]), **errors))
            mark_rows([*handles[-1], *axes.collections[before:]], [number])
        for size in galleries:
            axes.axhline(min(100, 100 * k / size), color=QUIET, lw=0.8, ls=":")
        axes.set_xticks(range(len(subjects)), subjects, rotation=45 if len(subjects) > 6 else 0)
        _percent_axis(axes, f"Top-{k} / %")
        return handles

    def draw_together() -> Figure:
        figure, axes = subplots(1, 2, 2.7)
        handles, _ = (plot(panel, bars[k], numbers, k) for k, panel in zip(bars, axes.flat))
        legend_below(figure, handles, [row.label for row in rows])
        return figure

    def draw_separately() -> Figure:
        titles = [textwrap.fill(row.label, 38) for row in rows]
        count, title_lines = math.ceil(len(rows) / 2), 1 + max(title.count("\n") for title in titles)
        figure, axes = subplots(count, 2, (1.2 + 0.16 * title_lines) * count + 0.3, sharex=True, sharey=True)
        for system, number, title, panel in zip(bars[1], numbers, titles, axes.flat):
            plot(panel, [system], [number], 1)
            panel.set_title(title, fontsize=7.5)
        for panel in axes.flat[len(rows) :]:
            panel.set_visible(False)
        return figure

    def draw_listed() -> Figure:
        figure, axes = subplots(1, 2, 0.8 + 0.22 * len(rows), sharey=True)
        for (k, systems), panel in zip(bars.items(), axes.flat):
            for i, (system, number) in enumerate(zip(systems, numbers)):
                ((value, low, high),) = system.values()
                before = len(panel.collections)
                errors = {"xerr": [[value - low], [high - value]], "error_kw": {"ecolor": INK, "elinewidth": 0.8}}
                bar = panel.barh(i, value, 0.7, **fill(number, PALETTE[0]), **errors)
                mark_rows([*bar, *panel.collections[before:]], [number])
            for size in galleries:
                panel.axvline(min(100, 100 * k / size), color=QUIET, lw=0.8, ls=":")
            panel.set(xlim=(0, None), xlabel=f"Top-{k} / %")
            panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
            panel.grid(axis="y", visible=False)
        axes[0, 0].set_yticks(range(len(rows)), [textwrap.fill(row.label, 34) for row in rows])
        axes[0, 0].invert_yaxis()
        return figure

    crowded = len(rows) > len(PALETTE) or len(rows) * len(subjects) > MAX_BARS
    several = len(subjects) > 1
    caption = (
        f"{'Top-1' if crowded and several else 'Top-1 and Top-5'} accuracy in percent, "
        f"{'mean over subjects, then each subject' if several else subjects[0]}, mean over seeds. Whiskers: 95 % "
        f"bootstrap interval over test images and seeds{' (for the mean also over subjects)' if several else ''}. "
        f"Dotted: chance.{' Hatched: transductive, not to be compared with the others.' if rescored else ''}"
    )
    best = max(rows, key=lambda row: row.result.top1)
    alt = (
        f"Bars of accuracy for {', '.join(row.label for row in rows)}. The highest mean Top-1 accuracy is "
        f"{100 * best.result.top1:.1f} percent, of {best.label}."
    )
    draw = draw_together if not crowded else draw_separately if several else draw_listed
    return FigureSpec(f"accuracy-{slug(data)}", "results", f"Accuracy, {data}", caption, alt, draw)


def _series(runs: Sequence[RunSummary], metric: str) -> np.ndarray | None:
    """Return one metric (runs, epochs); None unless every run has it for the same number of epochs."""
    values = [[epoch[metric] for epoch in run.metrics if metric in epoch] for run in runs]
    return np.array(values, dtype=float) if values and values[0] and len({*map(len, values)}) == 1 else None


def _training(trainings: dict[str, list[RunSummary]], rows: Sequence[Sequence[int]]) -> FigureSpec:
    metrics = ("loss", "validation_loss", *_SELECTION_METRICS)
    series = {name: {metric: _series(runs, metric) for metric in metrics} for name, runs in trainings.items()}
    selection = [metric for metric in _SELECTION_METRICS if any(each[metric] is not None for each in series.values())]
    final = {name: each["loss"][:, -1].mean() for name, each in series.items() if each["loss"] is not None}
    scales = _by_scale({name: each["loss"] for name, each in series.items()})

    def draw() -> Figure:
        count = len(scales) + len(selection)
        figure, axes = subplots(count, 1, 1.0 + 1.6 * count, sharex=True)
        loss_panels = {name: panel for names, panel in zip(scales, axes[:, 0]) for name in names}
        selection_panels = dict(zip(selection, axes[len(scales) :, 0]))
        handles: list[Any] = []
        for i, ((name, of_training), numbers) in enumerate(zip(series.items(), rows)):
            panels = {"loss": loss_panels[name], "validation_loss": loss_panels[name], **selection_panels}
            for metric, values in of_training.items():
                if values is None:
                    continue
                style = curve_style(i) | ({"ls": ":"} if metric == "validation_loss" else {})
                values = values if metric.endswith("loss") else 100 * values
                epochs = np.arange(1, values.shape[1] + 1)
                marker = "o" if len(epochs) == 1 else None
                curve = panels[metric].plot(epochs, values.mean(0), marker=marker, **style)
                parts: list[Artist] = [*curve]
                if len(values) > 1:
                    ends = values.min(0), values.max(0)
                    parts.append(panels[metric].fill_between(epochs, *ends, color=style["color"], alpha=0.15, lw=0))
                mark_rows(parts, numbers)
                handles += curve if metric == "loss" else []
        for panel in axes[: len(scales), 0]:
            panel.set_ylabel("loss")
        for metric, panel in selection_panels.items():
            _percent_axis(panel, _SELECTION_METRICS[metric])
        _epoch_axis(axes[-1, 0], max(len(run.metrics) for runs in trainings.values() for run in runs))
        legend_below(figure, handles, final)
        return figure

    held_out = any(each["validation_loss"] is not None for each in series.values())
    caption = (
        "Loss of every epoch, mean over runs; bands: from the lowest to the highest run"
        f"{'; losses of another scale have axes of their own' if len(scales) > 1 else ''}"
        f"{'; dotted: loss on held-out recordings' if held_out else ''}."
    )
    ends = ", ".join(f"{name} {loss:.2f}" for name, loss in final.items())
    alt = f"Curves of the training loss over epochs. Loss of the last epoch: {ends or 'not recorded'}."
    return FigureSpec("training", "training", "Loss", caption, alt, draw)


def _layers(name: str, runs: Sequence[RunSummary], rows: Sequence[int]) -> FigureSpec:
    selections = [run.result.layers for run in runs if run.result.layers]
    targets = [target for target in selections[0].top1 if all(target in each.top1 for each in selections)]
    values = 100 * np.array([[each.top1[target] for target in targets] for each in selections])
    chosen = Counter(each.chosen for each in selections)
    labels = [target.removeprefix("layer:") for target in targets]

    def draw() -> Figure:
        figure, ((axes,),) = subplots(1, 1, 2.5)
        x = np.arange(len(targets))
        parts: list[Artist] = [*axes.plot(x, values.mean(0), marker="o", ms=3, **curve_style(0))]
        if len(values) > 1:
            parts.append(axes.fill_between(x, values.min(0), values.max(0), color=PALETTE[0], alpha=0.15, lw=0))
        at = [targets.index(target) for target in chosen]
        parts += axes.plot(at, values.mean(0)[at], "o", ms=8, mfc="none", color=PALETTE[1])
        mark_rows(parts, rows)
        axes.set_xticks(x, labels, rotation=45 if len(labels) > 16 else 0)
        axes.set_xlabel("layer of the image encoder")
        _percent_axis(axes, "Top-1 on held-out concepts / %")
        return figure

    several = len(selections) > 1
    concepts, epochs = ({getattr(each, name) for each in selections} for name in ("concepts", "epochs"))
    numbers = lambda of: " or ".join(map(str, sorted(of)))  # noqa: E731
    caption = (
        f"Top-1 accuracy on {numbers(concepts)} concepts held out of the training data, by the layer that recordings "
        f"are aligned with, after {numbers(epochs)} epoch{'' if epochs == {1} else 's'} on the others"
        f"{', mean over runs' if several else ''}. "
        f"{'Band: from the lowest to the highest run. ' if several else ''}Circles: layers chosen as target; no test "
        "recording was read."
    )
    best = int(values.mean(0).argmax())
    often = ", ".join(f"{target} in {count} of {len(selections)} runs" for target, count in chosen.items())
    alt = (
        f"Curve of accuracy on held-out concepts over {len(targets)} layers. The highest is {values.mean(0)[best]:.1f} "
        f"percent, of {targets[best]}. Chosen: {often if several else selections[0].chosen}."
    )
    return FigureSpec(f"layer-selection-{slug(name)}", "training", f"Choice of the layer, {name}", caption, alt, draw)


def _by_scale(losses: dict[str, np.ndarray | None]) -> list[list[str]]:
    """Group trainings whose losses are of similar size; those without a loss join the first group."""
    known = {name: values for name, values in losses.items() if values is not None}
    sizes = {name: float(np.median(np.abs(values[np.isfinite(values)]))) for name, values in known.items()}
    groups: list[list[str]] = [[name for name in losses if name not in sizes]]
    smallest = 0.0
    for name in sorted(sizes, key=lambda each: sizes[each]):
        if not smallest:
            smallest = sizes[name]
        if sizes[name] > _SAME_SCALE * smallest:
            groups.append([])
            smallest = sizes[name]
        groups[-1].append(name)
    return groups


def blur_shares(runs: Sequence[RunSummary]) -> tuple[list[str], np.ndarray, bool] | None:
    """Return blur levels, least blur first, their shares (levels, epochs) of samples, and whether gains were merged.

    Shares are means over runs. None where a training used a single level.
    """
    counts = [[epoch["blur"] for epoch in run.metrics if "blur" in epoch] for run in runs]
    epochs = min(map(len, counts), default=0)
    names = {name for run in counts for epoch in run[:epochs] for name in epoch}
    if len(names) < 2:
        return None
    merged = len(names) > MAX_LEVELS
    level_of = {name: name.split(" gain ")[0] if merged else name for name in names}
    levels = sorted(set(level_of.values()), key=_blur_strength)
    shares = np.zeros((len(levels), epochs))
    for run in counts:
        for i, epoch in enumerate(run[:epochs]):
            total = sum(epoch.values()) * len(counts)
            for name, count in epoch.items():
                shares[levels.index(level_of[name]), i] += count / total
    return levels, shares, merged


def _blur_strength(level: str) -> tuple[float, float]:
    """Return the sort key of a level such as "k51 gain 0.5": a larger kernel blurs more, a larger gain less."""
    size, _, gain = level.removeprefix("k").partition(" gain ")
    return float(size), -float(gain or 0)


def _levels(name: str, levels: list[str], shares: np.ndarray, merged: bool) -> FigureSpec:
    def draw() -> Figure:
        figure, ((axes,),) = subplots(1, 1, 2.7)
        epochs = shares.shape[1]
        colours = matplotlib.colormaps["viridis"](np.linspace(0.95, 0.05, len(levels)))
        x = np.arange(1, epochs + 1) if epochs > 1 else np.array([0.75, 1.25])  # a bar for a single epoch
        bands = axes.stackplot(x, 100 * np.broadcast_to(shares, (len(levels), len(x))), colors=colours, lw=0)
        axes.margins(x=0 if epochs > 1 else 0.05)
        axes.set(ylim=(0, 100), ylabel="training samples / %")
        _epoch_axis(axes, epochs)
        place: Any = {"loc": "outside right upper", "title": "blur level", "alignment": "left"}
        figure.legend(bands[::-1], levels[::-1], handlelength=1, **place)
        return figure

    level = "kernel size in pixels (gains merged)" if merged else "kernel size in pixels and gain at the fixation"
    caption = f"Share of training samples at each blur level after every epoch: {level}; mean over runs."
    most = int(shares[:, -1].argmax())
    alt = (
        f"Stacked areas over epochs of {len(levels)} blur levels. After the last epoch {100 * shares[most, -1]:.0f} "
        f"percent of training samples are at {levels[most]}."
    )
    return FigureSpec(f"levels-{slug(name)}", "blur", f"Blur levels, {name}", caption, alt, draw)


def learnt_curves(runs: Sequence[RunSummary]) -> dict[str, np.ndarray]:
    """Return sigma and gain (2, epochs) of every subject or similarity that a blur was learnt for, means over runs.

    The mean of a run is left out if it is of a single subject.
    """
    curves: dict[str, list[np.ndarray]] = {}
    for run in runs:
        epochs = [epoch["learnt_blur"] for epoch in run.metrics if "learnt_blur" in epoch]
        names = list(epochs[0]) if epochs else []
        for name in names if len(names) > 2 else names[:1]:
            curves.setdefault(name, []).append(np.array([[each[name][of] for each in epochs] for of in _LEARNT]))
    shortest = {name: min(each.shape[1] for each in of_runs) for name, of_runs in curves.items()}
    return {name: np.mean([each[:, : shortest[name]] for each in of_runs], axis=0) for name, of_runs in curves.items()}


def _learnt(name: str, curves: dict[str, np.ndarray]) -> FigureSpec:
    def draw() -> Figure:
        figure, axes = subplots(2, 1, 3.2, sharex=True)
        for row, (panel, label) in enumerate(zip(axes[:, 0], _LEARNT.values())):
            handles = []
            for i, values in enumerate(curves.values()):
                epochs = np.arange(1, values.shape[1] + 1)
                marker = "o" if len(epochs) == 1 else None
                handles += panel.plot(epochs, values[row], marker=marker, **curve_style(i))
            panel.set_ylabel(label)
            panel.set_ylim(bottom=0)
        axes[1, 0].set_ylim(0, 1)
        _epoch_axis(axes[1, 0], max(values.shape[1] for values in curves.values()))
        legend_below(figure, handles, curves)
        return figure

    caption = (
        "Sigma of the blur and gain at the fixation after every epoch, learnt by the gradient of the loss; means over "
        "runs. Test images have the mean over subjects or training samples."
    )
    ends = "; ".join(f"{each} sigma {v[0, -1]:.1f} pixels, gain {v[1, -1]:.2f}" for each, v in curves.items())
    alt = f"Curves of the learnt blur over epochs. After the last one: {ends}."
    return FigureSpec(f"learnt-blur-{slug(name)}", "blur", f"Learnt blur, {name}", caption, alt, draw)


def _repetitions(data: str, rows: Sequence[ReportRow]) -> FigureSpec:
    known = {row.label: [run.repetition_curve for run in row.runs if run.repetition_curve] for row in rows}
    curves = {label: _mean_curve(of_runs) for label, of_runs in known.items() if of_runs}
    numbers = [row.number for row in rows if known[row.label]]
    draws = max(int(curve["resamples"]) for curve in curves.values())
    runs = max(int(curve["runs"]) for curve in curves.values())

    def draw() -> Figure:
        figure, axes = subplots(1, 2, 2.7)
        averaged = sorted({int(n) for curve in curves.values() for n in curve["averaged"]})
        ticks = [n for n in averaged if n == averaged[-1] or 1.5 * n < averaged[-1]]  # 64 would touch 80
        for panel, metric, label in zip(axes.flat, ("top1", "top5"), ("Top-1 / %", "Top-5 / %")):
            handles = []
            for i, (curve, number) in enumerate(zip(curves.values(), numbers)):
                x, y, spread = curve["averaged"], 100 * curve[metric], 100 * curve[f"{metric}_std"]
                handles += panel.plot(x, y, marker="o", ms=3, **curve_style(i))
                band = panel.fill_between(x, y - spread, y + spread, color=handles[-1].get_color(), alpha=0.15, lw=0)
                mark_rows([handles[-1], band], [number])
            panel.set_xscale("log", base=2)
            panel.set_xticks(ticks, ticks)
            panel.minorticks_off()
            _percent_axis(panel, label)
            panel.set_xlabel("test repetitions averaged")
        legend_below(figure, handles, curves)
        return figure

    caption = (
        f"Accuracy by the number of test repetitions averaged, mean over {draws} random subset(s) and {runs} run(s)"
        f"{'; bands: one standard deviation between subsets' if draws > 1 else ''}."
    )
    changes = "; ".join(
        f"{label} from {100 * curve['top1'][0]:.1f} to {100 * curve['top1'][-1]:.1f} percent"
        for label, curve in curves.items()
    )
    alt = f"Curves of accuracy. Top-1 from the fewest repetitions to the most: {changes}."
    return FigureSpec(f"repetitions-{slug(data)}", "repetitions", f"Test repetitions, {data}", caption, alt, draw)


def _mean_curve(curves: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Average the curves of several runs at the numbers of repetitions that all of them have."""
    points = [{point["averaged"]: point for point in curve} for curve in curves]
    averaged = sorted(set.intersection(*map(set, points)))
    metrics = ("top1", "top1_std", "top5", "top5_std")
    means = {name: np.array([np.mean([run[n][name] for run in points]) for n in averaged]) for name in metrics}
    resamples = max(point["resamples"] for point in curves[0])
    return {**means, "averaged": np.array(averaged), "resamples": resamples, "runs": len(curves)}
