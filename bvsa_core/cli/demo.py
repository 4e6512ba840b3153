"""The embedded default end to end: synthetic data, features, methods trained with several seeds, a table, a page."""

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import jsonargparse
import numpy as np
from rich.console import Console

from bvsa_core.cli.arguments import Parser, add_no_lock, add_overwrite, to_dataclass
from bvsa_core.cli.output import say
from bvsa_core.cli.provenance import origin
from bvsa_core.cli.report import PAGE, write_page
from bvsa_core.data.dataset import DEMO_FOLDER
from bvsa_core.distributed.tasks import TaskPool, Workers
from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import RunDataCache
from bvsa_core.experiments.grid import SET_BY_GRID, Cell, Grid, ScoringSpec, System, cells, read_grid
from bvsa_core.experiments.linear_decoding import decode_rows
from bvsa_core.experiments.report_data import build_report, group_runs
from bvsa_core.experiments.runner import check_start, fill_banks, run_cells
from bvsa_core.io.atomic import lock, write_atomically
from bvsa_core.methods import method_class
from bvsa_core.progress import Display
from bvsa_core.report.tables import MethodResult, method_results, to_markdown, to_rich
from bvsa_core.retrieval.result import RunResult, ranks_by_subject
from bvsa_core.retrieval.statistics import crossed_bootstrap
from bvsa_core.synthetic.dataset import SyntheticConfig, make_dataset
from bvsa_core.training.config import GIVEN, RunConfig
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.vision.loading import check_weights


@dataclass
class DemoConfig:
    """Size of the demonstration."""

    data: Path
    """Folder of the synthetic data, made if it is missing."""
    out: Path
    """Folder of runs and table."""
    methods: list[str]
    """Methods to train, all with the same settings."""
    seeds: int
    """Seeds of every method."""
    resamples: int
    """Draws for the curves over test repetitions on the page, of the first seed; 0 for no curves."""

    def __post_init__(self) -> None:
        for name in self.methods:
            method_class(name)
        if self.seeds < 1:
            raise UserError(f"seeds is {self.seeds}; it must be at least 1")


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    """Add the flags of the command; their defaults are those of a grid."""
    name = "demo-full" if "--full" in arguments else "demo"
    grid, systems = read_grid(name)
    parser.add_argument("--full", action="store_true", help="six times as many images, which takes minutes more")
    parser.add_class_arguments(DemoConfig)
    add_overwrite(parser)
    add_no_lock(parser)
    parser.add_class_arguments(SyntheticConfig, "synthetic")
    skipped = {
        "data",
        "method",
        "method_options",
        "encoder_options",
        "subject",
        "preset",
        "channels",
        "window",
        "allow_leak",
        *GIVEN,
    }
    parser.add_class_arguments(RunConfig, skip=skipped)
    methods = [system.method for system in systems]
    parser.set_defaults({"data": DEMO_FOLDER.with_name(name), "out": Path("bvsa_runs", name), "methods": methods})
    parser.set_defaults({"seeds": grid.seeds, "resamples": grid.resamples, "synthetic.subjects": 1, **grid.run})
    parser.set_defaults({f"synthetic.{size}": value for size, value in grid.synthetic.items()})


