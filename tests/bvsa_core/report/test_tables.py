"""Tables: results are joined into rows, and every number has its protocol on a terminal of 80 columns."""

import io

import pytest
from results import run_result
from rich.console import Console

from bvsa_core.report import comparison_table
from bvsa_core.report.comparison_table import ComparisonRow
from bvsa_core.report.tables import caption, method_results, to_frame, to_markdown, to_rich

GATED = {"gate": "paper", "information": "uses labels"}


def test_seeds_and_subjects_are_averaged_and_protocols_kept_apart():
    results = [run_result([1, 1, 7, 200], "ubp", f"sub-0{i}", seed) for seed in range(2) for i in (1, 2)]
    results += [run_result([1, 2, 3, 4]), run_result([1, 1, 1, 1], **GATED)]
    ubp, bvsa, gated = method_results(results)
    assert (ubp.top1, ubp.top5, ubp.subjects, ubp.seeds) == (0.5, 0.5, 2, 2)
    assert ubp.map == pytest.approx((1 + 1 + 1 / 7 + 1 / 200) / 4) and ubp.median_rank == 4
    assert ubp.top1_interval[0] < 0.5 < ubp.top1_interval[1]
    assert bvsa.top1 == 0.25 and gated.top1 == 1.0 and gated.protocol.information == "uses labels"


def test_everything_fits_a_terminal_of_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    first = [1] * 200
    rescored = {"information": "label-free transductive", "rescoring": "sinkhorn", "texts": "shuffled"}
    oracle = {"selection": "oracle (upper bound, selected on test)", "setting": "inter-subject", "modality": "MEG"}
    results = [
        *(run_result(list(range(1, 201)), "vanilla", seed=seed) for seed in range(3)),
        *(run_result(first, seed=seed, **GATED) for seed in range(3)),
        run_result(first, **rescored),
        run_result(first, "bravl", note="fitted on gallery"),
        run_result(first, "ubp", **oracle),
    ]
    console.print(to_rich(method_results(results)))
    shown = console.export_text()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 80
    conditions = ("last, inductive", "last, uses labels", "gate paper", "transductive", "+ sinkhorn", "shuffled")
    oracle = ("oracle (upper", "bound, selected", "on test),")
    for part in (*conditions, *oracle, "fitted on gallery", "[100.0, 100.0]", "100.5"):
        assert part in shown


def test_names_from_files_are_neither_markup_nor_control_characters():
    console = Console(width=80, record=True, file=(output := io.StringIO()))
    named = method_results([run_result([1, 2], "ubp", note="[/b]\x1b[2J\u202e")])
    console.print(to_rich(named))
    assert r"[/b]\x1b[2J\u202e" in output.getvalue()
    rows = [ComparisonRow("eeg", "intra", "[/b] \x1b", "tsconv", named[0])]
    console.print(comparison_table.to_rich("[/i] \x1b]0;title", rows))
    assert r"[/b] \x1b" in output.getvalue() and r"[/i] \x1b]0;title" in output.getvalue()
    assert "\x1b" not in output.getvalue()


def test_a_frame_has_scores_intervals_and_the_protocol():
    results = [run_result([1, 1, 7, 200], "ubp"), run_result([1, 2, 3, 4], window=(0.0, 0.996), **GATED)]
    frame = to_frame(method_results(results)).set_index("method")
    assert frame["top1"].tolist() == [0.5, 0.25] and (frame["top1_low"] <= frame["top1"]).all()
    assert frame.loc["bvsa (corrected)", ["gate", "window"]].tolist() == ["paper", "0 to 0.996 s"]


def test_markdown_lists_the_conditions_under_the_table():
    text = to_markdown(method_results([run_result([1, 2, 3], "vanilla")]))
    assert text.startswith("| method | Top-1 % |") and "| last | inductive | none |" in text
    noted = to_markdown(method_results([run_result([1], "mcdb", note="reconstruction")]))
    assert noted.count("| mcdb (corrected), reconstruction |") == 1
    averaged = "17 channels (250 Hz, 0 to 0.996 s, source synthetic), 80 repetitions averaged, images by tiny"
    assert f"synthetic data, 200-way retrieval (chance 0.5 %), {averaged}" in text


def test_results_of_earlier_versions_join_those_that_know_their_recordings():
    old = run_result([1, 2], sampling_rate=None, window=None, source=None)
    older, new = run_result([1, 2], seed=2, window=None, source=None), run_result([1, 2], seed=1)
    (joined,) = method_results([old, older, new])
    assert joined.seeds == 3 and joined.protocol == new.protocol and joined.protocol.sampling_rate == 250
    assert caption(method_results([old])).count("unknown") == 3
    slow = run_result([1, 2], seed=2, sampling_rate=100.0)
    both = method_results([new, slow])
    assert [each.protocol.sampling_rate for each in both] == [250, 100]
    shown = "17 channels (250 Hz, 0 to 0.996 s, source synthetic; 100 Hz, 0 to 0.996 s, source synthetic), "
    assert shown in caption(both)
    for differing in ({"window": (0.0, 0.5)}, {"source": "osf_raw"}):
        assert len(method_results([old, new, run_result([1, 2], seed=3, **differing)])) == 3
