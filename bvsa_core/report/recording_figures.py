"""Figures of the quality of recordings: evoked responses, reliability, noise covariance and number of trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bvsa_core.data.channel_positions import located_channels
from bvsa_core.data.quality.reliability import Quality, peaks
from bvsa_core.errors import import_mne
from bvsa_core.report.style import INK, PALETTE, QUIET, WIDTH, FigureSpec, legend_below, subplots

SECTION = "Recordings"
_TIME = "time from image onset (ms)"
_MAX_CHANNEL_LABELS = 70  # along one axis


@dataclass(frozen=True)
class RecordingQuality:
    """Quality of one subject's test recordings, and the number of trials."""

    quality: Quality
    channels: Sequence[str]
    times: np.ndarray  # (time,) seconds
    units: str
    modality: str
    trials: Mapping[str, Mapping[int, int]]  # split: session (0: unknown): trials
    whitened_from: np.ndarray | None = None  # (channels, channels) V², before whitening


def recording_figures(subjects: Mapping[str, RecordingQuality]) -> tuple[list[FigureSpec], list[str]]:
    """Return all figures, and messages about what is missing from them and why."""
    messages: list[str] = []
    figures: list[FigureSpec] = []
    for subject, recording in subjects.items():
        info, reason = located_channels(recording.channels, recording.modality)
        messages += [f"{subject}: {reason}"] if reason else []
        figures.append(_evoked(subject, recording, info))
        if recording.quality.reliability is not None:
            figures.append(_reliability(subject, recording, recording.quality.reliability))
        else:
            messages.append(f"{subject}: one repetition, so no reliability and no noise ceiling")
        figures.append(_covariance(subject, recording))
    if ceilings := {name: each.quality.ceiling for name, each in subjects.items() if each.quality.ceiling is not None}:
        figures.append(_ceilings(ceilings))
    figures += [_trials(subjects)] if subjects else []
    return figures, list(dict.fromkeys(messages))


def _evoked(subject: str, recording: RecordingQuality, info: Any) -> FigureSpec:
    evoked, milliseconds, quality = recording.quality.evoked, 1000 * recording.times, recording.quality
    min_distance = max(1, round(0.05 / max(1e-6, float(np.median(np.diff(recording.times))))))  # 50 ms
    samples = peaks(evoked, 3, min_distance)

    def draw() -> Figure:
        figure = Figure((WIDTH, 3.9 if info is not None else 2.6), layout="constrained")
        if info is None:
            axes = figure.subplots()
        else:
            panels = figure.subplot_mosaic([[*range(len(samples))], ["lines"] * len(samples)], height_ratios=(1, 1.5))
            axes = panels["lines"]
            _maps(figure, [panels[i] for i in range(len(samples))], recording, info, samples)
        axes.plot(milliseconds, evoked.T, color=QUIET, linewidth=0.5, alpha=0.6)
        axes.plot(milliseconds, evoked.std(axis=0), color=PALETTE[1], label="standard deviation over channels")
        for sample in samples:
            axes.axvline(milliseconds[sample], color=INK, linewidth=0.6, linestyle=":")
        axes.set(xlabel=_TIME, ylabel=f"amplitude ({recording.units or 'unknown units'})")
        axes.set_xlim(milliseconds[0], milliseconds[-1])
        legend_below(figure, *axes.get_legend_handles_labels())
        return figure

    caption = (
        f"{subject}: mean over {quality.conditions} test images and {quality.repetitions} repetitions of each; one "
        f"grey line per channel ({len(recording.channels)}). Dotted: the largest standard deviations over channels"
        f"{', mapped above' if info is not None else ''}."
    )
    return FigureSpec(f"{subject}-evoked", SECTION, f"Evoked response of {subject}", caption, caption, draw)


def _maps(figure: Figure, axes: Sequence[Axes], recording: RecordingQuality, info: Any, samples: Sequence[int]) -> None:
    """Draw a topographic map of the evoked response at each of `samples`."""
    mne = import_mne("topographic maps")
    channels = [list(recording.channels).index(name) for name in info.ch_names]
    limit = float(np.abs(recording.quality.evoked[:, samples]).max()) or 1.0
    options = {"show": False, "vlim": (-limit, limit), "cmap": "RdBu_r", "contours": 4, "extrapolate": "local"}
    for panel, sample in zip(axes, samples):
        image, _ = mne.viz.plot_topomap(recording.quality.evoked[channels, sample], info, axes=panel, **options)
        panel.set_title(f"{1000 * recording.times[sample]:.0f} ms", loc="center")
    label = f"amplitude ({recording.units or 'unknown units'})"
    figure.colorbar(image, ax=list(axes), shrink=0.8, label=label)


def _label_channels(axis: Any, names: Sequence[str]) -> None:
    """Name the channels along a matplotlib axis, if they are few enough to read."""
    if len(names) <= _MAX_CHANNEL_LABELS:
        rotation = 90 if axis.axis_name == "x" else 0
        axis.set_ticks(range(len(names)), names, fontsize=4.5 if len(names) > 30 else 7, rotation=rotation)
    axis.set_label_text("channel")


