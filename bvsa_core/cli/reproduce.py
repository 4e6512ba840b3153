"""Methods x encoders x subjects x seeds x settings from one YAML file: one table and page beside published figures.

GRID is main (the four settings), records (the strongest recipes, with and without blur), ablation (the parts of BVSA,
every gate and the control), c-sweep, fidelity (presets side by side), demo and demo-full (those of 'bvsa demo'), or a
YAML file like those in bvsa_core/experiments. Cells are shared by --workers of this machine, or by the workers of a
Dask --scheduler. Cells that are complete are not run again, so the same command continues a grid that was stopped.
"""

import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import get_type_hints

import jsonargparse
from rich.console import Console

from bvsa_core.cli.arguments import Parser, add_no_lock, add_overwrite, to_dataclass
from bvsa_core.cli.output import say, warn_of_toy_encoder
from bvsa_core.cli.provenance import origin
from bvsa_core.cli.report import PAGE, write_page
from bvsa_core.data.dataset import DEMO_FOLDER, Dataset
from bvsa_core.distributed.tasks import TaskPool, Workers
from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import RunDataCache, is_complete
from bvsa_core.experiments.grid import BUILT_IN, SET_BY_GRID, Grid, cells, check_counts, read_grid, systems_named
from bvsa_core.experiments.plan import plan
from bvsa_core.experiments.report_data import build_report, grid_rows
from bvsa_core.experiments.results import GridRow, comparisons, load_complete, write
from bvsa_core.experiments.runner import check_start, fill_banks, run_cells
from bvsa_core.io.atomic import clean_stale, lock
from bvsa_core.progress import Display
from bvsa_core.report.comparison_table import to_rich
from bvsa_core.report.content import Report
from bvsa_core.synthetic.dataset import SyntheticConfig, make_dataset
from bvsa_core.training.config import RunConfig
from bvsa_core.vision.loading import check_weights

FULL = DEMO_FOLDER.with_name("demo-full")  # where `bvsa demo --full` keeps its data


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    """Add the command's flags."""
    add = parser.add_argument
    add("--config", action="config", help="YAML file with any of these flags")
    add("grid", help=f"{', '.join(BUILT_IN)}, or a YAML file")
    eeg = "folder of EEG recordings; default: synthetic data, if --meg is not given either"
    add("--eeg", type=Path | None, help=eeg)
    add("--meg", type=Path | None, help="folder of MEG recordings")
    add("--out", type=Path | None, help="folder of the grid; default: bvsa_runs/GRID")
    text = "print cells, hours by steps timed here, disk and what is missing; nothing is written"
    add("--plan", action="store_true", help=text)
    parser.add_class_arguments(Workers)
    add_overwrite(parser)
    add_no_lock(parser)
    add("--methods", type=str, nargs="+", help="only these rows of the grid, or all rows of a method, by name")
    add("--seeds", type=int | None, help="number of seeds of every method; default: the grid's")
    add("--subjects", type=str, nargs="+", help="only these subjects")
    vision = "image encoders; default: the grid's, which for published grids on recorded data is RN50"
    add("--vision", type=str, nargs="+", help=vision)
    add("--encoders", type=str, nargs="+", help="brain encoders; default: each method's own")
    add("--resamples", type=int | None, help="number of draws for curves over test repetitions; 0 omits the curves")
    hints = get_type_hints(RunConfig)
    for field in fields(RunConfig):
        if field.name not in SET_BY_GRID:
            add(f"--{field.name}", type=hints[field.name] | None, help="of every run; see bvsa train --help")
    for name, hint in get_type_hints(SyntheticConfig).items():
        if name != "modality":
            add(f"--synthetic.{name}", type=hint | None, help="of data that are made; see bvsa data synthetic --help")


