"""bvsa report on trained runs, and its page in a browser."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from bvsa_core.cli import main
from bvsa_core.cli.provenance import commit_of
from bvsa_core.data.dataset import Dataset
from bvsa_core.data.split import load_split
from bvsa_core.errors import UserError
from bvsa_core.experiments import recording_cache, report_data, thumbnails
from bvsa_core.experiments.report_data import build_report, find_runs, group_runs
from bvsa_core.training.run_folder import RunFolder

ARTIFACTS = Path(os.environ.get("CI_ARTIFACTS", Path(__file__).parents[3] / "build" / "artifacts"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def runs(finished, small_data, tmp_path_factory) -> Path:
    """A folder with a run of BVSA and one of the baseline."""
    folder = tmp_path_factory.mktemp("report") / "mine"
    shutil.copytree(finished, folder / "bvsa")
    quick = ["--epochs", "1", "--batch_size", "64", "--method", "vanilla"]
    assert main(["train", "--data", str(small_data), "--out", str(folder / "vanilla"), *quick]) == 0
    return folder


@pytest.fixture(scope="module")
def page(runs) -> Path:
    """The page of both runs, with curves and a folder of figures."""
    out = runs.parent / "out" / "page.html"
    options = ["--figures", str(out.parent / "figures"), "--resamples", "2"]
    assert main(["report", str(runs), "--out", str(out), *options]) == 0
    return out


def data_of(page: Path) -> dict:
    """Read the data of the page's script."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def browse(page: Path, *flags: str, fragment: str = "") -> str:
    """Open the page in Chromium without a window and return its output; a message on the console is an error."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--enable-logging=stderr", f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=4000"]
    url = f"file://{page}{fragment}"
    process = subprocess.run([*command, *flags, url], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0 and "CONSOLE" not in process.stderr, process.stderr
    return re.sub(r"<noscript>.*?</noscript>", "", process.stdout, flags=re.DOTALL)


def test_a_page_is_made_of_runs(runs, page):
    text = page.read_text()
    names = "bvsa (corrected)", "vanilla (corrected)"
    for part in (*names, "synthetic data", "12-way", "gate none", "k51 gain 0.5", "Test repetitions"):
        assert part in text
    assert "absent" not in text.split("</style>", 1)[1].split("<noscript>")[0]
    assert "<dt>command</dt><dd>bvsa report" in text
    assert not re.search(r"https?:", text) and len(text) < 1e6
    (recordings,) = data_of(page)["recordings"]  # of both runs, which are of the same subject
    assert recordings["subject"] == "sub-01" and len(recordings["times"]) == 50 and recordings["side"]
    shown = data_of(page)["runs"]
    assert [run["name"] for run in shown] == [f"{name}, sub-01, seed 0" for name in names]
    for name, run in zip(("bvsa", "vanilla"), shown):
        assert run["ranks"] == json.loads((runs / name / "result.json").read_text())["ranks"]
        places = [top.index(target) + 1 if target in top else 6 for top, target in zip(run["top"], run["targets"])]
        assert places == [min(6, rank) for rank in run["ranks"]] and run["recordings"] == 0
    blurred, sharp = shown
    assert blurred["level"] == "k51 gain 0.5" and sharp["views"] == []
    images = data_of(page)["images"]
    for seen, view in zip(blurred["targets"], blurred["views"]):
        assert images[str(seen)][:2] == images[str(view)][:2] and images[str(seen)][2] != images[str(view)][2]
    figures = {path.name for path in (page.parent / "figures").iterdir()}
    expected = {"levels-bvsa-corrected.png", "blurred-bvsa-corrected.pdf"}
    assert expected | {"repetitions-synthetic-eeg-intra-subject.pdf"} <= figures


def test_page_reports_a_missing_data_folder(runs, tmp_path, succeed):
    succeed("report", runs, "--data", tmp_path / "nowhere", "--out", tmp_path / "page.html", "--title", "Moved")
    text = (tmp_path / "page.html").read_text()
    assert "<h1>Moved</h1>" in text and "nowhere: no such folder" in text and "<img" not in text


@needs_browser
def test_filters_work_by_address_and_by_typing(page, tmp_path):
    data = data_of(page)
    ranks = data["runs"][0]["ranks"]
    names = [data["images"][str(index)][0] for index in data["runs"][0]["targets"]]
    wrong = [name for name, rank in zip(names, ranks) if rank > 1]
    html = browse(page, "--dump-dom", fragment="#wrong=1&sort=rank")
    assert sorted(re.findall(r'data-concept="([^"]*)"', html)) == sorted(wrong)
    order = [int(rank) for rank in re.findall(r'class="rank">rank (\d+)<', html)]
    assert order == sorted(order) == sorted(rank for rank in ranks if rank > 1)
    typed = tmp_path / "typed.html"
    script = f"""
        const box = document.querySelector("[name=q]");
        box.value = {json.dumps(names[3].upper())};
        box.dispatchEvent(new Event("input", {{ bubbles: true }}));
        for (let i = 0; i < 2; i++) document.getElementById("theme").click();
        const scheme = getComputedStyle(document.body).colorScheme;
        document.title = `${{location.hash}} ${{document.documentElement.dataset.theme}} ${{scheme}}`;
    """
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    typed.write_text(f"{without_policy}<script>{script}</script>")
    html = browse(typed, "--dump-dom")
    assert re.findall(r'data-concept="([^"]*)"', html) == [name for name in names if names[3] in name]
    title = re.search(r"<title>(.*?)</title>", html)[1]
    assert title == f"#q={names[3].upper().replace(' ', '+')} dark dark"


def act(page: Path, folder: Path, script: str, fragment: str = "") -> str:
    """Run a script, which sets the title, after the page's own, and return the title."""
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    (folder / "acted.html").write_text(f"{without_policy}<script>{script}</script>")
    html = browse(folder / "acted.html", "--dump-dom", fragment=fragment)
    return unescape(re.search(r"<title>(.*?)</title>", html)[1])


