"""Methods x encoders x subjects x seeds x settings from one YAML file, and one table and page with the published figures beside ours.

GRID is main (the four settings), ablation (the parts of BVSA, every gate and the control), c-sweep, fidelity (presets side
by side), or a YAML file like those in bvsa_core/experiments. Cells that are complete are not run again, so the same command
continues a grid that was stopped. Under torchrun cells are dealt to the processes, each with the GPU of its LOCAL_RANK.
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import get_type_hints

import jsonargparse
from rich.console import Console

from bvsa_core.cli.arguments import Parser
from bvsa_core.cli.progress import Display
from bvsa_core.cli.provenance import origin
from bvsa_core.cli.report import PAGE, write_page
from bvsa_core.distributed.processes import ProcessGroup, team
from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import RunDataCache, complete, fill_banks
from bvsa_core.experiments.grid import SETTLED, Cell, Grid, cells, choose, read_grid
from bvsa_core.experiments.report_data import build_report, grid_rows
from bvsa_core.experiments.results import write
from bvsa_core.experiments.runner import run_parallel, run_serial
from bvsa_core.io.atomic import clean_stale, lock
from bvsa_core.report.comparison_table import to_rich
from bvsa_core.report.content import Report
from bvsa_core.synthetic.dataset import SyntheticConfig, make_dataset
from bvsa_core.training.config import RunConfig

DEMO = Path("bvsa_data/demo")  # where `bvsa demo` keeps its data


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    """Add the command's flags."""
    add = parser.add_argument
    add("--config", action="config", help="YAML file with any of these flags")
    add("grid", help="main, ablation, c-sweep, fidelity, or a YAML file")
    add(
        "--eeg",
        type=Path | None,
        help="folder of EEG recordings; default: synthetic data, if --meg is not given either",
    )
    add("--meg", type=Path | None, help="folder of MEG recordings")
    add("--out", type=Path | None, help="folder of the grid; default: bvsa_runs/GRID")
    add("--workers", type=int, default=1, help="number of processes on this machine that share the cells")
    threads = "CPU threads of a cell; default: an equal share. The same number of threads gives the same bytes"
    add("--threads", type=int | None, help=threads)
    add("--methods", type=str, nargs="+", help="only these methods or rows of the grid, by name")
    add("--seeds", type=int | None, help="number of seeds of every method; default: the grid's")
    add("--subjects", type=str, nargs="+", help="only these subjects")
    add("--vision", type=str, nargs="+", help="image encoders")
    add("--encoders", type=str, nargs="+", help="brain encoders; default: each method's own")
    add("--resamples", type=int | None, help="number of draws for curves over test repetitions; 0 omits the curves")
    hints = get_type_hints(RunConfig)
    for field in fields(RunConfig):
        if field.name not in SETTLED:
            add(f"--{field.name}", type=hints[field.name] | None, help="of every run; see bvsa train --help")
    parser.add_class_arguments(SyntheticConfig, "synthetic", skip={"modality"})
    parser.set_defaults({"synthetic.subjects": 1})


def run(parsed: jsonargparse.Namespace) -> None:
    started = time.perf_counter()
    grid, systems = read_grid(parsed.grid)
    given = {
        name: getattr(parsed, name)
        for name in ("seeds", "subjects", "vision", "resamples")
        if getattr(parsed, name) is not None
    }
    grid = replace(grid, **given)
    for name, least in (("seeds", 1), ("resamples", 0), ("workers", 1), ("threads", 1)):
        value = getattr(parsed, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}; it must be at least {least}")
    if parsed.methods:
        systems = choose(systems, parsed.methods)
    if parsed.encoders:
        systems = [replace(system, encoders=parsed.encoders) for system in systems]
    flags = {
        field.name: value for field in fields(RunConfig) if (value := getattr(parsed, field.name, None)) is not None
    }
    flags = {name: value for name, value in flags.items() if name not in SETTLED}
    root = parsed.out or Path("bvsa_runs", Path(parsed.grid).stem)
    with team() as processes, Display(quiet=processes.rank > 0) as display:
        if processes.size > 1 and parsed.workers > 1:
            raise UserError("--workers is for one process; leave torchrun or it out")
        data = data_folders(parsed, grid, display, processes)
        todo, left_out = cells(grid, systems, data, flags)
        with lock(root, activity="a grid") if processes.rank == 0 else nullcontext():
            failures = run_all(todo, root, parsed, display, processes)
            if processes.rank == 0:
                report = finish(grid, todo, left_out, failures, root, parsed.command_line, display)
    if processes.rank == 0:
        write_page(report, root / PAGE)
        print(
            f"{time.perf_counter() - started:.0f} s; table.md, table.csv, table.tex, statistics.json and all runs are in {root}"
        )
    if failures and processes.rank == 0:
        raise UserError(
            f"{len(failures)} of {len(todo)} cells failed, as told above; the same command tries them again"
        )


def data_folders(
    parsed: jsonargparse.Namespace, grid: Grid, display: Display, processes: ProcessGroup
) -> dict[str, Path]:
    """The folder of each modality; without flags the demo's, or synthetic ones of more subjects where the grid trains between them."""
    if given := {name: getattr(parsed, name) for name in ("eeg", "meg") if getattr(parsed, name)}:
        return given
    flags = parsed.synthetic.as_dict()
    flags["subjects"] = max(flags["subjects"], 2 if "inter" in grid.settings else 1)
    folders: dict[str, Path] = {}
    for modality in grid.modalities:
        as_demo = modality == "eeg" and flags["subjects"] == 1
        folders[modality] = DEMO if as_demo else DEMO.with_name(f"synthetic_{modality}_{flags['subjects']}_subjects")
        if processes.rank == 0:
            make_dataset(folders[modality], SyntheticConfig(**{**flags, "modality": modality}), display)
    processes.wait()
    return folders


def run_all(
    todo: list[Cell], root: Path, parsed: jsonargparse.Namespace, display: Display, processes: ProcessGroup
) -> dict[str, str]:
    """Fill the feature banks, then run every cell. Returns what was wrong with those that failed."""
    bench = RunDataCache(processes.device, display)
    if processes.rank == 0:
        for cell in todo:
            if complete(cell, root):
                clean_stale(root / cell.folder, activity="a run")
    fill_banks([cell for cell in todo if not complete(cell, root)], bench)  # together with the other processes
    processes.wait()
    if parsed.workers > 1:
        return run_parallel(todo, root, parsed.workers, display, parsed.threads)
    failures = processes.gather(run_serial(processes.share(todo), root, bench, display, parsed.threads))
    return {cell: told for part in failures for cell, told in part.items()}


def finish(
    grid: Grid, todo: list[Cell], left_out: list[str], failures: dict[str, str], root: Path, said: str, display: Display
) -> Report:
    """Write the tables of the grid, tell, and gather what its page shows."""
    found = write(grid, todo, left_out, root)
    Console().print(to_rich(grid.title, [row.comparison for row in found]))
    for sentence in left_out:
        print(sentence)
    for cell, told in failures.items():
        print(f"failed: {cell}: {told}", file=sys.stderr)
    return build_report(grid.title or root.name, grid_rows(found, root), origin(said), progress=display)
