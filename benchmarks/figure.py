"""The figure of a run: every provider's time as a multiple of ours, and time over kernel size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

from benchmarks.harness import Row

BY_KERNEL_SIZE = re.compile(r"forward, (?P<what>16 x 3 x \d+ x \d+ float32), k (?P<k>\d+)")
COLOURS = ("#1b6ca8", "#d1495b", "#edae49", "#66a182", "#7d5ba6", "#6c757d", "#2e4057", "#e377c2", "#17becf")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Save the figure as PNG."""
    swept = {row: int(match["k"]) for row in rows if (match := BY_KERNEL_SIZE.fullmatch(row.case))}
    single = [row for row in rows if row not in swept]
    cases = list(dict.fromkeys(row.case for row in single))
    providers = list(dict.fromkeys(row.provider for row in rows))
    colour = dict(zip(providers, COLOURS * 3))
    panels = 2 if swept else 1
    size = (14 if swept else 9, 1.6 + 0.42 * max(len(cases), 8 if swept else 3) + (0 if swept else 0.6))
    ratios = (3, 2)[:panels]
    figure, axes = plt.subplots(1, panels, figsize=size, width_ratios=ratios, squeeze=False, layout="constrained")
    left, right = axes[0, 0], axes[0, -1]
    for provider in providers:
        mine = [row for row in single if row.provider == provider]
        places = [cases.index(row.case) for row in mine]
        style = {"color": colour[provider], "label": provider}
        left.scatter([row.ratio_to_best_of_ours for row in mine], places, s=36, zorder=3, **style)
        along = sorted((k, 1e3 * row.median_s) for row, k in swept.items() if row.provider == provider)
        if along:
            right.plot(*zip(*along), "o-", ms=4, **style)
    xlabel = "time, as a multiple of ours (log scale)"
    left.set(xscale="log", yticks=range(len(cases)), yticklabels=cases, xlabel=xlabel)
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter("")
    left.invert_yaxis()
    left.axvline(1, color="black", lw=0.8)
    handles = left.collections[: len(providers)]
    figure.legend(handles, providers, loc="outside lower center", ncols=4 if swept else 3, fontsize=8)
    if swept:
        right.set(xscale="log", yscale="log", xlabel="kernel size / pixels", ylabel="median time / ms")
        ticks = sorted(set(swept.values()))
        right.set_xticks(ticks, [str(k) for k in ticks])
        right.yaxis.set_major_formatter("{x:g}")
        right.minorticks_off()
        right.set_title(BY_KERNEL_SIZE.fullmatch(next(iter(swept)).case)["what"], fontsize=10)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    here = rows[0].machine
    processor = here.get("gpu", here["processor"])
    figure.suptitle(f"{processor}, {here['threads']} threads, torch {rows[0].versions['torch']}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