@needs_browser
def test_the_table_is_sorted_and_rows_are_hidden_in_figures(page, tmp_path):
    script = """
        const rows = () => [...document.querySelectorAll(".results tbody tr")].map((row) => row.dataset.row);
        const [system, top1] = document.querySelectorAll(".results thead button");
        const orders = [system, system, top1, top1].map((button) => { button.click(); return rows().join(""); });
        const sorted = [system, top1].map((button) => button.parentElement.getAttribute("aria-sort"));
        document.querySelector("[data-row='1'] input").click();
        const shown = (node) => getComputedStyle(node).display !== "none";
        const hidden = [...document.querySelectorAll("[data-rows]")].filter((node) => !shown(node));
        const numbers = new Set(hidden.map((node) => node.dataset.rows));
        document.title = JSON.stringify([orders, sorted, [...numbers]]);
    """
    orders, sorted_by, hidden = json.loads(act(page, tmp_path, script))
    top1 = [float(value) for value in re.findall(r'class="n" data-value="([^"]*)">[^<]*<span', page.read_text())[::2]]
    best_first = "01" if top1[0] >= top1[1] else "10"
    assert orders[:3] == ["01", "10", best_first] and sorted_by == [None, "ascending"]
    assert hidden == ["1"]


@needs_browser
def test_two_runs_are_compared_and_misses_grouped(page, tmp_path):
    first, second = (run["ranks"] for run in data_of(page)["runs"])
    only_second = sum(a != 1 and b == 1 for a, b in zip(first, second))
    script = """
        const text = (selector) => [...document.querySelectorAll(selector)].map((node) => node.textContent);
        document.title = JSON.stringify([text("#count"), text("#queries .group"), text("#queries .other").length]);
    """
    (count,), groups, others = json.loads(act(page, tmp_path, script, fragment="#with=1&second=1&group=rank"))
    assert f"only the other {only_second}, neither" in count and count.startswith(f"{only_second} of 12 recordings")
    assert others == only_second
    sizes = [
        sum(a != 1 and b == 1 and low <= a <= high for a, b in zip(first, second))
        for low, high in ((2, 5), (6, 10), (11, 50))
    ]
    names = zip(("rank 2 to 5", "rank 6 to 10", "rank 11 to 50"), sizes)
    assert groups == [f"{name} ({size})" for name, size in names if size]
    (count,), groups, others = json.loads(act(page, tmp_path, script, fragment="#with=0&group=found"))
    assert (
        "McNemar" not in count and others == 0 and sum(int(re.search(r"\((\d+)\)$", each)[1]) for each in groups) == 12
    )


