"""Figures of what recordings are worth: evoked responses, reliability, noise and repetitions, subject by subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bvsa_core.data.optional import import_mne
from bvsa_core.data.quality.reliability import Quality, peaks
from bvsa_core.errors import UserError
from bvsa_core.report.style import INK, PALETTE, QUIET, WIDTH, Drawing

PART = "Recordings"
_MOST_LABELS = 70  # of channels along an axis
_PLACED = 4  # channels that a map needs


@dataclass(frozen=True)
class RecordingQuality:
    """The test recordings of one subject, and how often it was shown what."""

    quality: Quality
    channels: Sequence[str]
    times: np.ndarray  # (time,) seconds
    units: str
    modality: str
    trials: Mapping[str, Mapping[int, int]]  # split, then session (0 where none is told): trials
    whitened_from: np.ndarray | None = None  # (channels, channels) V², before whitening


def drawings(measured: Mapping[str, RecordingQuality]) -> tuple[list[Drawing], list[str]]:
    """The figures, and what they lack and why."""
    told: list[str] = []
    found: list[Drawing] = []
    for subject, about in measured.items():
        places, lacking = _places(about)
        told += [f"{subject}: {lacking}"] if lacking else []
        found.append(_evoked(subject, about, places))
        if about.quality.reliability is not None:
            found.append(_reliability(subject, about, about.quality.reliability))
        else:
            told.append(f"{subject}: one repetition, so no reliability and no noise ceiling")
        found.append(_covariance(subject, about))
    ceilings = {subject: about.quality.ceiling for subject, about in measured.items()}
    if known := {subject: ceiling for subject, ceiling in ceilings.items() if ceiling is not None}:
        found.append(_ceilings(known))
    if measured:
        found.append(_trials(measured))
    return found, list(dict.fromkeys(told))


def _places(about: RecordingQuality) -> tuple[Any, str]:
    """MNE's description of the channels that have a place on the head, or why there is no map."""
    if about.modality != "EEG":
        return None, "no maps of the head, as recordings do not tell where MEG sensors are"
    try:
        mne = import_mne("maps of the head")
    except UserError as error:
        return None, str(error)
    known = set(mne.channels.make_standard_montage("easycap-M1").ch_names)
    if len(named := [name for name in about.channels if name in known]) < _PLACED:
        return None, "no maps of the head, as the channels' names are not those of the 10-10 system"
    info = mne.create_info(named, 1.0, "eeg", verbose="ERROR")
    info.set_montage("easycap-M1", verbose="ERROR")
    return info, ""


def _label(about: RecordingQuality) -> str:
    return f"amplitude ({about.units})" if about.units else "amplitude (units not told)"


def _evoked(subject: str, about: RecordingQuality, info: Any) -> Drawing:
    evoked, milliseconds = about.quality.evoked, 1000 * about.times
    apart = max(1, round(0.05 / max(1e-6, float(np.median(np.diff(about.times))))))  # 50 ms
    at = peaks(evoked, 3, apart)

    def draw() -> Figure:
        figure = Figure((WIDTH, 3.9 if info is not None else 2.6), layout="constrained")
        rows = (
            figure.subplot_mosaic([list(range(len(at))), ["lines"] * len(at)], height_ratios=(1, 1.5))
            if info is not None
            else None
        )
        axes = rows["lines"] if rows else figure.subplots()
        axes.plot(milliseconds, evoked.T, color=QUIET, linewidth=0.5, alpha=0.6)
        axes.plot(milliseconds, evoked.std(axis=0), color=PALETTE[1], label="standard deviation over channels")
        for sample in at:
            axes.axvline(milliseconds[sample], color=INK, linewidth=0.6, linestyle=":")
        axes.set_xlabel("time after the image appears (ms)")
        axes.set_ylabel(_label(about))
        axes.set_xlim(milliseconds[0], milliseconds[-1])
        axes.legend(loc="upper right")
        if rows:
            _maps(figure, [rows[i] for i in range(len(at))], about, info, at)
        return figure

    caption = (
        f"{subject}: mean over {about.quality.conditions} test images and {about.quality.repetitions} repetitions of each; one grey line"
        f" a channel ({len(about.channels)}). Dotted: the largest spreads over channels"
        + (", mapped above." if info is not None else ".")
    )
    return Drawing(f"{subject}-evoked", PART, f"Evoked response of {subject}", caption, caption, draw)


def _maps(figure: Figure, axes: Sequence[Axes], about: RecordingQuality, info: Any, at: Sequence[int]) -> None:
    mne = import_mne("maps of the head")
    rows = [list(about.channels).index(name) for name in info.ch_names]
    limit = float(np.abs(about.quality.evoked[:, at]).max()) or 1.0
    for place, sample in zip(axes, at):
        values = about.quality.evoked[rows, sample]
        image, _ = mne.viz.plot_topomap(
            values, info, axes=place, show=False, vlim=(-limit, limit), cmap="RdBu_r", contours=4, extrapolate="local"
        )
        place.set_title(f"{1000 * about.times[sample]:.0f} ms", loc="center")
    figure.colorbar(image, ax=list(axes), shrink=0.8, label=about.units)


def _channel_axis(axes: Axes, names: Sequence[str], which: str) -> None:
    if len(names) <= _MOST_LABELS:
        getattr(axes, f"set_{which}ticks")(range(len(names)), names, fontsize=4.5 if len(names) > 30 else 7)
        if which == "x":
            axes.tick_params(axis="x", rotation=90)
    getattr(axes, f"set_{which}label")("channel")