def run(parsed: jsonargparse.Namespace) -> None:
    """Run the grid, and write its tables and page."""
    started = time.perf_counter()
    grid, systems = read_grid(parsed.grid)
    planned_seeds = grid.seeds
    given = {name: getattr(parsed, name) for name in ("seeds", "subjects", "vision", "resamples")}
    grid = replace(grid, **{name: value for name, value in given.items() if value is not None})
    if parsed.vision:
        grid.vision_of_recorded = []
    check_counts(grid, "--")
    workers = to_dataclass(Workers, parsed)
    if parsed.methods:
        systems = systems_named(systems, parsed.methods)
    if parsed.encoders:
        systems = [replace(system, encoders=parsed.encoders) for system in systems]
    settings = [field.name for field in fields(RunConfig) if field.name not in SET_BY_GRID]
    flags = {name: value for name in settings if (value := getattr(parsed, name)) is not None}
    root = parsed.out or Path("bvsa_runs", Path(parsed.grid).stem)
    if parsed.plan:
        with Display() as display:
            lines = plan(grid, systems, given_folders(parsed), flags, root, display)
        say("\n".join(lines))
        return
    with Display() as display, TaskPool(workers, RunDataCache(None, display), RunDataCache) as pool:
        data = data_folders(parsed, grid, display)
        todo, left_out = cells(grid, systems, data, flags)
        for config in {(cell.config.data, cell.config.vision): cell.config for cell in todo}.values():
            warn_of_toy_encoder(config, Dataset(config.data))
        check_start(todo, root, parsed.overwrite)
        with lock(root, activity="a grid"):
            missing = []
            for cell in todo:
                if is_complete(cell, root):
                    clean_stale(root / cell.folder, activity="a run")
                else:
                    missing.append(cell)
            fill_banks(missing, pool)
            failures = run_cells(todo, root, pool, display, parsed.overwrite)
            scored, damaged = load_complete(todo, root)
            failures |= damaged
            print_failures(failures)
            again = "mend what the lines above name, and the same command tries them again"
            if not scored:
                raise UserError(f"all {len(todo)} cells failed, and no table was written; {again}")
            rows = write(grid, todo, scored, left_out, root, planned_seeds)
            report = finish(grid, rows, left_out, root, parsed.command_line, display)
    write_page(report, root / PAGE)
    seconds = time.perf_counter() - started
    say(f"{seconds:.0f} s; table.md, table.csv, table.tex, statistics.json and all runs are in {root}")
    if failures:
        raise UserError(f"{len(failures)} of {len(todo)} cells failed; {again}")


def given_folders(parsed: jsonargparse.Namespace) -> dict[str, Path]:
    """Return the folder of each modality that was given."""
    return {name: getattr(parsed, name) for name in ("eeg", "meg") if getattr(parsed, name)}


def data_folders(parsed: jsonargparse.Namespace, grid: Grid, display: Display) -> dict[str, Path]:
    """Return the folder of each modality.

    Without flags they are made: of the size that the grid names, or that of `bvsa demo --full`, with more subjects if
    the grid trains between subjects.
    """
    if given := given_folders(parsed):
        return given
    sizes = {name: value for name, value in parsed.synthetic.as_dict().items() if value is not None}
    sizes = {"subjects": 1, **grid.synthetic, **sizes}
    sizes["subjects"] = max(sizes["subjects"], 2 if "inter" in grid.settings else 1)
    full = FULL.with_name(Path(parsed.grid).stem) if grid.synthetic else FULL
    folders: dict[str, Path] = {}
    for modality in grid.modalities:
        as_demo = modality == "eeg" and sizes["subjects"] == 1
        other = f"{full.name if grid.synthetic else 'synthetic'}_{modality}_{sizes['subjects']}_subjects"
        folders[modality] = full if as_demo else full.with_name(other)
    if not all(folder.exists() for folder in folders.values()):
        for vision in grid.vision:
            check_weights(vision, parsed.weights, parsed.cache_dir)  # before data are made
    if not grid.synthetic:
        recorded = "for recorded ones give --eeg or --meg"
        say(f"no folder of recordings was given: the grid runs on synthetic data; {recorded}", file=sys.stderr)
    for modality in grid.modalities:
        make_dataset(folders[modality], SyntheticConfig(**{**sizes, "modality": modality}), display)
    return folders


def print_failures(failures: dict[str, str]) -> None:
    """Print why cells failed, one line for each reason."""
    cells_of: dict[str, list[str]] = {}
    for cell, message in failures.items():
        cells_of.setdefault(message, []).append(cell)
    for message, names in cells_of.items():
        more = f" and {len(names) - 1} cell(s) more" if len(names) > 1 else ""
        say(f"failed: {names[0]}{more}: {message}", file=sys.stderr)


def finish(grid: Grid, rows: list[GridRow], left_out: list[str], root: Path, said: str, display: Display) -> Report:
    """Print the table of the grid, and collect what its page shows."""
    Console().print(to_rich(grid.title, [row.comparison for row in rows]))
    for sentence in left_out:
        say(sentence)
    report_rows = grid_rows(rows, root)
    report = build_report(grid.title or root.name, report_rows, origin(said), progress=display)
    return replace(report, comparisons=comparisons(rows, [row.label for row in report_rows]))
