"""The table of a grid, from rows made by hand: footnotes, escapes, and absent values."""

import csv
import io
import re
from dataclasses import replace

import pytest
import results
from rich.console import Console
from rich.table import Table

from bvsa_core.errors import UserError
from bvsa_core.experiments import paper_results
from bvsa_core.report import comparison_table, tables
from bvsa_core.report.comparison_table import ComparisonRow, cells, notes
from bvsa_core.report.tables import MethodResult
from bvsa_core.retrieval.statistics import Comparison

PUBLISHED = paper_results.find("NICE", "eeg", "inter")


def entry(system: str = "nice", note: str = "", paper=PUBLISHED, setting: str = "inter", **protocol) -> ComparisonRow:
    under = results.protocol(**{"dataset": "THINGS-EEG2", "encoder": "RN50", **protocol})
    row = MethodResult("nice (corrected)", 0.25, (0.2, 0.3), 0.5, (0.4, 0.6), 0.3, 7.0, 10, 3, under, note)
    return ComparisonRow("eeg", setting, system, "tsconv", row, published=paper)


def test_notes_list_the_differences_only():
    row_with = lambda name: replace(entry(paper=paper_results.find(name, "eeg", "intra")), setting="intra")  # noqa: E731
    usual = row_with("UBP")
    assert notes(usual) == [] and notes(entry(paper=None)) == []
    ubp = lambda encoder: notes(replace(entry(paper=usual.published, encoder=encoder), setting="intra"))  # noqa: E731
    assert ubp("RN50/openai") == [] and ubp("RN50/random") == ["images by: ours RN50/random, published RN50"]
    assert notes(entry(selection="validation")) == [
        "selection: ours the best epoch on concepts held out of the training data",
        "channels: ours 17, published 63",
        "gallery: ours 200 images, published class centres",
        "images by: ours RN50, published not stated",
    ]
    oracle = {"selection": "oracle (upper bound, selected on test)", "dataset": "synthetic"}
    for note, part in zip(
        notes(entry(paper=None, note="reconstruction", **oracle)),
        ("not recorded from people", "reconstruction", "upper bound, selected on test"),
        strict=True,
    ):
        assert part in note
    csls = {"information": "label-free transductive", "rescoring": "csls", "channels": 63, "repetitions": 40}
    transductive, *deviations = notes(entry(paper=None, **csls))
    assert transductive.startswith("label-free transductive")
    assert deviations == ["ours: 63 channels; usual are 17", "ours: 40 test repetitions averaged; usual are 80"]
    assert "information: ours inductive, published uses labels" in notes(row_with("BVSA"))


def test_frames_have_the_records_of_the_csv_and_the_paired_tests():
    rows = [entry(), replace(entry("bvsa"), result=None)]
    frame = comparison_table.to_frame(rows)
    assert frame["top1"].tolist()[0] == 25.0 and frame["top1"].isna().tolist() == [False, True]
    assert list(frame.columns) == next(csv.reader(io.StringIO(comparison_table.to_csv(rows))))
    test = Comparison("bvsa", "ubp", 0.1, (-0.02, 0.2), 0.03, "subjects")
    frame = comparison_table.comparisons_frame([test])
    assert frame.loc[0].tolist() == ["bvsa", "ubp", 0.1, (-0.02, 0.2), 0.03, "subjects"]
    text = comparison_table.comparisons_text([test])
    assert "p (Wilcoxon over subjects, Holm)" in text and "| +10.0 [-2.0, +20.0] | 0.03 |" in text


WARNED = {
    "leak": ({"leak": "test data are trained on"}, "LEAK: test data are trained on (concepts or images, as"),
    "toy": ({"encoder": "tiny"}, "images by tiny: a toy encoder for synthetic images; take another with --vision"),
    "by hand": (
        {"gate": "label_free", "threshold": "margin:0.05", "information": "threshold by hand"},
        "threshold margin:0.05 by hand: not learnt on training recordings, so it may fit the test set",
    ),
}


@pytest.mark.parametrize("kind", WARNED)
def test_what_makes_a_score_no_test_is_in_every_table(kind):
    protocol, note = WARNED[kind]
    row = entry(paper=None, **protocol)
    (shown,) = notes(row)
    assert shown.startswith(note)
    mark = {"leak": "LEAK", "toy": "toy encoder", "by hand": "label_free margin:0.05 by hand"}[kind]
    for text in (
        comparison_table.to_markdown("", [row]),
        comparison_table.to_csv([row]),
        tables.to_markdown([row.result]),
    ):
        assert mark in text
    for table in (comparison_table.to_rich("", [row]), tables.to_rich([row.result])):
        assert set(mark.replace(":", " ").split()) <= set(rendered(table).replace(":", " ").replace(",", " ").split())
    assert mark.replace("_", r"\_") in comparison_table.to_latex("", [row])


