"""Draw docs/retrieved.jpg for the README, what a run of the demo retrieves: python scripts/readme_retrieved.py [RUN]"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from bvsa_core.experiments.report_data import build_report, find_runs, group_runs
from bvsa_core.report.image_figures import retrieval_figure
from bvsa_core.report.style import save

OUTPUT = Path(__file__).parents[1] / "docs" / "retrieved.jpg"
RUN = Path("bvsa_runs", "demo", "eeg-intra", "bvsa_tiny_eeg-project", "sub-01_seed0")


def main(run: Path = RUN, output: Path = OUTPUT) -> None:
    """Draw the figure of `run` into `output`."""
    folders, _ = find_runs([run])
    report = build_report("", group_runs(folders), {})
    figure = retrieval_figure(report, report.retrievals[0])
    with TemporaryDirectory() as folder:
        png, _ = save([figure], Path(folder))
        Image.open(png).convert("RGB").save(output, quality=85, optimize=True)
    print(figure.caption)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
