"""bvsa report on runs that were trained, and its page in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from PIL import Image

from bvsa_core.cli import main
from bvsa_core.cli.report import commit_of
from bvsa_core.experiments import report_data
from bvsa_core.experiments.report_data import build_report, find_runs, group_runs
from bvsa_core.training.checkpoint import RunFolder

ARTIFACTS = Path(os.environ.get("CI_ARTIFACTS", Path(__file__).parents[3] / "build" / "artifacts"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def runs(finished, small_data, tmp_path_factory) -> Path:
    """A run of BVSA and one of the baseline."""
    folder = tmp_path_factory.mktemp("report") / "mine"
    shutil.copytree(finished, folder / "bvsa")
    quick = ["--epochs", "1", "--batch_size", "64", "--method", "vanilla"]
    assert main(["train", "--data", str(small_data), "--out", str(folder / "vanilla"), *quick]) == 0
    return folder


@pytest.fixture(scope="module")
def page(runs) -> Path:
    """The page of both runs, with curves, and its figures beside it."""
    out = runs.parent / "out" / "page.html"
    assert (
        main(["report", str(runs), "--out", str(out), "--figures", str(out.parent / "figures"), "--resamples", "2"])
        == 0
    )
    return out


def browse(page: Path, *flags: str, fragment: str = "") -> subprocess.CompletedProcess:
    """Chromium without a window, on the page; what it prints on the console is an error of the page."""
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
    ]
    command += [
        f"--user-data-dir={page.parent / 'profile'}",
        "--virtual-time-budget=4000",
        *flags,
        f"file://{page}{fragment}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
    return done


def test_a_page_is_made_of_runs(runs, page):
    text = page.read_text()
    for part in (
        "bvsa (corrected)",
        "vanilla (corrected)",
        "synthetic data",
        "12-way",
        "gate none",
        "k51 gain 0.5",
        "Test repetitions",
    ):
        assert part in text
    assert (
        "absent" not in text.split("</style>", 1)[1].split("<noscript>")[0]
        and "<dt>command</dt><dd>bvsa report" in text
    )
    assert not re.search(r"https?:", text) and len(text) < 1e6
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert [run["name"] for run in data["runs"]] == [
        "bvsa (corrected), sub-01, seed 0",
        "vanilla (corrected), sub-01, seed 0",
    ]
    for name, run in zip(("bvsa", "vanilla"), data["runs"]):
        kept = json.loads((runs / name / "result.json").read_text())
        assert run["ranks"] == kept["ranks"]
        places = [row.index(right) + 1 if right in row else 6 for row, right in zip(run["best"], run["right"])]
        assert places == [min(6, rank) for rank in run["ranks"]]
    figures = {path.name for path in (page.parent / "figures").iterdir()}
    assert {
        "repetitions-synthetic-eeg-intra-subject.pdf",
        "levels-bvsa-corrected.png",
        "blurred-bvsa-corrected.pdf",
    } <= figures


def test_without_the_data_folder_the_page_says_so(runs, tmp_path, succeed):
    succeed("report", runs, "--data", tmp_path / "nowhere", "--out", tmp_path / "page.html", "--title", "Moved")
    text = (tmp_path / "page.html").read_text()
    assert "<h1>Moved</h1>" in text and "nowhere: no such folder" in text and "<img" not in text


@in_a_browser
def test_the_filter_works_by_address_and_by_typing(page, tmp_path):
    ranks, names = shown_by(page)
    wrong = [name for name, rank in zip(names, ranks) if rank > 1]
    found = browse(page, "--dump-dom", fragment="#wrong=1&sort=rank").stdout
    assert sorted(re.findall(r'data-concept="([^"]*)"', found)) == sorted(wrong)
    order = [int(rank) for rank in re.findall(r'class="rank">rank (\d+)<', found)]
    assert order == sorted(order) == sorted(rank for rank in ranks if rank > 1)
    typed = tmp_path / "typed.html"
    does = f"""
        const box = document.querySelector("[name=q]");
        box.value = {json.dumps(names[3].upper())};
        box.dispatchEvent(new Event("input", {{ bubbles: true }}));
        for (let i = 0; i < 2; i++) document.getElementById("theme").click();
        document.title = `${{location.hash}} ${{document.documentElement.dataset.theme}} ${{getComputedStyle(document.body).colorScheme}}`;
    """
    typed.write_text(
        re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text()) + f"<script>{does}</script>"
    )
    found = browse(typed, "--dump-dom").stdout
    assert re.findall(r'data-concept="([^"]*)"', found) == [name for name in names if names[3] in name]
    title = re.search(r"<title>(.*?)</title>", found)[1]
    assert title == f"#q={names[3].upper().replace(' ', '+')} dark dark"


def shown_by(page: Path) -> tuple[list[int], list[str]]:
    """Ranks and concepts of the first run's recordings."""
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])
    run = data["runs"][0]
    return run["ranks"], [data["images"][str(number)][0] for number in run["right"]]


