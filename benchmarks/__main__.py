"""Run the suites and save their rows: python -m benchmarks --device cpu|cuda --json FILE [--suite blur]."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path

import pytest
import torch

from benchmarks.figure import draw
from benchmarks.harness import PACKAGES, rows_of, table, versions

HERE = Path(__file__).parent
SUITES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
    parser.add_argument("--json", type=Path, help="file for the rows; a figure is drawn beside it")
    parser.add_argument("--suite", choices=SUITES, action="append", help="one suite, may be repeated; default: all")
    parser.add_argument("--select", default="", help="pytest's -k: only benchmarks whose name contains this")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is available")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        files = [str(HERE / f"bench_{suite}.py") for suite in chosen.suite or SUITES]
        options = [f"--device={chosen.device}", f"--benchmark-json={report}", "-q", "--no-header", "-pno:cacheprovider"]
        naming = ["-o", "python_functions=bench_*", "-o", "python_files=bench_*.py", "-k", chosen.select]
        code = pytest.main([*files, *options, *naming])
        if not report.exists() or not report.read_text():
            return int(code) or 1
        rows = rows_of(json.loads(report.read_text()), torch.device(chosen.device))
    not_installed = [name for name in PACKAGES if name not in versions()]
    print(table(rows))
    print(f"\nnot installed: {', '.join(not_installed) or 'none'}")
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"date": date.today().isoformat(), "device": chosen.device, "not_installed": not_installed}
        content |= {"rows": [asdict(row) for row in rows]}
        chosen.json.write_text(json.dumps(content, indent=1) + "\n")
        draw(rows, chosen.json.with_suffix(".png"))
        print(f"\nwritten to {chosen.json} and {chosen.json.with_suffix('.png')}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