def _reliability(subject: str, about: RecordingQuality, found: np.ndarray) -> Drawing:
    milliseconds = 1000 * about.times

    def draw() -> Figure:
        figure = Figure((WIDTH, 5.2), layout="constrained")
        top, bottom = figure.subplots(2, height_ratios=(1, 2.6), sharex=True)
        top.plot(milliseconds, found.mean(axis=0), color=PALETTE[0], label="mean over channels")
        top.plot(milliseconds, found.max(axis=0), color=PALETTE[1], linestyle="--", label="best channel")
        top.set_ylabel("reliability")
        top.set_ylim(min(0.0, float(found.mean(axis=0).min())), 1)
        top.legend(loc="upper right", ncols=2)
        step = (milliseconds[-1] - milliseconds[0]) / max(1, len(milliseconds) - 1)
        edges = (milliseconds[0] - step / 2, milliseconds[-1] + step / 2, len(found) - 0.5, -0.5)
        image = bottom.imshow(
            found, aspect="auto", extent=edges, vmin=0, vmax=1, cmap="viridis", interpolation="nearest"
        )
        bottom.grid(visible=False)
        _channel_axis(bottom, about.channels, "y")
        bottom.set_xlabel("time after the image appears (ms)")
        figure.colorbar(image, ax=bottom, label="reliability")
        return figure

    quality = about.quality
    caption = (
        f"{subject}: split-half reliability of the means over {quality.repetitions} repetitions of {quality.conditions} test images:"
        f" correlation over images between two halves of the repetitions, mean of {quality.splits} way(s) to halve them, corrected by"
        " Spearman and Brown. Below 0 is drawn as 0."
    )
    return Drawing(f"{subject}-reliability", PART, f"Reliability of {subject}", caption, caption, draw)


def _covariance(subject: str, about: RecordingQuality) -> Drawing:
    found = about.quality.covariance
    panels = [("as kept", found, f"covariance (({about.units})²)" if about.units else "covariance")]
    if about.whitened_from is not None:
        panels.insert(0, ("before whitening", 1e12 * about.whitened_from, "covariance (µV²)"))

    def draw() -> Figure:
        figure = Figure((WIDTH, 4.3 * len(panels)), layout="compressed")
        for axes, (title, matrix, label) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels):
            limit = float(np.abs(matrix).max()) or 1.0
            image = axes.imshow(matrix, vmin=-limit, vmax=limit, cmap="RdBu_r", interpolation="nearest")
            axes.set_title(title)
            axes.grid(visible=False)
            _channel_axis(axes, about.channels, "x")
            _channel_axis(axes, about.channels, "y")
            figure.colorbar(image, ax=axes, label=label)
        return figure

    around = "the mean of their image" if about.quality.repetitions > 1 else "the mean over images"
    diagonal = np.diag(found)
    apart = found - np.diag(diagonal)
    caption = (
        f"{subject}: covariance of channels in single test trials around {around}, over all times, as the recordings are kept"
        f" (units: {about.units or 'not told'}). Variances {diagonal.min():.2g} to {diagonal.max():.2g}; largest covariance"
        f" {np.abs(apart).max():.2g}. What is whitened well is near a multiple of the identity. "
        + (
            "That of before is not kept."
            if about.whitened_from is None
            else "Before: what whitening was fitted on, mean over sessions."
        )
    )
    return Drawing(f"{subject}-covariance", PART, f"Noise covariance of {subject}", caption, caption, draw)


def _ceilings(known: Mapping[str, np.ndarray]) -> Drawing:
    def draw() -> Figure:
        figure = Figure((WIDTH, 2.8), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(known))
        means = [float(ceiling.mean()) for ceiling in known.values()]
        best = [float(ceiling.max()) for ceiling in known.values()]
        axes.bar(places, means, color=PALETTE[0], width=0.6, label="mean over channels and times")
        axes.plot(places, best, "o", color=PALETTE[1], markersize=4, label="best channel and time")
        axes.set_xticks(places, list(known), rotation=90 if len(known) > 10 else 0)
        axes.set_ylim(0, 1.15)
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.set_ylabel("noise ceiling (correlation)")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper right", ncols=2)
        return figure

    caption = (
        "Noise ceiling by subject: the correlation over test images that the true responses would have with the means over"
        " repetitions, the square root of their reliability (where that is below 0, 0)."
    )
    return Drawing("noise-ceiling", PART, "Noise ceiling", caption, caption, draw)


def _trials(measured: Mapping[str, RecordingQuality]) -> Drawing:
    columns = sorted(
        {
            (split, session)
            for about in measured.values()
            for split, counts in about.trials.items()
            for session in counts
        }
    )
    columns.sort(key=lambda column: (column[0] != "train", column[1]))
    counts = np.array(
        [[about.trials.get(split, {}).get(session, 0) for split, session in columns] for about in measured.values()]
    )

    def draw() -> Figure:
        figure = Figure((max(WIDTH, 0.55 * len(columns) + 1), 1.3 + 0.25 * len(measured)), layout="constrained")
        axes = figure.subplots()
        axes.imshow(counts / max(1, counts.max()), aspect="auto", cmap="Blues", vmin=0, vmax=1.6)
        axes.grid(visible=False)
        for row, column in np.ndindex(*counts.shape):
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=6.5, color=INK)
        axes.set_yticks(range(len(measured)), measured)
        names = [f"{split}\n{f'session {session}' if session else 'all'}" for split, session in columns]
        axes.set_xticks(range(len(columns)), names, fontsize=6.5, rotation=90 if len(columns) > 10 else 0)
        return figure

    caption = "Trials kept of each subject, by split and session; 'all' where the recordings do not tell the session."
    return Drawing("trials", PART, "Trials", caption, caption, draw)
