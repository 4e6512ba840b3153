"""Train one method for one subject, or for each subject in turn, and score it on that subject's test set.

The same command continues a run that was stopped or killed. Under torchrun the processes train together, each encoding
its rows of every batch; see docs/several_machines.md.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import jsonargparse
from rich.console import Console

from bvsa_core.cli.arguments import Parser, add_no_lock, add_overwrite, add_run_arguments, to_dataclass
from bvsa_core.cli.output import say, warn_of_toy_encoder
from bvsa_core.distributed.processes import ProcessGroup, init_processes
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import refuse_links
from bvsa_core.progress import Display
from bvsa_core.report.tables import method_results, to_rich
from bvsa_core.training.config import RunConfig
from bvsa_core.training.logs import logger
from bvsa_core.training.run import run as run_one
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.vision.loading import check_weights


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    """Add the command's flags."""
    add_run_arguments(parser, arguments)
    out = "folder of the run; with --subject all, one folder inside it for each subject"
    parser.add_argument("--out", type=Path, default=Path("bvsa_runs/train"), help=out)
    log = "where else to log the metrics of every epoch: tensorboard (in the run's folder), wandb or none"
    parser.add_argument("--log", type=Literal["tensorboard", "wandb", "none"], default="none", help=log)
    add_overwrite(parser)
    add_no_lock(parser)


def run(parsed: jsonargparse.Namespace) -> None:
    """Run the command."""
    config = to_dataclass(RunConfig, parsed)
    config.check_used()
    with init_processes() as processes, Display(quiet=processes.rank > 0) as display:
        run_data = RunData(replace(config, device=device_of_rank(config.device, processes)), display, processes)
        if processes.rank == 0:
            warn_of_toy_encoder(config, run_data.dataset)
        everyone = config.subject == "all"
        results, runs = [], []
        for subject in run_data.dataset.subjects if everyone else [config.subject]:
            path = parsed.out / subject if everyone else parsed.out
            refuse_links(path, below=parsed.out)
            runs.append((replace(config, subject=subject), RunFolder(path, parsed.overwrite)))

        def check_start() -> None:  # before anything is read that takes long
            if not all([folder.is_complete(own) for own, folder in runs]):  # raises where another run is in the way
                check_weights(config.vision, config.weights, config.cache_dir)

        processes.broadcast(check_start)
        for own, folder in runs:
            with logger(parsed.log if processes.rank == 0 else "none", folder.path) as log:
                results.append(run_one(own, run_data, folder, display, log))
    if processes.rank == 0:
        Console().print(to_rich(method_results(results)))
        for result in results:
            if layers := result.layers:
                say(f"{result.subject}: target {layers.chosen}, chosen on {layers.source}")
        say(f"runs are in {parsed.out}")


def device_of_rank(requested: str, processes: ProcessGroup) -> str:
    """Return the device of this process when several train together; the request must serve all of them."""
    if processes.size == 1 or requested == "cpu":
        return requested
    if requested not in ("auto", "cuda"):
        problem = f"--device {requested} is one device for {processes.size} processes"
        raise UserError(f"{problem}; omit the flag, and each process takes its own GPU")
    if requested == "cuda" and processes.device is None:
        problem = f"process {processes.rank} has no GPU of its own"
        raise UserError(f"--device cuda: {problem}; start as many a machine as it has GPUs")
    everyone = processes.gather(processes.device)
    return processes.device if processes.device and None not in everyone else "cpu"
