"""The page and its figures, from content made by hand: escaping, completeness and messages about missing parts."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from results import report_row

from bvsa_core.experiments import paper_results
from bvsa_core.report.comparison_table import ComparisonRow
from bvsa_core.report.content import BlurExample, GalleryImage, RecordingExamples, Report, ReportRow, RetrievalExample
from bvsa_core.report.page import headlines, misses, to_html
from bvsa_core.report.result_figures import blur_shares, learnt_curves, report_figures, subject_bars
from bvsa_core.report.style import PALETTE, save
from bvsa_core.retrieval.statistics import Comparison

EVIL = '</script><img src=x onerror="alert(1)"><!-- $\\no{ $'
VOID = {"meta", "link", "img", "input", "br"}


class ElementParser(HTMLParser):
    """Collects elements as (name, attributes) and checks that every element is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag


@pytest.fixture(scope="module")
def report() -> Report:
    """A report of two systems; the name of one attacks the page."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "JPEG")
    image = file.getvalue()
    gallery = [GalleryImage(f"test_images/{name}/a.jpg", name, image) for name in ("dog", EVIL, "cat")]
    published = paper_results.find("BVSA", "eeg", "intra")
    gated = replace(report_row("gated", gate="paper", information="uses labels"), number=1)
    rows = [report_row(EVIL, published, note=EVIL), gated]
    data, top, scores = rows[0].comparison.data, [[0, 1, 2], [2, 1, 0], [2, 0, 1]], [[0.5, 0.25, 0.1]] * 3
    retrieval = RetrievalExample(EVIL, data, "sub-01", 0, [0, 1, 2], [1, 2, 1], top, scores, np.eye(3))
    blurred = replace(retrieval, views=[0, 1, 2], view_level=EVIL, recordings=0)
    other = replace(retrieval, label="gated", ranks=[2, 2, 3], top=[[1, 0, 2]] * 2 + [[1, 0, 2]], row=1)
    values = np.arange(60.0).reshape(3, 5, 4) - 30
    channels = ["Oz", "O1", "O2", "POz", EVIL]
    recordings = RecordingExamples(EVIL, values, [-0.1, 0.0, 0.1, 0.2], channels, 63, EVIL)
    levels, images = ["k45 gain 1", "k51 gain 0.5"], np.zeros((1, 3, 8, 8, 3), np.uint8)
    blur = BlurExample(EVIL, levels, [0.3, None], [EVIL], images, [[image] * 3], "falloff exp, decay 3")
    provenance = {"command": EVIL}
    examples = [blurred, other], [recordings], [blur]
    return Report(f"Title {EVIL}", rows, gallery, *examples, {"images": EVIL}, provenance)


@pytest.fixture(scope="module")
def page(report) -> str:
    return to_html(report)


def data_of(page: str) -> dict:
    """Read the data of the page's script."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def text_of(html: str) -> str:
    """Return text without tags, each run of white space as one space."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


@pytest.fixture(scope="module")
def elements(page) -> list[tuple[str, dict]]:
    return ElementParser(page).elements


def test_content_of_files_is_escaped(page, elements):
    assert not [attributes for _, attributes in elements if any(name.startswith("on") for name in attributes)]
    assert [attributes.get("type") for tag, attributes in elements if tag == "script"] == ["application/json", None]
    sources = [attributes["src"] for tag, attributes in elements if tag == "img"]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "<img src=x" not in page and page.count("<!--") == 0
    data = data_of(page)
    assert data["images"]["1"][0] == EVIL and data["runs"][0]["top"][1] == [2, 1, 0]
    assert data["runs"][0]["level"] == data["recordings"][0]["units"] == EVIL


def test_nothing_is_fetched_and_only_the_pages_own_script_runs(page):
    without_data = re.sub(r'data:image/\w+;base64,[A-Za-z0-9+/=\s]+|"(values|map)": "[A-Za-z0-9+/=]+"', "", page)
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", without_data)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", policy)


def test_a_leak_and_the_sampling_rate_are_on_the_page():
    row = report_row(leak="test data are trained on", sampling_rate=100.0)
    page = to_html(Report("", [row, report_row("other", sampling_rate=250.0)]))
    assert "gate none, LEAK" in page and "LEAK: test data are trained on" in page
    assert "100 Hz" in page and "250 Hz" in page
    toy = to_html(Report("", [report_row(dataset="THINGS-EEG2", encoder="tiny")]))
    assert "gate none, toy encoder" in toy and "take another with --vision, such as RN50" in toy
    earlier = to_html(Report("", [report_row(sampling_rate=None, window=None, source=None)]))
    assert "unknown sampling rate · unknown window · unknown source" in earlier


def test_every_number_has_its_protocol_and_published_numbers_are_separate(page):
    shared = re.search(r'<p class="shared">(.*?)</p>', page)[1]
    assert shared == (
        "synthetic data · EEG · intra-subject · 3-way · 17 channels · 250 Hz · 0 to 0.996 s · source synthetic"
        " · 80 repetitions averaged · images by tiny · brain encoder eeg_project"
    )
    table = page.split('<table class="results">')[1].split("</table>")[0]
    assert '<span class="tag warn">uses labels</span>' in table and "gate paper" in table
    assert table.count("selection last") == 2
    first, second = table.split("<tr data-row")[1:]
    assert (
        '<td class="n paper" data-value="58.2">58.2</td>' in first
        and "BVSA 2026" in first
        and 'class="n paper"' not in second
    )
    assert '66.7<span class="interval">' in first and "Chance: Top-1 33.3 %, Top-5 100 %" in page
    assert "do not compare them with published scores" in page
    assert "blur helps here because blur was put in" in page
    assert "What synthetic data tell" not in to_html(Report("", [report_row(dataset="THINGS-EEG2")]))
    assert "information: ours inductive, published uses labels" in page


def test_page_works_with_a_screen_reader_and_the_keyboard(page, elements):
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in elements if tag == "th")
    assert all("alt" in attributes for tag, attributes in elements if tag == "img")
    labels = [attributes["aria-label"] for _, attributes in elements if attributes.get("role") == "img"]
    assert len(labels) == page.count("<svg") == 7 and all(len(label) > 40 for label in labels)
    regions = [attributes for _, attributes in elements if attributes.get("role") == "region"]
    assert regions and all("tabindex" in region and "aria-label" in region for region in regions)
    targets = {attributes["href"][1:] for tag, attributes in elements if tag == "a"}
    assert targets <= {attributes["id"] for _, attributes in elements if "id" in attributes}
    assert not any(colour in page.split("</style>", 1)[1] for colour in PALETTE)


def test_text_has_enough_contrast_in_both_themes(page):
    """At least 4.5 to 1, as WCAG 2 level AA requires of text."""
    colours = dict(re.findall(r"--(\w+): light-dark\((#\w{6}, #\w{6})\)", page))

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for theme in (0, 1):
        values = {name: luminance(pair.split(", ")[theme]) for name, pair in colours.items()}
        for name in ("ink", "quiet", "link", "correct", "warn"):
            for ground in ("paper", "raised"):
                low, high = sorted((values[name], values[ground]))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground, theme)


def test_the_headline_is_the_best_fair_row_with_interval_chance_and_n(report, page):
    (best,) = headlines(report)
    row = best.row
    assert row is report.rows[0] and (best.images, best.rows) == (3, 1)  # the other row uses labels
    headline = text_of(page.split('<div class="headlines">')[1].split("</header>")[0])
    low, high = (f"{100 * bound:.1f}" for bound in row.result.top1_interval)
    assert headline.startswith("66.7 % Top-1 ") and "the only inductive row" in headline
    times = "\N{MULTIPLICATION SIGN}"
    assert f"95 % interval {low} to {high} %; chance 33.3 %" in headline
    assert f"n = 3 test images {times} 2 subjects {times} 1 seed" in headline
    unfair = [report_row("a", information="uses labels"), report_row("b", leak="x"), report_row("c", texts="shuffled")]
    unfair.append(report_row("d", selection="oracle (test set)"))
    assert headlines(Report("", unfair))[0].row is None
    fair = [report_row("a"), replace(report_row("b"), number=1)]
    assert "the best of 2 inductive rows" in to_html(Report("", fair))
    assert "No row is a fair test" in to_html(Report("", unfair))


def test_inductive_and_transductive_scores_stand_side_by_side():
    rescored = {"rescoring": "whitening,csls", "information": "label-free transductive"}
    bijection = {"rescoring": "hungarian", "information": "label-free transductive, assumes a bijection"}
    rows = [report_row(**rescored), report_row(), report_row(**bijection), report_row("ubp")]
    better = [replace(run, result=replace(run.result, ranks=[1, 1, 1])) for run in rows[0].runs]
    rows[0] = replace(rows[0], runs=better)
    page = to_html(Report("", [replace(row, number=number) for number, row in enumerate(rows)]))
    table = page.split('<table class="results">')[1].split("</table>")[0]
    order = re.findall(r'<tr data-row="(\d)"( class="rescored")?', table)
    assert order == [("1", ""), ("3", ""), ("0", ' class="rescored"'), ("2", ' class="rescored"')]
    side = page.split("side by side</h3>")[1].split("</table>")[0]
    (line, second) = re.findall(r"<tr>\n(.*?)</tr>", side.split("<tbody>")[1], re.DOTALL)
    assert text_of(line).startswith("bvsa 66.7") and "whitening + csls" in line and "+33.3 [" in line
    assert "hungarian assumes a bijection 66.7" in text_of(second) and "+0.0 [+0.0, +0.0]" in second
    assert "ubp" not in text_of(side) and "Hatched: transductive" in page
    alone = to_html(Report("", [report_row(), report_row("other")]))
    assert "side by side" not in alone and "Hatched" not in alone


def test_paired_comparisons_are_on_the_page_or_why_there_are_none():
    test = Comparison("bvsa", "vanilla", 0.1, (0.02, 0.18), 0.031, "test images")
    page = to_html(Report("", [report_row()], comparisons={"EEG": [test], "MEG": "no test: nothing to compare"}))
    shown = text_of(page)
    assert "bvsa vanilla +10.0 [+2.0, +18.0] 0.031" in shown and "of other images of the same subjects" in shown
    assert "Paired comparisons, MEG no test: nothing to compare." in shown


def test_misses_are_grouped_by_rank_and_by_the_first_image(report, page):
    first, second = (misses(report, retrieval) for retrieval in report.retrievals)
    np.testing.assert_allclose(first.shares, [2 / 3, 1 / 3, 0, 0, 0])
    assert first.instead == [] and second.instead == [(EVIL, 2)]  # once each is no group
    far = replace(report.retrievals[0], ranks=[7, 50, 51])
    np.testing.assert_allclose(misses(report, far).shares, [0, 0, 1 / 3, 1 / 3, 1 / 3])
    table = text_of(page.split('<table class="misses">')[1].split("</table>")[0])
    assert "1 2 to 5 6 to 10 11 to 50 51 or more most often first instead" in table
    assert "gated, sub-01, seed 0 0.0 100.0 0.0 0.0 0.0" in table


def test_pairs_of_runs_are_compared_image_by_image(report, page):
    table = text_of(page.split('<table class="pairs">')[1].split("</table>")[0])
    assert table.endswith("gated, sub-01, seed 0 0 2 0 1 0.5")
    assert data_of(page)["pairs"] == {"0 1": [0, 2, 0, 1, 0.5]}
    elsewhere = replace(report.retrievals[1], targets=[2, 1, 0])
    apart = to_html(replace(report, retrievals=[report.retrievals[0], elsewhere]))
    assert 'class="pairs"' not in apart and data_of(apart)["pairs"] == {}


def test_recordings_are_on_the_page_as_bytes(report, page):
    (sent,) = data_of(page)["recordings"]
    whole = np.frombuffer(base64.b64decode(sent["values"]), np.int8).reshape(3, 5, 4)
    np.testing.assert_allclose(whole * sent["scale"] / 127, report.recordings[0].values, atol=sent["scale"] / 254)
    assert sent["times"] == [-100, 0, 100, 200] and sent["about"] == "5 of 63 channels"
    weights = np.frombuffer(base64.b64decode(sent["map"]), np.int8).reshape(sent["side"], sent["side"], 5)
    far = weights == -128
    assert far[0].all() and not far.all() and (weights[..., 4][~far[..., 4]] == 0).all()
    assert [run["recordings"] for run in data_of(page)["runs"]] == [0, None]
    unplaced = replace(report.recordings[0], channels=[f"MEG{i}" for i in range(5)])
    (sent,) = data_of(to_html(replace(report, recordings=[unplaced])))["recordings"]
    assert (sent["map"], sent["side"]) == ("", 0)


def test_the_page_is_readable_without_javascript(page):
    static = page.split("<noscript>")[1].split("</noscript>")[0]
    assert static.count('<li class="query">') == 3 and static.count('<li class="correct">') == 3
    assert text_of(static).count("✓") == 3 and 'alt="seen: dog"' in static


def test_parts_of_figures_belong_to_rows(page):
    assert {"0", "1"} <= set(re.findall(r'<g data-rows="(\d+)">', page))
    assert re.findall(r'<tr data-row="(\d+)">', page) == ["0", "1"]


def test_many_figures_of_a_section_unfold(report, page):
    assert "figures more" not in page
    blur = [replace(report_row(f"method {i}"), number=i) for i in range(8)]
    rows = [replace(row, runs=[replace(run, folder=f"{row.label} {run.folder}") for run in row.runs]) for row in blur]
    many = to_html(Report("", rows)).split('<section id="blur"')[1].split("</section>")[0]
    shown, unfold = many.split("<summary>2 figures more</summary>")
    assert shown.count("<figure") == 6 and unfold.count("<figure") == 2


def test_missing_parts_are_reported(report):
    row = replace(report.rows[0], runs=[replace(run, metrics=[], repetition_curve=None) for run in report.rows[0].runs])
    empty = ReportRow("none", "none", ComparisonRow("eeg", "intra", "none", missing=2, cells=6), [])
    bare = to_html(Report("Bare", [row, empty]))
    assert "recorded no metrics" in bare and "No training here changes its blur level" in bare
    assert "nothing to retrieve" in bare and "No curve over test repetitions" in bare
    assert "2 of 6 cells missing" in bare


def test_figures_are_saved_as_png_and_pdf(report, tmp_path):
    plain = replace(report, retrievals=[replace(report.retrievals[0], label="bvsa")])
    written = save(report_figures(plain), tmp_path / "figures")
    data = "synthetic-eeg-intra-subject"
    for name in (f"accuracy-{data}", "training", f"similarity-{data}", "retrieved"):
        assert {f"{name}.png", f"{name}.pdf"} <= {path.name for path in written}
    for path in written:
        if path.suffix == ".png":
            pixels = np.asarray(Image.open(path).convert("L"))
            assert pixels.shape[1] == 1000 and pixels.std() > 3
        else:
            assert path.read_bytes().startswith(b"%PDF-") and path.read_bytes().rstrip().endswith(b"%%EOF")


def test_shares_are_means_over_runs_and_many_levels_are_merged():
    row = report_row()
    levels, shares, merged = blur_shares(row.runs)
    assert levels == ["k45 gain 1", "k51 gain 0.5"] and not merged
    np.testing.assert_allclose(shares, [[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]], rtol=1e-12)
    many = {f"k{size} gain {gain / 10:g}": 1 for size in (45, 47) for gain in range(8)}
    levels, shares, merged = blur_shares([replace(row.runs[0], metrics=[{"blur": many}])])
    assert merged and levels == ["k45", "k47"] and shares.tolist() == [[0.5], [0.5]]
    assert blur_shares([replace(row.runs[0], metrics=[{"blur": {"k1 gain 0": 7}}])]) is None


def test_the_page_shows_what_blur_was_learnt_by_each_subject():
    def blur(sigma: float, gain: float) -> dict[str, float]:
        return {"sigma": sigma, "gain": gain}

    row = report_row("ubp")
    histories = [  # of two runs: of one subject, and of two others
        [{"sub-01": blur(8.0 - n, 0.5), "mean": blur(8.0 - n, 0.5)} for n in range(3)],
        [{"sub-01": blur(6.0, 0.3), "sub-02": blur(2.0, 0.1), "mean": blur(4.0, 0.2)} for _ in range(3)],
    ]
    runs = []
    for run, history in zip(row.runs, histories):
        metrics = [{"epoch": n, "loss": 1.0, "learnt_blur": each} for n, each in enumerate(history, start=1)]
        runs.append(replace(run, metrics=metrics))
    curves = learnt_curves(runs)
    assert list(curves) == ["sub-01", "sub-02", "mean"]
    assert curves["sub-01"] == pytest.approx(np.array([[7.0, 6.5, 6.0], [0.4, 0.4, 0.4]]))
    assert list(learnt_curves(runs[:1])) == ["sub-01"]
    text = to_html(Report("", [replace(row, runs=runs)]))
    assert "Learnt blur, ubp" in text and "sub-01 sigma 6.0 pixels, gain 0.40; sub-02 sigma 2.0 pixels" in text
    assert "No training here changes its blur level" not in text


def test_bars_are_of_subjects_and_their_mean():
    bars = subject_bars(report_row(), 1)
    assert list(bars) == ["mean", "sub-01", "sub-02"]
    assert [round(value) for value, _, _ in bars.values()] == [67, 67, 67]
    assert all(low <= value <= high for value, low, high in bars.values())