def rendered(table: Table) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_the_sampling_rate_gallery_planned_seeds_and_unchecked_files_are_notes():
    assert notes(entry(paper=None, sampling_rate=250.0)) == []
    assert notes(entry(paper=None, gallery=50)) == ["ours: gallery of 50 images; usual are 200"]
    assert notes(entry(paper=None, sampling_rate=100.0)) == ["ours: recordings of 100 Hz; usual are 250 Hz"]
    assert "17 channels (100 Hz, 0 to 0.996 s, source ubp)" in tables.caption([entry(sampling_rate=100.0).result])
    assert "averaged (2 condition(s) with the image of another join it)" in tables.caption([entry(repeated=2).result])
    assert notes(replace(entry(paper=None), planned_seeds=3)) == []
    assert notes(replace(entry(paper=None), planned_seeds=5)) == ["ours: 3 seed(s); the grid plans 5"]
    assert notes(entry(paper=None, repeated=2)) == [
        "2 test condition(s) show the image of another: their recordings are averaged, and the image is in the gallery"
        " once"
    ]
    (joined,) = tables.method_results([results.run_result([1, 2]), results.run_result([1, 2], seed=1, files={})])
    row = ComparisonRow("eeg", "intra", "bvsa", result=joined)
    assert any("not checked: runs of an earlier version, whose files have no checksums" in note for note in notes(row))
    oracle = entry(paper=None, selection="oracle (upper bound, selected on test)")
    assert "oracle" in rendered(comparison_table.to_rich("", [oracle]))


def test_window_and_source_of_the_recordings_are_in_every_table():
    osf = {"sampling_rate": 100.0, "window": (0.0, 0.79), "source": "osf_preprocessed"}
    row = entry(paper=None, **osf)
    assert notes(row) == [
        "ours: recordings of 100 Hz; usual are 250 Hz",
        "ours: recordings from 0 to 0.79 s; usual are 0 to 1 s",
        "ours: recordings of the source osf_preprocessed; UBP and BVSA used those of ubp",
    ]
    assert notes(entry(paper=None, sampling_rate=100.0, window=(0.0, 0.99))) == notes(row)[:1]
    assert "our recordings: 100 Hz, 0 to 0.79 s, source osf_preprocessed" in comparison_table.to_markdown("", [row])
    (record,) = csv.DictReader(io.StringIO(comparison_table.to_csv([row])))
    assert (record["sampling_rate"], record["window"], record["source"]) == ("100.0", "0 to 0.79 s", "osf_preprocessed")
    earlier = entry(paper=None, **dict.fromkeys(osf))
    (note,) = notes(earlier)
    assert note.startswith("ours: recordings of unknown rate, unknown window, source unknown: a run of an earlier")
    assert "source unknown" in tables.caption([earlier.result])


def test_other_texts_and_galleries_are_marked_and_are_rows_of_their_own():
    other = {"gallery_of": "class centres", "texts_of": "captions.csv"}
    row = entry(**other)
    shown = notes(row)
    assert "texts of images: captions.csv, in place of prompts with the names of concepts" in shown
    assert "gallery of class centres: no scores of the test images themselves; compare like with like" in shown
    assert not any(note.startswith("gallery: ours") for note in shown)  # NICE's, which is published, is the same
    assert "gallery: ours class centres, published 200 images" in notes(
        entry(paper=paper_results.find("UBP", "eeg", "inter"), **other)
    )
    mark = "none, texts: captions.csv, gallery of class centres"
    assert mark in comparison_table.to_markdown("", [row]) and mark in tables.to_markdown([row.result])
    (record,) = csv.DictReader(io.StringIO(comparison_table.to_csv([row])))
    assert (record["texts_of"], record["gallery_of"]) == ("captions.csv", "class centres")
    runs = [results.run_result([1, 2]), results.run_result([1, 2], **other)]
    assert [each.protocol.gallery_of for each in tables.method_results(runs)] == [None, "class centres"]


@pytest.mark.parametrize("method", ["NICE", "ATM-S"])
def test_channels_are_compared_with_those_of_the_published_system(method):
    paper = paper_results.find(method, "eeg", "intra")
    about = lambda channels: [note for note in notes(entry(paper=paper, channels=channels)) if "channels" in note]  # noqa: E731
    assert about(17) == ["channels: ours 17, published 63"] and about(63) == []