@needs_browser
def test_recordings_are_drawn_with_a_map_at_a_chosen_time(page, tmp_path):
    script = """
        const time = document.querySelector("[name=time]");
        time.value = "3";
        time.dispatchEvent(new Event("input", { bubbles: true }));
        const canvas = document.querySelector(".map canvas");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const painted = data.filter((value, i) => i % 4 === 3 && value).length / data.length * 4;
        const paths = document.querySelectorAll(".query:first-child .evoked path").length;
        const cards = document.querySelectorAll(".query .evoked").length;
        document.title = JSON.stringify([cards, paths, painted, canvas.getAttribute("aria-label")]);
    """
    (recordings,) = data_of(page)["recordings"]
    cards, paths, painted, label = json.loads(act(page, tmp_path, script))
    assert cards == 12 and paths == recordings["channels"] + 3  # zero, standard deviation, and the time of the map
    assert 0.05 < painted < 0.5 and label == f"topographic map at {recordings['times'][3]} ms"


@needs_browser
@pytest.mark.parametrize("run", ["constructor", "9"])
def test_an_address_that_names_no_run_shows_the_first(page, run):
    html = browse(page, "--dump-dom", fragment=f"#run={run}")
    assert len(re.findall(r'data-concept="', html)) == len(data_of(page)["runs"][0]["targets"])


@needs_browser
def test_an_injected_script_does_not_run(page, tmp_path):
    injected = tmp_path / "injected.html"
    injected.write_text(page.read_text() + "<script>document.title = 'injected';</script>")
    with pytest.raises(AssertionError, match="Content Security Policy"):
        browse(injected, "--dump-dom")


