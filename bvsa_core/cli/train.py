"""Train one method for one subject, or for all of them one after another, and score it on that one's test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jsonargparse
from rich.console import Console

from bvsa_core.cli.arguments import Parser, add_run_arguments, make
from bvsa_core.cli.progress import Display
from bvsa_core.report.tables import rows, to_rich
from bvsa_core.training.checkpoint import RunFolder
from bvsa_core.training.config import RunConfig
from bvsa_core.training.run import Materials
from bvsa_core.training.run import run as run_one


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    add_run_arguments(parser, arguments)
    out = "folder of the run; one folder a subject with --subject all"
    parser.add_argument("--out", type=Path, default=Path("bvsa_runs/train"), help=out)


def run(parsed: jsonargparse.Namespace) -> None:
    config = make(RunConfig, parsed)
    with Display() as display:
        materials = Materials(config, display)
        everyone = config.subject == "all"
        results = []
        for subject in materials.dataset.subjects if everyone else [config.subject]:
            folder = RunFolder(parsed.out / subject if everyone else parsed.out)
            results.append(run_one(replace(config, subject=subject), materials, folder, display))
    Console().print(to_rich(rows(results)))
    print(f"runs are in {parsed.out}")