@in_a_browser
def test_a_script_that_is_not_the_pages_own_does_not_run(page, tmp_path):
    slipped = tmp_path / "slipped.html"
    slipped.write_text(page.read_text() + "<script>document.title = 'slipped in';</script>")
    with pytest.raises(AssertionError, match="Content Security Policy"):
        browse(slipped, "--dump-dom")


@in_a_browser
@pytest.mark.parametrize(
    "name, scheme, width, height", [("light", 1, 1280, 4200), ("dark", 0, 1280, 4200), ("phone", 0, 390, 6000)]
)
def test_it_is_drawn_in_both_themes_and_on_a_telephone(page, name, scheme, width, height):
    """The screenshots stay for people to look at."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    shot = ARTIFACTS / f"page-{name}.png"
    browse(
        page,
        f"--window-size={width},{height}",
        f"--blink-settings=preferredColorScheme={scheme}",
        f"--screenshot={shot}",
    )
    drawn = Image.open(shot).convert("L")
    ground = drawn.getpixel((2, 2))
    assert drawn.size == (width, height) and (ground > 240 if scheme else ground < 40)
    assert drawn.getextrema()[1] - drawn.getextrema()[0] > 180


def other(run: Path, folder: Path, **settings) -> Path:
    """A copy of a run that says it had other settings."""
    shutil.copytree(run, folder)
    for file, read, write in (("run.yaml", yaml.safe_load, yaml.safe_dump), ("result.json", json.loads, json.dumps)):
        kept = read((folder / file).read_text())
        (folder / file).write_text(
            write(kept | {name: value for name, value in settings.items() if file == "run.yaml" or name in kept})
        )
    return folder


def test_runs_that_differ_in_a_setting_are_lines_of_their_own(runs, tmp_path, monkeypatch):
    faster = other(runs / "vanilla", tmp_path / "faster", lr=0.002)
    again = other(runs / "vanilla", tmp_path / "again", seed=1)
    folders, told = find_runs([runs / "vanilla", faster, again, runs / "vanilla"])
    slow, fast = group_runs(folders)
    assert (slow.label, fast.label) == (
        "vanilla (corrected), lr 0.0001",
        "vanilla (corrected), lr 0.002",
    ) and told == []
    assert [run.seed for run in slow.runs] == [0, 1] and (slow.entry.row.seeds, fast.entry.row.seeds) == (2, 1)
    few = other(runs / "vanilla", tmp_path / "few", repetitions=2, data=str(tmp_path))
    assert [line.label for line in group_runs([folders[0], RunFolder(few)])][
        1
    ] == f"vanilla (corrected), data {tmp_path}, repetitions 2"
    report = build_report("", [slow, fast], {})
    assert [(each.label, each.seed) for each in report.retrievals] == [
        (slow.label, 0),
        (slow.label, 1),
        (fast.label, 0),
    ]
    assert len(report.images) == 12 and all(image.thumbnail for image in report.images)
    monkeypatch.setattr(report_data, "RETRIEVALS", 2)
    monkeypatch.setattr(report_data, "QUERIES", 5)
    monkeypatch.setattr(report_data, "THUMBNAILS", 3000)
    small = build_report("", [slow, fast], {})
    assert [(each.label, len(each.ranks)) for each in small.retrievals] == [(slow.label, 5), (fast.label, 5)]
    assert (
        small.missing["retrieved"].startswith("2 of 3 runs are shown")
        and "the first 5 are shown" in small.missing["retrieved"]
    )
    assert (
        1 <= sum(image.thumbnail is not None for image in small.images) < 12
        and "keep the page small" in small.missing["images"]
    )


@pytest.fixture
def broken(runs, tmp_path) -> Path:
    """Copies of the runs, each wrong in a way of its own."""
    for name in ("truncated", "odd", "old", "unfinished", "twice", "epochs", "uneven"):
        shutil.copytree(runs / "vanilla", tmp_path / name / "run")
    result = tmp_path / "truncated" / "run" / "result.json"
    result.write_bytes(result.read_bytes()[:200])
    kept = json.loads((runs / "vanilla" / "result.json").read_text())
    (tmp_path / "odd" / "run" / "result.json").write_text(json.dumps({**kept, "ranks": [0, "<b>"]}))
    (tmp_path / "old" / "run" / "result.json").write_text(
        json.dumps({name: kept[name] for name in kept if name != "images"})
    )
    (tmp_path / "unfinished" / "run" / "result.json").unlink()
    shutil.copytree(runs / "vanilla", tmp_path / "twice" / "again")
    (tmp_path / "epochs" / "run" / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    other(runs / "vanilla", tmp_path / "uneven" / "other", subject="sub-02", seed=7)
    (tmp_path / "empty").mkdir()
    return tmp_path


WRONG = [
    ("{b}/truncatd", "{b}/truncatd: no such folder; did you mean {b}/truncated?"),
    ("{b}/empty", "{b}/empty: no run inside (no run.yaml); give folders that 'bvsa train', 'demo' or 'reproduce' left"),
    ("{b}/unfinished", "{b}/unfinished: no finished run there (result.json is missing)"),
    ("{b}/truncated", "truncated/run/result.json: damaged or incomplete; train the run again"),
    ("{b}/odd", "odd/run/result.json: ranks must be a list of whole numbers from 1"),
    ("{b}/old", "old/run/result.json: images missing; a run of an earlier version, train it again"),
    ("{b}/twice", "the same run twice (sub-01, seed 0); name one of them"),
    ("{b}/uneven", "there is no run with seed"),
    ("{b}/epochs", "epochs/run/metrics.jsonl: line 2: damaged or incomplete"),
    ("{r} --out {b}", "--out {b}: is a folder; name a file"),
    ("{r} --resamples -1", "--resamples is -1; it must be at least 0"),
    ("{r} --figurs 1", "figurs"),
    ("", "runs"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[arguments for arguments, _ in WRONG])
def test_what_is_wrong_is_one_line_and_exit_code_2(broken, runs, arguments, message, capsys):
    places = {"b": broken, "r": runs / "vanilla"}
    assert main(["report", *(word.format(**places) for word in arguments.split())]) == 2
    told = capsys.readouterr().err
    assert message.format(**places) in told and told.count("\n") == 1 and "Traceback" not in told
    assert not list(broken.rglob("page.html"))


def test_unfinished_runs_beside_finished_ones_are_told_of(broken, runs, tmp_path, succeed):
    shutil.copytree(runs / "bvsa", broken / "unfinished" / "bvsa")
    succeed("report", broken / "unfinished")
    assert "1 unfinished run(s) in" in (broken / "unfinished" / "page.html").read_text()


def test_the_commit_is_that_of_a_checkout(tmp_path):
    assert commit_of(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    assert re.fullmatch(r"[0-9a-f]{40}", commit_of(tmp_path))