@needs_browser
@pytest.mark.parametrize(
    "name, scheme, width, height", [("light", 1, 1280, 4200), ("dark", 0, 1280, 4200), ("phone", 0, 390, 6000)]
)
def test_page_renders_in_both_themes_and_on_a_phone(page, name, scheme, width, height):
    """The screenshots are kept for people to look at."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    path = ARTIFACTS / f"page-{name}.png"
    theme = f"--blink-settings=preferredColorScheme={scheme}"
    browse(page, f"--window-size={width},{height}", theme, f"--screenshot={path}")
    image = Image.open(path).convert("L")
    ground = image.getpixel((2, 2))
    assert image.size == (width, height) and (ground > 240 if scheme else ground < 40)
    assert image.getextrema()[1] - image.getextrema()[0] > 180


def copy_with(run: Path, folder: Path, **settings) -> Path:
    """Copy a run and change settings in its files."""
    shutil.copytree(run, folder)
    path, copied = folder / "run.yaml", RunFolder(folder)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))
    of_result = {name: value for name, value in settings.items() if name in ("seed", "subject")}
    (folder / "result.json").write_text(json.dumps(replace(copied.result(), **of_result).to_json()))
    return folder


def without_checksum(run: Path, **changes) -> str:
    """Return result.json as an earlier version, or somebody who edits it, would write it."""
    content = json.loads((run / "result.json").read_text()) | changes
    return json.dumps({name: value for name, value in content.items() if name != "checksum" and value is not None})


def test_runs_that_differ_in_a_setting_are_separate_rows(runs, tmp_path, monkeypatch):
    faster = copy_with(runs / "vanilla", tmp_path / "faster", lr=0.002)
    again = copy_with(runs / "vanilla", tmp_path / "again", seed=1)
    folders, messages = find_runs([runs / "vanilla", faster, again, runs / "vanilla"])
    slow, fast = group_runs(folders)
    assert (slow.label, fast.label) == ("vanilla (corrected), lr 0.0001", "vanilla (corrected), lr 0.002")
    assert messages == [] and [run.result.seed for run in slow.runs] == [0, 1]
    assert (slow.result.seeds, fast.result.seeds) == (2, 1)
    few = copy_with(runs / "vanilla", tmp_path / "few", repetitions=2, data=str(tmp_path))
    _, other = group_runs([folders[0], RunFolder(few)])
    assert other.label == f"vanilla (corrected), data {tmp_path}, repetitions 2"
    report = build_report("", [slow, fast], {})
    shown = [(each.label, each.seed) for each in report.retrievals]
    assert shown == [(slow.label, 0), (slow.label, 1), (fast.label, 0)]
    assert len(report.images) == 12 and all(image.thumbnail for image in report.images)
    monkeypatch.setattr(report_data, "RETRIEVALS", 2)
    monkeypatch.setattr(report_data, "QUERIES", 5)
    monkeypatch.setattr(thumbnails, "THUMBNAILS", 3000)
    small = build_report("", [slow, fast], {})
    assert [(each.label, len(each.top)) for each in small.retrievals] == [(slow.label, 5), (fast.label, 5)]
    assert small.missing["retrieved"].startswith("2 of 3 runs are shown")
    assert "the first 5 are shown" in small.missing["retrieved"]
    assert 1 <= sum(image.thumbnail is not None for image in small.images) < 12
    assert "keep the page small" in small.missing["images"]


def test_recordings_are_reduced_to_a_few_channels_and_times(runs, small_data, monkeypatch):
    monkeypatch.setattr(recording_cache, "CHANNELS", 3)
    monkeypatch.setattr(recording_cache, "TIMES", 4)
    folder = RunFolder(runs / "bvsa")
    examples = recording_cache.read_examples(small_data, folder.config(), folder.result(), queries=5)
    split = load_split(Dataset(small_data), ["sub-01"], "test")
    kept = [0, len(split.channels) // 2, len(split.channels) - 1]
    quarters = np.array_split(split.recordings.numpy()[:5, kept], 4, axis=2)
    np.testing.assert_allclose(examples.values, np.stack([part.mean(2) for part in quarters], axis=2), atol=1e-6)
    assert examples.channels == [split.channels[i] for i in kept] and examples.recorded_channels == len(split.channels)
    assert examples.values.shape == (5, 3, 4) and examples.values.dtype == np.float32
    assert (
        np.all(np.diff(examples.times) > 0)
        and split.times[0] < examples.times[0] < examples.times[-1] < split.times[-1]
    )
    other = replace(folder.result(), images=folder.result().images[::-1])
    with pytest.raises(UserError, match="are not those of the run"):
        recording_cache.read_examples(small_data, folder.config(), other, queries=5)


@pytest.fixture
def broken(runs, tmp_path) -> Path:
    """Copies of a run, each damaged in another way."""
    names = "truncated odd old unfinished twice epochs fields levels uneven edited ranks gallery seed weights"
    for name in [*names.split(), "embeddings", "other"]:
        shutil.copytree(runs / "vanilla", tmp_path / name / "run")
    result = tmp_path / "truncated" / "run" / "result.json"
    result.write_bytes(result.read_bytes()[:200])
    content = json.loads((runs / "vanilla" / "result.json").read_text())
    edited = json.dumps({**content, "ranks": [1] * 12})
    changes = {
        "odd": {"ranks": [0, "<b>"]},
        "old": {"images": None},
        "ranks": {"ranks": [1] * 12},
        "gallery": {},
        "seed": {"seed": 3},
    }
    changes["gallery"]["protocol"] = content["protocol"] | {"gallery": 9}
    texts = {name: without_checksum(runs / "vanilla", **changed) for name, changed in changes.items()}
    for name, text in {**texts, "edited": edited}.items():
        (tmp_path / name / "run" / "result.json").write_text(text)
    for name in ("weights", "embeddings"):
        path = tmp_path / name / "run" / f"{name}.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    safetensors.torch.save_file({"image": torch.eye(3)}, tmp_path / "other" / "run" / "embeddings.safetensors")
    (tmp_path / "other" / "run" / "result.json").write_text(without_checksum(runs / "vanilla", files=None))
    (tmp_path / "unfinished" / "run" / "result.json").unlink()
    shutil.copytree(runs / "vanilla", tmp_path / "twice" / "again")
    (tmp_path / "epochs" / "run" / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2}\n{"epo')
    (tmp_path / "fields" / "run" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "levels" / "run" / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2, "blur": {"strong": 3}}\n')
    copy_with(runs / "vanilla", tmp_path / "uneven" / "other", subject="sub-02", seed=7)
    (tmp_path / "empty").mkdir()
    return tmp_path


ERRORS = [
    ("{b}/truncatd", "{b}/truncatd: no such folder; did you mean {b}/truncated?"),
    ("{b}/empty", "{b}/empty: no run inside (no run.yaml); give folders that 'bvsa train', 'demo' or 'reproduce' made"),
    ("{b}/unfinished", "{b}/unfinished: no finished run there (result.json is missing)"),
    ("{b}/truncated", "truncated/run/result.json: damaged or incomplete ( ... ); delete it, and train the run again"),
    ("{b}/odd", "odd/run/result.json: ranks must be a list of whole numbers; delete it"),
    ("{b}/edited", "edited/run/result.json: altered since it was written (its checksum differs); delete it"),
    ("{b}/ranks", "ranks/run/result.json: ... of 12 ranks are not those of the run's embeddings; delete it"),
    ("{b}/gallery", "gallery/run/result.json: a gallery of 9, and embeddings of 12 images; delete it"),
    ("{b}/seed", "seed/run/result.json: seed is 3, and 0 in run.yaml; delete it, and train the run again"),
    (
        "{b}/weights",
        "weights/run/weights.safetensors: altered since the run ended (its checksum differs); delete its folder",
    ),
    ("{b}/embeddings", "embeddings/run/embeddings.safetensors: altered since the run ended (its checksum differs)"),
    (
        "{b}/other",
        "other/run/embeddings.safetensors: not the embeddings of a run (image [3, 3]); delete its folder, and",
    ),
    ("{b}/old", "old/run/result.json: images missing; a run of an earlier version, train it again"),
    ("{b}/twice", "the same run twice (sub-01, seed 0); name one of them"),
    ("{b}/uneven", "there is no run with seed"),
    ("{b}/epochs", "epochs/run/metrics.jsonl: line 2: damaged or incomplete"),
    ("{b}/fields", "fields/run/metrics.jsonl: line 1: epoch, loss missing; delete it, and train the run again"),
    ("{b}/levels", "levels/run/metrics.jsonl: line 1: blur must count samples by levels such as 'k51 gain 0.5'"),
    ("{r} --out {b}", "--out {b}: is a folder; name a file"),
    ("{r} --resamples -1", "--resamples is -1; it must be at least 0"),
    ("{r} --figurs 1", "figurs"),
    ("", "runs"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=[arguments for arguments, _ in ERRORS])
def test_errors_are_one_line_and_exit_code_2(broken, runs, arguments, message, fail):
    places = {"b": broken, "r": runs / "vanilla"}
    fail(message.format(**places), "report", *(word.format(**places) for word in arguments.split()))
    assert not list(broken.rglob("page.html"))


def test_unfinished_runs_are_reported(broken, runs, succeed):
    shutil.copytree(runs / "bvsa", broken / "unfinished" / "bvsa")
    succeed("report", broken / "unfinished")
    assert "1 unfinished run(s) in" in (broken / "unfinished" / "page.html").read_text()


def test_commit_is_that_of_a_checkout(tmp_path):
    assert commit_of(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    assert re.fullmatch(r"[0-9a-f]{40}", commit_of(tmp_path))
