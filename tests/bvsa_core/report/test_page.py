"""The page and its figures, from content made by hand: what is escaped, what is there, and what is said to be missing."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from results import run_result

from bvsa_core.experiments import paper_results
from bvsa_core.report.comparison_table import ComparisonRow
from bvsa_core.report.content import BlurExample, GalleryImage, Report, ReportRow, RetrievalExample, RunSummary
from bvsa_core.report.page import to_html
from bvsa_core.report.result_figures import bars_of, blur_shares, drawings
from bvsa_core.report.style import PALETTE, save
from bvsa_core.report.tables import method_results

EVIL = '</script><img src=x onerror="alert(1)"><!-- $\\no{ $'


class Checked(HTMLParser):
    """Elements by name with their attributes; every one is closed where it has to be."""

    VOID = {"meta", "link", "img", "input", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag


def a_line(system: str = "bvsa", beside=None, **protocol) -> ReportRow:
    protocol = {"gallery": 3, "setting": "intra-subject", "modality": "EEG", **protocol}
    results = [run_result([1, 2, 1], **protocol), run_result([3, 1, 1], subject="sub-02", **protocol)]
    (row,) = method_results(results)
    curve = [
        {"averaged": n, "resamples": 2, "top1": n / 9, "top1_std": 0.1, "top5": 1.0, "top5_std": 0.0} for n in (1, 2, 4)
    ]
    metrics = [
        {"epoch": n, "loss": 3.0 / n, "blur": {"k51 gain 0.5": 10 - n, "k45 gain 1": n}, "validation_loss": 4.0 / n}
        for n in (1, 2, 3)
    ]
    made = {"metrics": metrics, "settings": {"epochs": 3, "note": EVIL}, "finished": "2026-01-01", "repetitions": curve}
    runs = [RunSummary(each.subject, each.subject, each.seed, each.ranks, **made) for each in results]
    return ReportRow(
        system, system, ComparisonRow("eeg", "intra", system, "eeg_project", row, cells=2, published=beside), runs
    )


@pytest.fixture(scope="module")
def report() -> Report:
    """Two systems, of which one is called by someone who means harm."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "JPEG")
    image = file.getvalue()
    gallery = [
        GalleryImage(f"test_images/{i}_{name}/a.jpg", name, image) for i, name in enumerate(("dog", EVIL, "cat"))
    ]
    beside = paper_results.find("BVSA", "eeg", "intra")
    lines = [a_line(EVIL, beside), a_line("gated", gate="paper", information="uses labels")]
    best = [[0, 1, 2], [2, 1, 0], [2, 0, 1]]
    retrieval = RetrievalExample(
        EVIL, lines[0].entry.data, "sub-01", 0, [0, 1, 2], [1, 2, 1], best, [[0.5, 0.25, 0.1]] * 3, np.eye(3)
    )
    images = np.zeros((1, 3, 8, 8, 3), np.uint8)
    blurred = BlurExample(
        EVIL, ["k45 gain 1", "k51 gain 0.5"], [0.3, None], [EVIL], images, [[image] * 3], "falloff exp, decay 3"
    )
    return Report(f"Title {EVIL}", lines, gallery, [retrieval], [blurred], {"images": EVIL}, {"command": EVIL})


@pytest.fixture(scope="module")
def page(report) -> str:
    return to_html(report)


def test_whatever_comes_from_files_is_text(page):
    parsed = Checked(page)
    assert not [attributes for _, attributes in parsed.found if any(name.startswith("on") for name in attributes)]
    assert [attributes.get("type") for tag, attributes in parsed.found if tag == "script"] == ["application/json", None]
    assert all(
        attributes["src"].startswith("data:image/jpeg;base64,") for tag, attributes in parsed.found if tag == "img"
    )
    assert "<img src=x" not in page and page.count("<!--") == 0
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["images"]["1"][0] == EVIL and data["runs"][0]["best"][1] == [2, 1, 0]


def test_nothing_is_fetched_and_only_the_pages_own_script_runs(page):
    without_data = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=\s]+", "", page)
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", without_data)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; img-src data:;") and re.search(
        r"script-src 'sha256-[\w+/]{43}='", policy
    )


