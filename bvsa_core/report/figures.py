"""Figures of results, in one style: for the page as SVG, for papers and slides as PNG and PDF.

The palette is Okabe and Ito's, which people with any colour vision tell apart; where lines are many, dashes help.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bvsa_core.files import write_atomically
from bvsa_core.report.content import Blurred, Line, Report, Retrieval, Run
from bvsa_core.retrieval.bootstrap import crossed_bootstrap

INK, QUIET, RULE = "#1b1b1f", "#5f5f6a", "#dadae0"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f8a", "#8a6d3b")
DASHES = ("-", "--", ":", "-.")
WIDTH = 5.0  # inches: one column of a page, and about a telephone's
BARS = 32  # of one axes; more of them get axes of their own
LEVELS = 12  # bands of one figure
DPI = 200
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 8.5, "axes.titlesize": 8.5, "axes.labelsize": 8.5, "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET,
    "xtick.color": QUIET, "ytick.color": QUIET, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": RULE,
    "grid.linewidth": 0.6, "axes.titlelocation": "left", "lines.linewidth": 1.5, "legend.frameon": False,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "svg.fonttype": "none", "pdf.fonttype": 42, "savefig.dpi": DPI,
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


@contextmanager
def style() -> Iterator[None]:
    with matplotlib.rc_context(STYLE):
        yield


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
    found += [_pictures(each) for each in report.blurred]
    for data, lines in report.data.items():
        if shown := [each for each in report.retrievals if each.data == data]:
            found.append(_similarity(data, list({each.label: each for each in reversed(shown)}.values())[::-1]))
        if any(run.repetitions for line in lines for run in line.runs):
            found.append(_repetitions(data, lines))
    return found


def save(report: Report, folder: Path) -> list[Path]:
    """Write every figure as PNG and as PDF; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for drawing in drawings(report):
        with style():
            figure = drawing.draw()
            for kind in ("png", "pdf"):
                file = io.BytesIO()
                about = {"Title": drawing.title, **({"Subject": drawing.caption} if kind == "pdf" else {"Description": drawing.caption})}
                figure.savefig(file, format=kind, metadata=about)
                path = folder / f"{drawing.name}.{kind}"
                write_atomically(path, file.getvalue())
                written.append(path)
    return written


def to_svg(drawing: Drawing) -> str:
    """An <svg> for inside HTML, whose colours and font are the page's: --ink, --quiet, --rule, --c0 ... --c7."""
    file = io.StringIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": drawing.name, "savefig.dpi": 110}):
        drawing.draw().savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
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


def _axes(rows: int, columns: int, height: float, **options: object) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _percent(axes: Axes, what: str) -> None:
    axes.set_ylim(bottom=0)
    axes.set_ylabel(what)
    axes.grid(axis="x", visible=False)


