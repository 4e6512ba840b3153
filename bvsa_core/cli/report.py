"""One self-contained HTML page about finished runs, and on demand its figures as PNG and PDF.

RUN is the folder of a run, or any folder with runs inside, such as that of 'bvsa demo' or 'bvsa reproduce'. Runs that differ
in subject and seed alone become one line of the table.
"""

from __future__ import annotations

import platform
import subprocess
from dataclasses import replace
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path

import jsonargparse
import torch

import bvsa_core
from bvsa_core.cli.arguments import Parser
from bvsa_core.cli.progress import Display
from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import RunDataCache
from bvsa_core.experiments.report_data import build_report, find_runs, group_runs, with_curves
from bvsa_core.io.atomic import write_atomically
from bvsa_core.report.content import Report

PAGE = "page.html"
_PACKAGES = ("fovblur", "torch", "numpy", "open-clip-torch", "lightning-fabric", "matplotlib")


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    """Add the command's flags."""
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs, or folders that contain runs")
    add("--out", type=Path, help=f"file of the page; default: {PAGE} in the first RUN")
    add("--figures", type=Path, help="folder for every figure as PNG and PDF")
    add("--title", help="title of the page")
    add("--data", type=Path, help="data folder if it has moved since the runs")
    resamples = "number of draws for a curve over test repetitions, for the first run of every row without one"
    add("--resamples", type=int, default=0, help=resamples)
    add("--device", default="auto", help="device to compute the curves on: auto, cpu, cuda or cuda:N")


def run(parsed: jsonargparse.Namespace) -> None:
    from bvsa_core.report.result_figures import drawings  # imports matplotlib
    from bvsa_core.report.style import save

    if parsed.resamples < 0:
        raise UserError(f"--resamples is {parsed.resamples}; it must be at least 0")
    out = parsed.out or parsed.runs[0] / PAGE
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a file, such as {out / PAGE}")
    with Display() as display:
        folders, told = find_runs(parsed.runs)
        lines = group_runs(folders)
        bench = RunDataCache(parsed.device, display)
        moved = {"data": parsed.data} if parsed.data else {}
        lines = with_curves(lines, lambda config: bench.run_data(replace(config, **moved)), parsed.resamples, display)
        title = parsed.title or (parsed.runs[0].resolve().name if len(parsed.runs) == 1 else f"{len(folders)} runs")
        report = build_report(title, lines, origin(parsed.command_line), parsed.data, display)
        report.missing.update({"runs": ". ".join(told) + "."} if told else {})
        written = save(drawings(report), parsed.figures) if parsed.figures else []
    write_page(report, out)
    if written:
        print(f"{len(written) // 2} figures as PNG and PDF are in {parsed.figures}")


def write_page(report: Report, path: Path) -> None:
    """Write the page, and say so."""
    from bvsa_core.report.page import to_html  # imports matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_html(report).encode())
    print(f"the page is {path}")


def origin(command: str) -> dict[str, str]:
    """What is written under a page: command, code, versions, machine and date, those of now."""
    found = {"command": command, "page written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")}
    if commit := commit_of(Path(bvsa_core.__file__).parents[1]):
        found["commit"] = commit
    installed = {(each.name or "").lower().replace("_", "-"): each.version for each in distributions()}
    found["versions"] = ", ".join(
        [
            f"Python {platform.python_version()}",
            *(f"{name} {installed[name]}" for name in _PACKAGES if name in installed),
        ]
    )
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU with {torch.get_num_threads()} threads"
    )
    found["machine"] = f"{platform.system()} {platform.machine()}, {device}"
    return found


def commit_of(folder: Path) -> str | None:
    """The commit of a checkout, and whether files differ from it; None elsewhere."""
    if not (folder / ".git").exists():
        return None
    git = lambda *words: subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)  # noqa: E731
    try:
        head, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except OSError:
        return None
    if head.returncode or changed.returncode:
        return None
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")