def test_every_number_has_its_protocol_and_published_ones_stand_apart(page):
    parts = [
        "synthetic data",
        "3-way",
        "17 channels",
        "80 repetitions averaged",
        "images by tiny",
        "brain encoder eeg_project",
    ]
    shared = re.search(r'<p class="shared">(.*?)</p>', page)[1]
    assert shared.split(" · ") == ["synthetic data", "EEG", "intra-subject", *parts[1:]]
    table = page.split('<table class="results">')[1].split("</table>")[0]
    assert (
        '<span class="tag wary">uses labels</span>' in table
        and table.count("selection last") == 2
        and "gate paper" in table
    )
    first, second = table.split("<tr>")[2:]
    assert '<td class="n theirs">58.2</td>' in first and "BVSA 2026" in first and 'class="n theirs"' not in second
    assert '66.7<span class="interval">' in first and "Chance: Top-1 33.3 %, Top-5 100 %" in page
    assert "published figures are no yardstick" in page and "information: ours inductive, published uses labels" in page


def test_someone_who_does_not_see_or_point_is_served(page):
    found = Checked(page).found
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in found if tag == "th")
    assert all("alt" in attributes for tag, attributes in found if tag == "img")
    drawn = [attributes["aria-label"] for tag, attributes in found if attributes.get("role") == "img"]
    assert len(drawn) == page.count("<svg") == 6 and all(len(label) > 40 for label in drawn)
    regions = [attributes for _, attributes in found if attributes.get("role") == "region"]
    assert regions and all("tabindex" in region and "aria-label" in region for region in regions)
    targets = {attributes["href"][1:] for tag, attributes in found if tag == "a"}
    named = [attributes["id"] for tag, attributes in found if "id" in attributes]
    assert targets <= set(named) and not any(colour in page.split("</style>", 1)[1] for colour in PALETTE)


def test_text_stands_out_from_its_ground_in_both_themes(page):
    """By at least 4.5 to 1, as WCAG 2 asks of text (level AA)."""
    named = dict(re.findall(r"--(\w+): light-dark\((#\w{6}, #\w{6})\)", page))

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for theme in (0, 1):
        shown = {name: luminance(colours.split(", ")[theme]) for name, colours in named.items()}
        for name in ("ink", "quiet", "link", "right", "wary"):
            for ground in ("paper", "raised"):
                low, high = sorted((shown[name], shown[ground]))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground, theme)


def test_what_is_missing_is_said(report):
    line = replace(report.lines[0], runs=[replace(run, metrics=[], repetitions=None) for run in report.lines[0].runs])
    bare = to_html(
        Report("Bare", [line, ReportRow("none", "none", ComparisonRow("eeg", "intra", "none", missing=2, cells=6), [])])
    )
    for sentence in (
        "kept no metrics",
        "No training here moved",
        "No run has left what it retrieves",
        "No curve over test repetitions",
    ):
        assert sentence in bare
    assert "2 of 6 cells missing" in bare


def test_figures_are_files_of_both_formats(report, tmp_path):
    plain = replace(report, retrievals=[replace(report.retrievals[0], label="bvsa")])
    written = save(drawings(plain), tmp_path / "figures")
    names = {path.name for path in written}
    for name in (
        "accuracy-synthetic-eeg-intra-subject",
        "training",
        "similarity-synthetic-eeg-intra-subject",
        "retrieved",
    ):
        assert {f"{name}.png", f"{name}.pdf"} <= names
    for path in written:
        if path.suffix == ".png":
            shown = np.asarray(Image.open(path).convert("L"))
            assert shown.shape[1] == 1000 and shown.std() > 3
        else:
            assert path.read_bytes().startswith(b"%PDF-") and path.read_bytes().rstrip().endswith(b"%%EOF")


def test_shares_are_means_over_runs_and_many_levels_are_joined():
    line = a_line()
    levels, shares, joined = blur_shares(line.runs)
    assert levels == ["k45 gain 1", "k51 gain 0.5"] and not joined
    np.testing.assert_allclose(shares, [[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]], rtol=1e-12)
    many = {f"k{size} gain {gain / 10:g}": 1 for size in (45, 47) for gain in range(8)}
    levels, shares, joined = blur_shares([replace(line.runs[0], metrics=[{"blur": many}])])
    assert joined and levels == ["k45", "k47"] and shares.tolist() == [[0.5], [0.5]]
    assert blur_shares([replace(line.runs[0], metrics=[{"blur": {"k1 gain 0": 7}}])]) is None


def test_bars_are_of_the_subjects_and_of_their_mean():
    bars = bars_of(a_line(), 1)
    assert list(bars) == ["mean", "sub-01", "sub-02"] and [round(value) for value, _, _ in bars.values()] == [
        67,
        67,
        67,
    ]
    assert all(low <= value <= high for value, low, high in bars.values())
