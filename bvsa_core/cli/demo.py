"""The embedded default end to end: synthetic data, features, training of methods with several seeds, one table, one page."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import jsonargparse
from rich.console import Console

from bvsa_core.cli.arguments import Parser, to_dataclass
from bvsa_core.cli.progress import Display
from bvsa_core.cli.provenance import origin
from bvsa_core.cli.report import PAGE, write_page
from bvsa_core.errors import UserError
from bvsa_core.experiments.demo_grid import cells, folder_of, run_grid
from bvsa_core.experiments.report_data import build_report, group_runs, with_curves
from bvsa_core.io.atomic import lock, write_atomically
from bvsa_core.methods import method_class
from bvsa_core.report.tables import method_results, to_markdown, to_rich
from bvsa_core.synthetic.dataset import SyntheticConfig, make_dataset
from bvsa_core.training.checkpoint import RunFolder
from bvsa_core.training.config import RunConfig
from bvsa_core.training.run_data import RunData


@dataclass
class DemoConfig:
    """How much of a demonstration."""

    data: Path = Path("bvsa_data/demo")
    """Where the synthetic data go, or are."""
    out: Path = Path("bvsa_runs/demo")
    """Where runs and the table go."""
    methods: list[str] = field(default_factory=lambda: ["bvsa", "ubp", "vanilla"])
    """Methods that are trained, all alike."""
    seeds: int = 3
    """Seeds of every method."""
    resamples: int = 2
    """Draws for the curves over test repetitions on the page, of the first seed; 0 leaves them out."""

    def __post_init__(self) -> None:
        for name in self.methods:
            method_class(name)
        if self.seeds < 1:
            raise UserError(f"seeds is {self.seeds}; it must be at least 1")


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    parser.add_class_arguments(DemoConfig)
    parser.add_class_arguments(SyntheticConfig, "synthetic")
    settled = {"data", "method", "method_options", "encoder_options", "subject", "preset", "channels", "window"}
    parser.add_class_arguments(RunConfig, skip=settled)
    parser.set_defaults({"synthetic.subjects": 1, "epochs": 20})  # as much as fits a few minutes on two cores


def run(parsed: jsonargparse.Namespace) -> None:
    demo = to_dataclass(DemoConfig, parsed)
    synthetic = to_dataclass(SyntheticConfig, parsed.synthetic)
    base = to_dataclass(RunConfig, parsed)
    started = time.perf_counter()
    with Display() as display:
        make_dataset(demo.data, synthetic, display)
        run_data = RunData(base, display)
        grid = cells(base, demo.methods, run_data.dataset.subjects, demo.seeds)
        with lock(demo.out, activity="a demonstration"):
            results = run_grid(grid, demo.out, run_data, lambda _, done, of: display("runs", done, of))
            table = method_results(results)
            write_atomically(demo.out / "table.md", to_markdown(table).encode())
            write_atomically(demo.out / "results.json", json.dumps([result.to_json() for result in results]).encode())
            lines = group_runs([RunFolder(folder_of(cell, demo.out)) for cell in grid])
            lines = with_curves(lines, lambda _: run_data, demo.resamples, display)
            report = build_report("bvsa demo", lines, origin(parsed.command_line), progress=display)
    Console().print(to_rich(table))
    write_page(report, demo.out / PAGE)
    print(f"{time.perf_counter() - started:.0f} s; table, runs and their settings are in {demo.out}")
