"""Results of runs and their protocol, with common values where a test does not care."""

from bvsa_core.report.comparison_table import ComparisonRow
from bvsa_core.report.content import ReportRow, RunSummary
from bvsa_core.report.tables import method_results
from bvsa_core.retrieval.result import RunResult
from bvsa_core.retrieval.scoring import Protocol


def protocol(**changes) -> Protocol:
    common = {
        "dataset": "synthetic", "selection": "last", "information": "inductive", "gate": "none",
        "gallery": 200, "channels": 17, "repetitions": 80, "encoder": "tiny",
        "sampling_rate": 250.0, "window": (0.0, 0.996),
        "source": "ubp" if changes.get("dataset", "synthetic") != "synthetic" else "synthetic",
    }  # fmt: skip
    return Protocol(**{**common, **changes})


def run_result(ranks: list[int], method: str = "bvsa", subject: str = "sub-01", seed: int = 0, **rest) -> RunResult:
    """`rest`: fields of `RunResult`, and conditions of its protocol."""
    own = {name: rest.pop(name) for name in ("note", "statistics", "files") if name in rest}
    return RunResult(
        method=method,
        preset="corrected",
        subject=subject,
        seed=seed,
        ranks=ranks,
        protocol=protocol(**rest),
        **{"files": {"weights.safetensors": "0"}, **own},
    )


def report_row(system: str = "bvsa", published=None, note: str = "", **protocol) -> ReportRow:
    protocol = {"gallery": 3, "setting": "intra-subject", "modality": "EEG", **protocol}
    results = [run_result([1, 2, 1], **protocol), run_result([3, 1, 1], subject="sub-02", **protocol)]
    (row,) = method_results(results)
    spread = {"resamples": 2, "top1_std": 0.1, "top5": 1.0, "top5_std": 0.0}
    blur = [{"k51 gain 0.5": 10 - n, "k45 gain 1": n} for n in (1, 2, 3)]
    epochs = enumerate(blur, start=1)
    details = {
        "metrics": [{"epoch": n, "loss": 3.0 / n, "validation_loss": 4.0 / n, "blur": counts} for n, counts in epochs],
        "settings": {"epochs": 3, "note": note},
        "finished": "2026-01-01",
        "repetition_curve": [{"averaged": n, "top1": n / 9, **spread} for n in (1, 2, 4)],
    }
    runs = [RunSummary(each.subject, each, **details) for each in results]
    comparison = ComparisonRow("eeg", "intra", system, "eeg_project", row, cells=2, published=published)
    return ReportRow(system, system, comparison, runs)