def _reliability(subject: str, recording: RecordingQuality, reliability: np.ndarray) -> FigureSpec:
    milliseconds, quality = 1000 * recording.times, recording.quality

    def draw() -> Figure:
        figure, ((top,), (bottom,)) = subplots(2, 1, 5.2, height_ratios=(1, 2.6), sharex=True)
        mean = reliability.mean(axis=0)
        top.plot(milliseconds, mean, color=PALETTE[0], label="mean over channels")
        top.plot(milliseconds, reliability.max(axis=0), color=PALETTE[1], linestyle="--", label="best channel")
        lowest = min(0.0, float(mean.min()))
        top.set(
            ylabel="reliability", ylim=(1.05 * lowest, 1.05), yticks=(*([-0.5] if lowest < -0.5 else []), 0, 0.5, 1)
        )
        top.axhline(0, color=QUIET, linewidth=0.6)
        legend_below(figure, *top.get_legend_handles_labels())
        half = (milliseconds[-1] - milliseconds[0]) / max(1, len(milliseconds) - 1) / 2
        edges = (milliseconds[0] - half, milliseconds[-1] + half, len(reliability) - 0.5, -0.5)
        colours = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r", "interpolation": "nearest"}
        image = bottom.imshow(reliability, aspect="auto", extent=edges, **colours)
        bottom.grid(visible=False)
        _label_channels(bottom.yaxis, recording.channels)
        bottom.set_xlabel(_TIME)
        figure.colorbar(image, ax=bottom, label="reliability")
        return figure

    caption = (
        f"{subject}: split-half reliability of the means over {quality.repetitions} repetitions of "
        f"{quality.conditions} test images: the correlation over images between two halves of the repetitions, mean of "
        f"{quality.splits} split(s), with the Spearman-Brown correction. Below 0 the halves disagree, as noise does by "
        "chance."
    )
    return FigureSpec(f"{subject}-reliability", SECTION, f"Reliability of {subject}", caption, caption, draw)


def _covariance(subject: str, recording: RecordingQuality) -> FigureSpec:
    covariance = recording.quality.covariance
    panels = [("stored", covariance, f"covariance (({recording.units})²)" if recording.units else "covariance")]
    if recording.whitened_from is not None:
        panels.insert(0, ("before whitening", 1e12 * recording.whitened_from, "covariance (µV²)"))

    def draw() -> Figure:
        figure = Figure((WIDTH, 4.3 * len(panels)), layout="compressed")
        for axes, (title, matrix, label) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels):
            limit = float(np.abs(matrix).max()) or 1.0
            image = axes.imshow(matrix, vmin=-limit, vmax=limit, cmap="RdBu_r", interpolation="nearest")
            axes.set_title(title)
            axes.grid(visible=False)
            _label_channels(axes.xaxis, recording.channels)
            _label_channels(axes.yaxis, recording.channels)
            figure.colorbar(image, ax=axes, label=label)
        return figure

    centre = "the mean of their image" if recording.quality.repetitions > 1 else "the mean over images"
    variances = np.diag(covariance)
    before = (
        "The covariance before whitening is not stored."
        if recording.whitened_from is None
        else "Before whitening: the covariance that whitening was fitted on, mean over sessions."
    )
    caption = (
        f"{subject}: covariance of channels in single test trials around {centre}, over all times, as stored (units: "
        f"{recording.units or 'unknown'}). Variances {variances.min():.2g} to {variances.max():.2g}; largest "
        f"covariance {np.abs(covariance - np.diag(variances)).max():.2g}. Well-whitened recordings are close to a "
        f"multiple of the identity. {before}"
    )
    return FigureSpec(f"{subject}-covariance", SECTION, f"Noise covariance of {subject}", caption, caption, draw)


def _ceilings(ceilings: Mapping[str, np.ndarray]) -> FigureSpec:
    def draw() -> Figure:
        figure, ((axes,),) = subplots(1, 1, 2.8)
        x = np.arange(len(ceilings))
        means, best = ([float(over(ceiling)) for ceiling in ceilings.values()] for over in (np.mean, np.max))
        axes.bar(x, means, color=PALETTE[0], width=0.6, label="mean over channels and times")
        axes.plot(x, best, "o", color=PALETTE[1], markersize=4, label="best channel and time")
        axes.set_xticks(x, list(ceilings), rotation=90 if len(ceilings) > 10 else 0)
        axes.set(ylim=(0, 1.05), yticks=np.linspace(0, 1, 6), ylabel="noise ceiling (correlation)")
        axes.grid(axis="x", visible=False)
        legend_below(figure, *axes.get_legend_handles_labels())
        return figure

    caption = (
        "Noise ceiling of every subject: the expected correlation over test images between the true responses and the "
        "means over repetitions, which is the square root of their reliability (0 where that is negative)."
    )
    return FigureSpec("noise-ceiling", SECTION, "Noise ceiling", caption, caption, draw)


def _trials(subjects: Mapping[str, RecordingQuality]) -> FigureSpec:
    trials = [recording.trials for recording in subjects.values()]
    columns = {(split, session) for splits in trials for split, sessions in splits.items() for session in sessions}
    ordered = sorted(columns, key=lambda column: (column[0] != "train", column[1]))
    counts = np.array([[splits.get(split, {}).get(session, 0) for split, session in ordered] for splits in trials])

    def draw() -> Figure:
        figure = Figure((max(WIDTH, 0.55 * len(ordered) + 1), 1.3 + 0.25 * len(subjects)), layout="constrained")
        axes = figure.subplots()
        axes.imshow(counts / max(1, counts.max()), aspect="auto", cmap="Blues", vmin=0, vmax=1.6)
        axes.grid(visible=False)
        for row, column in np.ndindex(*counts.shape):
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=6.5, color=INK)
        axes.set_yticks(range(len(subjects)), subjects)
        names = [f"{split}\n{f'session {session}' if session else 'all'}" for split, session in ordered]
        axes.set_xticks(range(len(ordered)), names, fontsize=6.5, rotation=90 if len(ordered) > 10 else 0)
        return figure

    caption = "Trials of each subject by split and session; 'all' where the recordings do not name sessions."
    return FigureSpec("trials", SECTION, "Trials", caption, caption, draw)