def run(parsed: jsonargparse.Namespace) -> None:
    """Make the data, run the grid, and write its table and page."""
    demo = to_dataclass(DemoConfig, parsed)
    synthetic = to_dataclass(SyntheticConfig, parsed.synthetic)
    base = to_dataclass(RunConfig, parsed)
    started = time.perf_counter()
    with Display() as display, TaskPool(Workers(), RunDataCache(None, display), RunDataCache) as pool:
        if not demo.data.exists():
            check_weights(base.vision, base.weights, base.cache_dir)  # before data are made
        make_dataset(demo.data, synthetic, display)
        grid = demo_cells(demo, base)
        check_start(grid, demo.out, parsed.overwrite)
        with lock(demo.out, activity="a demonstration"):
            fill_banks(grid, pool)
            first = [cell for cell in grid if cell.config.seed == base.seed]
            results = [folder.result() for folder in train(first, demo.out, pool, display, parsed.overwrite)]
            if len(first) < len(grid):
                show(method_results(results))
                say(f"seed {base.seed}; {demo.seeds - 1} more, which narrow the intervals, and the page follow")
            folders = train(grid, demo.out, pool, display, parsed.overwrite)
            results = [folder.result() for folder in folders]
            table = method_results(results)
            write_atomically(demo.out / "table.md", to_markdown(table).encode())
            write_atomically(demo.out / "results.json", json.dumps([result.to_json() for result in results]).encode())
            rows = group_runs(folders)
            report = build_report("bvsa demo", rows, origin(parsed.command_line), progress=display)
            report = replace(report, decodings=decode_rows(rows, RunDataCache(None, display).run_data, display))
    show(table)
    for line in in_words(results):
        say(line)
    write_page(report, demo.out / PAGE)
    say(f"{time.perf_counter() - started:.0f} s; table, runs and their settings are in {demo.out}")


def train(
    grid: Sequence[Cell], out: Path, pool: TaskPool[RunDataCache], display: Display, overwrite: bool
) -> list[RunFolder]:
    """Run the cells that are not complete, and return the folders of all."""
    errors = run_cells(grid, out, pool, lambda _, *done: display("runs", *done), overwrite)
    if errors:
        raise UserError("; ".join(errors.values()))
    return [RunFolder(out / cell.folder) for cell in grid]


def show(table: Sequence[MethodResult]) -> None:
    """Print a table, above the bars where some are shown."""
    console = Console()
    with console.capture() as shown:
        console.print(to_rich(table))
    print(shown.get(), end="")


def in_words(results: Sequence[RunResult]) -> list[str]:
    """Say which methods find more images than chance, and which pairs of them differ significantly."""
    ranks: dict[str, np.ndarray] = {}  # (subjects, seeds, images) by method
    for name in dict.fromkeys(result.method for result in results):
        runs = ranks_by_subject(result for result in results if result.method == name)
        ranks[name] = np.stack(list(runs.values()))
    chance = 1 / results[0].protocol.gallery
    above = [name for name, of_images in ranks.items() if crossed_bootstrap(of_images == 1)[0] > chance]
    lines = [f"Top-1 above chance ({100 * chance:g} %) by the whole interval: {', '.join(above) or 'no method'}"]
    for one, other in itertools.combinations(ranks, 2):
        difference = 1 / ranks[one] - 1 / ranks[other]  # in average precision, which is finer than Top-1
        low, high = crossed_bootstrap(difference)
        points = f"{100 * difference.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points of mAP"
        verdict = "no significant difference" if low <= 0 <= high else "a significant difference"
        lines.append(f"{one} - {other}, on the same recordings: {points}: {verdict}")
    return [*lines, "The recordings are synthetic: what ranks first here need not do so on people."]


def demo_cells(demo: DemoConfig, base: RunConfig) -> list[Cell]:
    """Return the grid's cells: all settings are those of `base`, and only the first seed has curves."""
    grid = Grid(demo.methods, vision=[base.vision], settings=[base.setting], seeds=demo.seeds)
    systems = [System(name, preset=base.preset, scorings=[ScoringSpec()]) for name in demo.methods]
    flags = {each.name: getattr(base, each.name) for each in fields(RunConfig) if each.name not in SET_BY_GRID}
    planned, _ = cells(grid, systems, {"eeg": demo.data}, {**flags, "encoder": base.encoder})
    configs = [replace(cell.config, seed=base.seed + cell.config.seed) for cell in planned]
    resamples = [0 if cell.config.seed else demo.resamples for cell in planned]
    return [replace(cell, config=config, resamples=draws) for cell, config, draws in zip(planned, configs, resamples)]
