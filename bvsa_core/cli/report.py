"""Make one self-contained HTML page about finished runs, and on request its figures as PNG and PDF.

RUN is the folder of a run, or any folder that contains runs, such as that of 'bvsa demo' or 'bvsa reproduce'. Runs that
differ only in subject and seed become one row of the table.
"""

from dataclasses import replace
from pathlib import Path

import jsonargparse

from bvsa_core.cli.arguments import Parser
from bvsa_core.cli.output import say, write_file
from bvsa_core.cli.provenance import origin
from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import RunDataCache
from bvsa_core.experiments.linear_decoding import decode_rows
from bvsa_core.experiments.report_data import build_report, find_runs, group_runs, with_curves
from bvsa_core.progress import Display
from bvsa_core.report.content import Report
from bvsa_core.training.config import relocated
from bvsa_core.vision.downloads import stay_offline

PAGE = "page.html"


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    """Add the command's flags."""
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs, or folders that contain runs")
    add("--out", type=Path, help=f"file of the page; default: {PAGE} in the first RUN")
    add("--figures", type=Path, help="folder for every figure as PNG and PDF")
    add("--title", help="title of the page")
    add("--data", type=Path, help="data folder if it has moved since the runs")
    add("--bank", type=Path, help="folder of the feature bank if it has moved, or lies outside the data")
    resamples = "number of draws for a curve over test repetitions, for the first run of every row without one"
    add("--resamples", type=int, default=0, help=resamples)
    decoding = "also decode windows of time, channels and layers by ridge regression, for every subject"
    add("--decoding", action="store_true", help=decoding)
    add("--device", default="auto", help="device to compute curves and decoding on: auto, cpu, cuda or cuda:N")


def run(parsed: jsonargparse.Namespace) -> None:
    """Run 'bvsa report'."""
    from bvsa_core.report.result_figures import report_figures  # imports matplotlib
    from bvsa_core.report.style import save

    if parsed.resamples < 0:
        raise UserError(f"--resamples is {parsed.resamples}; it must be at least 0")
    out = parsed.out or parsed.runs[0] / PAGE
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a file, such as {out / PAGE}")
    stay_offline()
    with Display() as display:
        folders, messages = find_runs(parsed.runs)
        rows = group_runs(folders)
        cache = RunDataCache(parsed.device, display)
        run_data_of = lambda config: cache.run_data(relocated(config, data=parsed.data, bank=parsed.bank))  # noqa: E731
        rows = with_curves(rows, run_data_of, parsed.resamples, display)
        decodings = decode_rows(rows, run_data_of, display) if parsed.decoding else []
        title = parsed.title or (parsed.runs[0].resolve().name if len(parsed.runs) == 1 else f"{len(folders)} runs")
        report = build_report(title, rows, origin(parsed.command_line), parsed.data, display)
        report = replace(report, decodings=decodings)
        report.missing.update({"runs": ". ".join(messages) + "."} if messages else {})
        written = save(report_figures(report), parsed.figures) if parsed.figures else []
    write_page(report, out)
    if written:
        say(f"{len(written) // 2} figures as PNG and PDF are in {parsed.figures}")


def write_page(report: Report, path: Path) -> None:
    """Write the page and print its path."""
    from bvsa_core.report.page import to_html  # imports matplotlib

    write_file(path, to_html(report).encode())
    say(f"the page is {path}")