def test_deviations_from_the_released_code_are_footnotes():
    row = entry(paper=None)
    row = replace(row, result=replace(row.result, deviations=["trains all epochs", "settings: epochs 3 (50)"]))
    assert notes(row) == ["nice (corrected): trains all epochs", "nice (corrected): settings: epochs 3 (50)"]
    assert row.result.deviations[0] in comparison_table.to_csv([row])


def test_footnotes_are_numbered_by_appearance():
    table, footnotes = cells([entry(), entry(repetitions=40), entry()])
    assert [row[-1] for row in table] == ["1 2 3 4", "1 2 3 4 5", "1 2 3 4"]
    assert len(footnotes) == len(set(footnotes)) == 5


def test_published_scores_stay_in_their_columns():
    absent = ComparisonRow("meg", "inter", "SAMGA", published=paper_results.find("SAMGA", "meg", "inter"))
    failed = ComparisonRow("eeg", "intra", "ubp", "eeg_project", missing=2, cells=6)
    records = list(csv.DictReader(comparison_table.to_csv([absent, failed, entry()]).splitlines()))
    assert (records[0]["top1"], records[0]["published_top1"], records[0]["published_top5"]) == ("", "6.1", "16.6")
    assert (records[1]["top1"], records[1]["published_top1"]) == ("", "") and records[2]["top1_high"] == "30.0"
    text = comparison_table.to_markdown("A | B", [absent, failed, entry(system="a|b")])
    assert "2 of 6 cells missing" in text and "a&#124;b" in text and "| 25.0 [20.0, 30.0] | 50.0 [40.0, 60.0] |" in text
    assert paper_results.find("SAMGA", "meg", "intra") and paper_results.find("NICE", "meg", "intra") is None
    with pytest.raises(UserError, match="unknown published row 'SAMBA'; did you mean 'SAMGA'\\? choose one of BraVL"):
        paper_results.check("SAMBA")


def test_every_published_result_has_its_selection_and_source():
    """Also those whose names have a slash, as the rows of tables have."""
    places = [(modality, setting) for modality in ("eeg", "meg") for setting in ("intra", "inter")]
    for name in paper_results.known():
        results_of_name = [paper for place in places if (paper := paper_results.find(name, *place))]
        assert results_of_name, name
        for paper in results_of_name:
            assert paper.selection and paper.source and 0 < paper.top1 < paper.top5 < 100, name
    tuned = paper_results.find("SAMGA ViT-B/32 + LoRA", "eeg", "intra")
    assert (tuned.method, tuned.top1) == ("SAMGA ViT-B/32 + LoRA", 82.68)
    absent = ComparisonRow("eeg", "intra", "SAMGA", published=paper_results.find("SAMGA", "eeg", "intra"))
    (record,) = csv.DictReader(io.StringIO(comparison_table.to_csv([absent])))
    assert (record["published_selection"], record["published_source"]) == ("best on test", "arXiv 2604.17782")
    assert "| SAMGA 2026 | best on test | 91.3 | 98.8 |" in comparison_table.to_markdown("", [absent])
    console = Console(width=80, file=io.StringIO())
    console.print(comparison_table.to_rich("", [entry(), absent]))
    assert "best on test" in console.file.getvalue()


def test_latex_prints_every_character():
    assert comparison_table.escape("\x1b[31m") == r"\textbackslash{}x1b[31m"
    assert comparison_table.escape(r"50 % & $1_2 {x}^# ~ \n") == (
        r"50 \% \& \$1\_2 \{x\}\textasciicircum{}\# \textasciitilde{} \textbackslash{}n"
    )  # fmt: skip
    text = comparison_table.to_latex("Every & all", [entry(system="a_b & c%"), entry(setting="intra")])
    rules = [text.count(rf"\{name}rule") for name in ("top", "mid", "bottom")]
    assert r"a\_b \& c\%" in text and rules == [1, 2, 1]
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1]
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    assert all(len(re.split(r"(?<!\\)&", line)) == len(columns) for line in body.splitlines() if line.endswith(r"\\"))


def test_subjects_and_statistics_are_means_over_seeds():
    statistics = lambda value: {"hubness": {"k": 10, "skewness": value}, "galleries": [{"size": 2, "top1": value}]}  # noqa: E731
    of_runs = [
        results.run_result([1, 9], subject="sub-02", statistics=statistics(0.5)),
        results.run_result([1, 1], statistics=statistics(1.0)),
        results.run_result([2, 6], statistics=statistics(0.0)),
    ]
    assert comparison_table.subject_rows(of_runs) == {"sub-01": (0.5, 0.75), "sub-02": (0.5, 0.5)}
    assert comparison_table.mean_statistics(of_runs) == {
        "hubness": {"k": 10, "skewness": 0.5},
        "galleries": [{"size": 2, "top1": 0.5}],
    }
