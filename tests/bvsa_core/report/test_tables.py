"""Tables: what is joined into a row, and that every number shows its protocol on a terminal of 80 columns."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bvsa_core.report.tables import method_results, to_markdown, to_rich


def result(method: str, seed: int, ranks: list[int], gate: str = "none", subject: str = "sub-01") -> dict:
    information = "uses labels" if gate == "paper" else "inductive"
    protocol = {
        "dataset": "synthetic", "selection": "last", "information": information, "gate": gate,
        "gallery": 200, "channels": 17, "repetitions": 80, "encoder": "tiny",
    }  # fmt: skip
    return {
        "method": method,
        "preset": "corrected",
        "subject": subject,
        "seed": seed,
        "ranks": ranks,
        "protocol": protocol,
    }


def test_seeds_and_subjects_are_averaged_and_protocols_kept_apart():
    table = method_results(
        [
            *(
                result("ubp", seed, [1, 1, 7, 200], subject=subject)
                for seed in range(2)
                for subject in ("sub-01", "sub-02")
            ),
            result("bvsa", 0, [1, 2, 3, 4]),
            result("bvsa", 0, [1, 1, 1, 1], gate="paper"),
        ]
    )
    ubp, bvsa, gated = table
    assert (ubp.top1, ubp.top5, ubp.subjects, ubp.seeds) == (0.5, 0.5, 2, 2)
    assert ubp.map == pytest.approx((1 + 1 + 1 / 7 + 1 / 200) / 4) and ubp.median_rank == 4
    assert ubp.top1_interval[0] < 0.5 < ubp.top1_interval[1]
    assert bvsa.top1 == 0.25 and gated.top1 == 1.0 and gated.protocol["information"] == "uses labels"


def test_everything_fits_a_terminal_of_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    results = [result("vanilla", seed, list(range(1, 201))) for seed in range(3)]
    results += [result("bvsa", seed, [1] * 200, gate="paper") for seed in range(3)]
    rescored = result("bvsa", 0, [1] * 200)
    rescored["protocol"] |= {"information": "label-free transductive", "rescoring": "sinkhorn", "texts": "shuffled"}
    oracle = result("ubp", 0, [1] * 200)
    oracle["protocol"] |= {
        "selection": "oracle (upper bound, selected on test)",
        "setting": "inter-subject",
        "modality": "MEG",
    }
    results += [rescored, {**result("bravl", 0, [1] * 200), "note": "fitted on gallery"}, oracle]
    console.print(to_rich(method_results(results)))
    shown = console.export_text()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 80
    parts = (
        "last, inductive",
        "last, uses labels",
        "gate paper",
        "transductive",
        "+ sinkhorn",
        "shuffled",
        "fitted on gallery",
    )
    for part in (*parts, "[100.0, 100.0]", "100.5"):
        assert part in shown
    assert "oracle (upper" in shown and "bound, selected" in shown and "on test)," in shown


def test_markdown_names_the_conditions_under_the_table():
    text = to_markdown(method_results([result("vanilla", 0, [1, 2, 3])]))
    assert text.startswith("| method | Top-1 % |") and "| last | inductive | none |" in text
    assert (
        to_markdown(method_results([{**result("mcdb", 0, [1]), "note": "reconstruction"}])).count(
            "| mcdb (corrected), reconstruction |"
        )
        == 1
    )
    assert (
        "synthetic data, 200-way retrieval (chance 0.5 %), 17 channels, 80 repetitions averaged, images by tiny" in text
    )