def _legend(figure: Figure, handles: Iterable[object], labels: Iterable[str]) -> None:
    labels = list(labels)
    longest = max(map(len, labels))
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(len(labels), 84 // (longest + 7))), handlelength=1.8)


def _by_subject(line: Line) -> dict[str, np.ndarray]:
    """Ranks (seeds, queries) of every subject."""
    found: dict[str, list] = {}
    for run in sorted(line.runs, key=lambda run: (run.subject, run.seed)):
        found.setdefault(run.subject, []).append(run.ranks)
    return {subject: np.array(ranks) for subject, ranks in found.items()}


def bars_of(line: Line, k: int) -> dict[str, tuple[float, float, float]]:
    """Top-k accuracy of every subject in percent, with the ends of its 95 % interval; where there are several, their mean comes first."""
    found = {}
    subjects = _by_subject(line)
    if len(subjects) > 1:
        row = line.entry.row
        value, bounds = (row.top1, row.top1_interval) if k == 1 else (row.top5, row.top5_interval)
        found["mean"] = (100 * value, 100 * bounds[0], 100 * bounds[1])
    for subject, ranks in subjects.items():
        low, high = crossed_bootstrap((ranks <= k)[None], resamples=2000)
        found[subject] = (100 * float((ranks <= k).mean()), 100 * low, 100 * high)
    return found


def _accuracy(data: str, lines: Sequence[Line]) -> Drawing:
    subjects = list(dict.fromkeys(name for line in lines for name in bars_of(line, 1)))
    gallery = {line.entry.row.protocol["gallery"] for line in lines}

    def bars(axes: Axes, shown: Sequence[Line], k: int, colours: Sequence[str]) -> list[object]:
        width, handles = 0.8 / len(shown), []
        for number, (line, colour) in enumerate(zip(shown, colours)):
            found = bars_of(line, k)
            places = [subjects.index(name) + (number - (len(shown) - 1) / 2) * width for name in found]
            values = np.array(list(found.values()))
            reach = np.abs(values[:, 1:] - values[:, :1]).T
            handles.append(
                axes.bar(places, values[:, 0], width * 0.9, color=colour, yerr=reach, error_kw={"ecolor": INK, "elinewidth": 0.8})
            )
        for size in gallery:
            axes.axhline(100 * k / size, color=QUIET, lw=0.8, ls=":")
        axes.set_xticks(range(len(subjects)), subjects, rotation=45 if len(subjects) > 6 else 0)
        _percent(axes, f"Top-{k} / %")
        return handles

    def together() -> Figure:
        figure, axes = _axes(1, 2, 2.7)
        colours = [PALETTE[i % len(PALETTE)] for i in range(len(lines))]
        handles, _ = (bars(each, lines, k, colours) for k, each in zip((1, 5), axes.flat))
        _legend(figure, handles, [line.label for line in lines])
        return figure

    def apart() -> Figure:
        figure, axes = _axes(math.ceil(len(lines) / 2), 2, 1.5 * math.ceil(len(lines) / 2) + 0.2, sharex=True, sharey=True)
        for line, each in zip(lines, axes.flat):
            bars(each, [line], 1, PALETTE)
            each.set_title(line.label)
        for each in axes.flat[len(lines) :]:
            each.set_visible(False)
        return figure

    crowded = len(lines) > len(PALETTE) or len(lines) * len(subjects) > BARS
    best = max(lines, key=lambda line: line.entry.row.top1)
    who = "mean over subjects, then each" if len(subjects) > 1 else subjects[0]
    return Drawing(
        f"accuracy-{slug(data)}",
        "results",
        f"Accuracy, {data}",
        f"{'Top-1' if crowded else 'Top-1 and Top-5'} accuracy in percent, {who}, mean over seeds; whiskers: 95 % bootstrap interval "
        f"over test pictures and seeds{' (of the mean over subjects too)' if len(subjects) > 1 else ''}; dotted: chance.",
        f"Bars of accuracy for {', '.join(line.label for line in lines)}. The highest mean Top-1 accuracy is "
        f"{100 * best.entry.row.top1:.1f} percent, of {best.label}.",
        apart if crowded else together,
    )


def _series(runs: Sequence[Run], name: str) -> np.ndarray | None:
    """(runs, epochs) of one metric; None where not every run has it in as many epochs."""
    found = [[each[name] for each in run.metrics if name in each] for run in runs]
    return np.array(found, dtype=float) if found and found[0] and len({len(each) for each in found}) == 1 else None


_CHOSEN_BY = {"validation_top1": "Top-1 on held-out concepts / %", "test_top1": "Top-1 on the test set / % (oracle)"}


def _training(trainings: dict[str, list[Run]]) -> Drawing:
    metrics = ("loss", "validation_loss", *_CHOSEN_BY)
    known = {name: {metric: _series(runs, metric) for metric in metrics} for name, runs in trainings.items()}
    chosen = [metric for metric in _CHOSEN_BY if any(each[metric] is not None for each in known.values())]

    def draw() -> Figure:
        figure, axes = _axes(1 + len(chosen), 1, 2.6 + 1.6 * len(chosen), sharex=True)
        handles = []
        for number, metrics in enumerate(known.values()):
            look = {"color": PALETTE[number % len(PALETTE)], "ls": DASHES[number // len(PALETTE) % len(DASHES)]}
            for metric, values in metrics.items():
                if values is None:
                    continue
                on, scale = (axes[0, 0], 1) if metric.endswith("loss") else (axes[1 + chosen.index(metric), 0], 100)
                epochs = np.arange(1, values.shape[1] + 1)
                lines = on.plot(epochs, scale * values.mean(0), **(look | ({"ls": ":"} if metric == "validation_loss" else {})))
                if len(epochs) == 1:
                    lines[0].set_marker("o")
                if len(values) > 1:
                    on.fill_between(epochs, *(scale * end for end in (values.min(0), values.max(0))), color=look["color"], alpha=0.15, lw=0)
                handles += lines if metric == "loss" else []
        axes[0, 0].set_ylabel("loss")
        for metric, each in zip(chosen, axes[1:, 0]):
            _percent(each, _CHOSEN_BY[metric])
        axes[-1, 0].set_xlabel("epoch")
        axes[-1, 0].xaxis.get_major_locator().set_params(integer=True)
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


def blur_shares(runs: Sequence[Run]) -> tuple[list[str], np.ndarray, bool] | None:
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
        figure, ((axes,),) = _axes(1, 1, 2.7)
        epochs = np.arange(1, shares.shape[1] + 1)
        colours = matplotlib.colormaps["viridis"](np.linspace(0.95, 0.05, len(levels)))
        if len(epochs) == 1:
            under = 100 * (shares.cumsum(0) - shares)
            bands = [axes.bar(epochs, 100 * share, 0.5, start, color=colour) for share, start, colour in zip(shares, under, colours)]
        else:
            bands = axes.stackplot(epochs, 100 * shares, colors=colours, lw=0)
            axes.set_xlim(1, len(epochs))
        axes.set(ylim=(0, 100), xlabel="epoch", ylabel="training samples / %")
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(list(bands)[::-1], levels[::-1], loc="outside right upper", handlelength=1, title="blur level", alignment="left")
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


def _pictures(blurred: Blurred) -> Drawing:
    def draw() -> Figure:
        rows, columns = blurred.images.shape[:2]
        figure, axes = _axes(rows, columns, WIDTH / columns * rows + 0.5)
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
        f"Pictures of the data set as the picture encoder's input, blurred by fovblur; k: kernel size in pixels; {blurred.falloff}.",
        f"Pictures of {', '.join(blurred.names)}, first as they are, then at {', '.join(blurred.levels)}.",
        draw,
    )


def _similarity(data: str, shown: Sequence[Retrieval]) -> Drawing:
    ends = [np.quantile(each.similarity, [0.005, 0.995]) for each in shown]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)

    def draw() -> Figure:
        columns = min(2, len(shown))
        rows = math.ceil(len(shown) / columns)
        figure, axes = _axes(rows, columns, min(WIDTH / columns, 3.4) * rows + 0.4)
        for each, one in zip(axes.flat, shown):
            drawn = each.imshow(one.similarity, cmap="cividis", vmin=low, vmax=high, aspect="auto", interpolation="nearest")
            each.set(title=one.label, xlabel="picture", ylabel="recording")
            each.grid(False)
        for each in axes.flat[len(shown) :]:
            each.set_visible(False)
        figure.colorbar(drawn, ax=axes, label="similarity", shrink=0.6, aspect=25)
        return figure

    clear = [f"{each.label} {_clearness(each):.1f}" for each in shown]
    return Drawing(
        f"similarity-{slug(data)}",
        "similarity",
        f"Similarity, {data}",
        "Similarity of every test recording to every picture of the gallery, of one run each (the first subject and seed); the right "
        "pictures lie on the diagonal. Colours end at the outer half percent of all values.",
        f"Matrices of similarity. By how much right pictures are the more similar ones, in standard deviations: {', '.join(clear)}",
        draw,
    )


def _clearness(retrieval: Retrieval) -> float:
    scores = retrieval.similarity
    right = np.eye(*scores.shape, dtype=bool)
    return float((scores[right].mean() - scores[~right].mean()) / (scores[~right].std() or 1))


def _repetitions(data: str, lines: Sequence[Line]) -> Drawing:
    curves = {line.label: [run.repetitions for run in line.runs if run.repetitions] for line in lines}
    curves = {label: _mean_curve(found) for label, found in curves.items() if found}

    def draw() -> Figure:
        figure, axes = _axes(1, 2, 2.7)
        for each, metric, name in zip(axes.flat, ("top1", "top5"), ("Top-1 / %", "Top-5 / %")):
            handles = []
            for number, curve in enumerate(curves.values()):
                look = {"color": PALETTE[number % len(PALETTE)], "ls": DASHES[number // len(PALETTE) % len(DASHES)]}
                value, spread = 100 * curve[metric], 100 * curve[f"{metric}_std"]
                handles += each.plot(curve["averaged"], value, marker="o", ms=3, **look)
                each.fill_between(curve["averaged"], value - spread, value + spread, color=look["color"], alpha=0.15, lw=0)
            each.set_xscale("log", base=2)
            ticks = sorted({int(n) for curve in curves.values() for n in curve["averaged"]})
            each.set_xticks(ticks, ticks)
            each.minorticks_off()
            _percent(each, name)
            each.set_xlabel("test repetitions averaged")
        _legend(figure, handles, curves)
        return figure

    told = [f"{label} from {100 * curve['top1'][0]:.1f} to {100 * curve['top1'][-1]:.1f} percent" for label, curve in curves.items()]
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


def _mean_curve(curves: Sequence[list[dict]]) -> dict[str, np.ndarray | int]:
    """Means over runs, of the repetitions that all of them have."""
    common = sorted(set.intersection(*({point["averaged"] for point in curve} for curve in curves)))
    at = [{point["averaged"]: point for point in curve} for curve in curves]
    found = {name: np.array([np.mean([each[n][name] for each in at]) for n in common]) for name in ("top1", "top1_std", "top5", "top5_std")}
    return {**found, "averaged": np.array(common), "resamples": max(point["resamples"] for point in curves[0]), "runs": len(curves)}
