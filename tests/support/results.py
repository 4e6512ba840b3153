"""Results of runs and their protocol, with common values where a test does not care."""

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
