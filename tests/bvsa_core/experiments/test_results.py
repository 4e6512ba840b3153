"""Which rows of a grid are compared with each other."""

import results

from bvsa_core.experiments.results import GridRow, comparisons

CSLS = {"rescoring": "csls", "information": "label-free transductive"}


def row(system: str, better: int = 0, baseline: str | None = None, **protocol) -> GridRow:
    """Return a row of one subject that finds the first 3 of 20 images, and so many better."""
    ranks = [1] * (3 + better) + [2] * (17 - better)
    report_row = results.report_row(system, **protocol)
    return GridRow(report_row.comparison, [results.run_result(ranks, gallery=20, **protocol)], baseline=baseline)


def test_rows_are_compared_with_their_own_baseline_of_the_same_rescoring():
    rows = [
        row("vanilla"), row("vanilla", 1, **CSLS),
        row("ubp", 8, "vanilla"), row("ubp", 9, "vanilla", **CSLS),
        row("LoRA", 6, "vanilla"), row("LoRA + blur", 12, "LoRA"),
    ]  # fmt: skip
    names = [f"{each.comparison.system}{'*' if each.joined.protocol.rescoring else ''}" for each in rows]
    tests = comparisons(rows, names)
    data = rows[0].comparison.data
    assert list(tests) == [data, f"{data}, rescored by csls"]
    plain, rescored = (
        [(test.first, test.second, round(test.difference, 3)) for test in part] for part in tests.values()
    )
    assert plain == [("ubp", "vanilla", 0.4), ("LoRA", "vanilla", 0.3), ("LoRA + blur", "LoRA", 0.3)]
    assert rescored == [("ubp*", "vanilla*", 0.4)]
    assert {test.over for part in tests.values() for test in part} == {"test images"}


def test_two_rows_answer_whether_the_blur_helps_and_gates_are_compared_alike():
    rows = [row("LoRA", 6, "vanilla"), row("LoRA + blur", 12, "LoRA"), row("other", 9)]
    (part,) = comparisons(rows[:2], ["LoRA", "LoRA + blur"]).values()
    assert [(test.first, test.second) for test in part] == [("LoRA + blur", "LoRA")]
    (part,) = comparisons([rows[0], rows[2]], ["LoRA", "other"]).values()  # without a baseline, every pair
    assert [(test.first, test.second) for test in part] == [("LoRA", "other")]
    gates = [
        row("c = 0.5"),
        row("c = 0.5", gate="always"),
        row("c = 0.1", 6, "c = 0.5"),
        row("c = 0.1", 8, "c = 0.5", gate="always"),
    ]
    (part,) = comparisons(gates, ["a", "b", "c", "d"]).values()
    assert [(test.first, test.second) for test in part] == [("c", "a"), ("d", "b")]
