"""The embedded default end to end: synthetic data, features, methods trained with several seeds, a table, a page."""

import json
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import jsonargparse
from rich.console import Console

from bvsa_core.cli.arguments import Parser, add_no_lock, add_overwrite, to_dataclass
from bvsa_core.cli.output import say
from bvsa_core.cli.progress import Display
from bvsa_core.cli.provenance import origin
from bvsa_core.cli.report import PAGE, write_page
from bvsa_core.data.dataset import DEMO_FOLDER
from bvsa_core.distributed.tasks import TaskPool, Workers
from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import RunDataCache
from bvsa_core.experiments.grid import SET_BY_GRID, Cell, Grid, ScoringSpec, System, cells, read_grid
from bvsa_core.experiments.report_data import build_report, group_runs
from bvsa_core.experiments.runner import check_start, fill_banks, run_cells
from bvsa_core.io.atomic import lock, write_atomically
from bvsa_core.methods import method_class
from bvsa_core.report.tables import method_results, to_markdown, to_rich
from bvsa_core.synthetic.dataset import SyntheticConfig, make_dataset
from bvsa_core.training.config import RunConfig
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.vision.clip import check_weights

DEMO, _SYSTEMS = read_grid("demo")


@dataclass
class DemoConfig:
    """Size of the demonstration."""

    data: Path = DEMO_FOLDER
    """Folder of the synthetic data, made if it is missing."""
    out: Path = Path("bvsa_runs/demo")
    """Folder of runs and table."""
    methods: list[str] = field(default_factory=lambda: [system.method for system in _SYSTEMS])
    """Methods to train, all with the same settings."""
    seeds: int = DEMO.seeds
    """Seeds of every method."""
    resamples: int = DEMO.resamples
    """Draws for the curves over test repetitions on the page, of the first seed; 0 for no curves."""

    def __post_init__(self) -> None:
        for name in self.methods:
            method_class(name)
        if self.seeds < 1:
            raise UserError(f"seeds is {self.seeds}; it must be at least 1")


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    """Add the flags of the command."""
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
    }
    parser.add_class_arguments(RunConfig, skip=skipped)
    parser.set_defaults({"synthetic.subjects": 1, **DEMO.run})


def run(parsed: jsonargparse.Namespace) -> None:
    """Make the data, run the grid, and write its table and page."""
    demo = to_dataclass(DemoConfig, parsed)
    synthetic = to_dataclass(SyntheticConfig, parsed.synthetic)
    base = to_dataclass(RunConfig, parsed)
    started = time.perf_counter()
    with Display() as display, TaskPool(Workers(), RunDataCache(None, display), RunDataCache) as pool:
        check_weights(base.vision, base.weights, base.cache_dir)
        make_dataset(demo.data, synthetic, display)
        grid = demo_cells(demo, base)
        check_start(grid, demo.out, parsed.overwrite)
        with lock(demo.out, activity="a demonstration"):
            fill_banks(grid, pool)
            shown = lambda _, *done: display("runs", *done)  # noqa: E731
            errors = run_cells(grid, demo.out, pool, shown, parsed.overwrite)
            if errors:
                raise UserError("; ".join(errors.values()))
            folders = [RunFolder(demo.out / cell.folder) for cell in grid]
            results = [folder.result() for folder in folders]
            table = method_results(results)
            write_atomically(demo.out / "table.md", to_markdown(table).encode())
            write_atomically(demo.out / "results.json", json.dumps([result.to_json() for result in results]).encode())
            report = build_report("bvsa demo", group_runs(folders), origin(parsed.command_line), progress=display)
    Console().print(to_rich(table))
    write_page(report, demo.out / PAGE)
    say(f"{time.perf_counter() - started:.0f} s; table, runs and their settings are in {demo.out}")


def demo_cells(demo: DemoConfig, base: RunConfig) -> list[Cell]:
    """Return the grid's cells: all settings are those of `base`, and only the first seed has curves."""
    grid = Grid(demo.methods, vision=[base.vision], settings=[base.setting], seeds=demo.seeds)
    systems = [System(name, preset=base.preset, scorings=[ScoringSpec()]) for name in demo.methods]
    flags = {each.name: getattr(base, each.name) for each in fields(RunConfig) if each.name not in SET_BY_GRID}
    planned, _ = cells(grid, systems, {"eeg": demo.data}, {**flags, "encoder": base.encoder})
    configs = [replace(cell.config, seed=base.seed + cell.config.seed) for cell in planned]
    resamples = [0 if cell.config.seed else demo.resamples for cell in planned]
    return [replace(cell, config=config, resamples=draws) for cell, config, draws in zip(planned, configs, resamples)]
