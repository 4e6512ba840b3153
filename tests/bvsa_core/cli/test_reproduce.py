"""bvsa reproduce: a tiny grid, stopped, damaged, continued or shared by workers, gives the same bytes."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dask_cluster import REPOSITORY, kill_in_the_middle, wait_for

from bvsa_core.cli import main, reproduce
from bvsa_core.data.dataset import Dataset
from bvsa_core.errors import UserError
from bvsa_core.experiments import paper_results, results
from bvsa_core.experiments.grid import BUILT_IN, cells, read_grid, systems_named
from bvsa_core.experiments.repetitions import averaged, repetition_curves, steps
from bvsa_core.retrieval.scoring import Scoring
from bvsa_core.synthetic.dataset import SyntheticConfig
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder

FILES = ("table.md", "table.csv", "table.tex", "statistics.json")
GRID = """
title: Two & a half
methods:
  - {method: vanilla, published: UBP}
  - name: both_heads
    method: bvsa
    options: {decouple: false, dynamic: false}
    scorings: [{gate: none}, {name: gated, gate: paper, published: BVSA}, {gate: always, shuffle_texts: true}]
seeds: 1
resamples: 2
list_others: true
"""
OTHERS = paper_results.others("eeg", "intra", {"UBP", "BVSA"})
QUICK = ("--epochs", 1, "--batch_size", 64, "--threads", 1)


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("grids") / "mine.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def done(grid, small_data, tmp_path_factory) -> Path:
    """Return the folder of the grid, finished by two workers."""
    out = tmp_path_factory.mktemp("grids") / "done"
    command = ("reproduce", grid, "--eeg", small_data, "--out", out, *QUICK, "--workers", 2)
    assert main([str(word) for word in command]) == 0
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("weights.safetensors")}


def test_workers_and_one_process_give_the_same_bytes_and_a_stopped_grid_continues(
    grid, done, small_data, tmp_path, succeed
):
    """The copy of the grid has a half trained cell, a half scored one, a finished one and a missing one."""
    out = shutil.copytree(done, tmp_path / "again")
    half_trained, half_scored, kept, lost = sorted(path.parent for path in out.rglob("run.yaml"))
    (half_trained / "result.json").unlink()
    (half_scored / "scores.json").unlink()
    shutil.rmtree(lost)
    for name in FILES:
        (out / name).unlink()
    before = written(out)
    shown = succeed("reproduce", grid, "--eeg", small_data, "--out", out, *QUICK)
    after = written(out)
    assert content(out) == content(done)
    unchanged = {path.parent for path in before if before[path] == after[path]}
    assert unchanged == {half_scored, kept} and "synthetic EEG" in shown and "gated, gate paper" in shown


def test_a_cluster_that_loses_a_worker_gives_the_same_bytes(grid, done, small_data, tmp_path, succeed, cluster):
    lost, _ = cluster.add_workers(2)
    out = tmp_path / "out"
    killed = kill_in_the_middle(lost, lambda: list(out.rglob("run.yaml")), lambda: list(out.rglob("scores.json")))
    succeed("reproduce", grid, "--eeg", small_data, "--out", out, *QUICK, "--scheduler", cluster.address)
    killed.join()
    assert lost.wait() == -signal.SIGKILL and content(out) == content(done)
    assert not list(out.rglob(".lock")) and len(written(out)) == 4


def test_runs_of_other_settings_stop_a_grid_at_once_and_are_replaced_on_request(
    grid, done, small_data, tmp_path, succeed, fail
):
    out = shutil.copytree(done, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    command = ("reproduce", grid, "--eeg", small_data, "--out", out, "--epochs", 2, "--batch_size", 64)
    fail("holds a run with other settings: epochs 1 -> 2; choose another ... --overwrite", *command)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    succeed(*command, "--overwrite")
    assert {len(path.read_text().splitlines()) for path in out.rglob("metrics.jsonl")} == {2}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_every_training(grid, small_data, tmp_path, number):
    command = (sys.executable, "-m", "bvsa_core.cli", "reproduce", grid, "--eeg", small_data, "--out", tmp_path)
    command = (*command, "--quiet", "--epochs", 100_000, "--threads", 1, "--workers", 2)
    process = subprocess.Popen(
        [str(word) for word in command], cwd=REPOSITORY, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    begun = lambda: [path for path in tmp_path.rglob("metrics.jsonl") if path.stat().st_size]  # noqa: E731
    wait_for(lambda: len(begun()) == 2)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    assert process.wait(60) == 128 + number and process.stderr.read() == "bvsa: stopped; the same command continues\n"
    assert {path.parent for path in tmp_path.rglob("resume.pt")} == {path.parent for path in begun()}


def test_the_table_marks_our_results_and_differences(done):
    text = (done / "table.md").read_text()
    header, _, *body = [line.strip("| ").split(" | ") for line in text.split("\n\n")[0].splitlines()]
    lines = [dict(zip(header, line)) for line in body]
    ours = [line for line in lines if line["Top-1 %"] != "–"]  # noqa: RUF001
    assert ours == lines[:4]
    assert [line["gate"] for line in ours] == ["none", "none", "paper", "always, texts shuffled"]
    assert all(line["data"] == "synthetic EEG intra-subject" and line["subjects x seeds"] == "2 x 1" for line in ours)
    assert [line["published Top-1 %"] for line in ours] == ["50.9", "–", "58.2", "–"]  # noqa: RUF001
    others = [f"{paper.method} {paper.year}" for paper in OTHERS]
    assert [line["published"] for line in lines[4:]] == others and {"ATM-S 2024", "SAMGA 2026"} < set(others)
    assert all(line["published selection"] for line in lines)
    footnotes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    notes = [[footnotes[number] for number in line["notes"].split()] for line in lines]
    assert all("not recorded from people" in first for first, *_ in notes[:4])
    assert "images by: ours tiny, published RN50" in notes[0]
    assert "selection: ours last epoch, published best on test, Top-1 and Top-5 separately" in notes[2]
    assert any("gate paper uses labels" in note for note in notes[2]) and any("control" in note for note in notes[3])
    atm = next(number for number, line in enumerate(lines) if line["published"].startswith("ATM-S"))
    assert any("other sources: 26.13/55.32" in note for note in notes[atm])
    assert "p (Wilcoxon over test images, Holm)" in text and "sub-02" in text and "hubness: skewness" in text


def test_the_page_holds_the_same_table(done):
    page = (done / "page.html").read_text()
    table = page.split('<table class="results">')[1].split("</table>")[0]
    names = re.findall(r'<th scope="row" data-value="[^"]*">([\w-]+)', table)
    assert names[:4] == ["vanilla", "both_heads", "gated", "both_heads"]
    assert names[4:] == [re.match(r"[\w-]+", paper.method)[0] for paper in OTHERS]
    assert re.findall(r'<td class="n paper" data-value="[\d.]+">([\d.]+)</td>', table)[:4] == [
        "50.9",
        "79.7",
        "58.2",
        "89.1",
    ]
    records = list(csv.DictReader((done / "table.csv").read_text().splitlines()))
    top1 = [f"{float(record['top1']):.1f}" for record in records[:4]]
    assert re.findall(r'<td class="n" data-value="[\d.]+">([\d.]+)<span', table)[::2] == top1
    for part in ("<h1>Two &amp; a half</h1>", "both_heads, gate always, texts shuffled", "bvsa reproduce"):
        assert part in page


def test_csv_and_latex_hold_the_same_table(done):
    records = list(csv.DictReader((done / "table.csv").read_text().splitlines()))
    assert [record["system"] for record in records[:4]] == ["vanilla", "both_heads", "gated", "both_heads"]
    assert len(records) == 4 + len(OTHERS)
    rows = json.loads((done / "statistics.json").read_text())["rows"]
    for record, row in zip(records, rows):
        top1 = np.mean([each[0] for each in row["subjects"].values()])
        assert float(record["top1"]) == pytest.approx(100 * top1, abs=1e-4) and record["data"] == "synthetic"
        assert float(record["top1_low"]) <= float(record["top1"]) <= float(record["top1_high"])
    assert records[4]["top1"] == "" and float(records[4]["published_top1"]) == 5.8
    latex = (done / "table.tex").read_text()
    inside = latex.split(r"\toprule")[1].split(r"\bottomrule")[0]
    lines = [line for line in inside.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 5 + len(OTHERS) and all(len(re.findall(r"(?<!\\)&", line)) == 13 for line in lines)
    assert r"Two \& a half." in latex and r"both\_heads" in latex and r"50.9" in latex
    assert not re.search(r"(?<!\\)[%_#$]", latex.split("\n", 1)[1].replace(r"\_", ""))
    assert latex.count("{") == latex.count("}")


def test_every_cell_has_its_statistics(done, small_data):
    rows = json.loads((done / "statistics.json").read_text())["rows"]
    assert [part["size"] for part in rows[0]["galleries"]] == [2, 10] and rows[0]["hubness"]["k"] == 10
    points = [(point["averaged"], point["resamples"]) for point in rows[0]["repetitions"]]
    assert points == [(1, 2), (2, 2), (4, 2), (6, 1)]
    for cell in done.rglob("scores.json"):
        for row in json.loads(cell.read_text())["rows"]:  # all repetitions are what the run was scored by
            last = row["statistics"]["repetitions"][-1]
            assert (last["top1"], last["top5"]) == (row["top1"], row["top5"]) and last["top1_std"] == 0


def test_a_failing_cell_is_reported_and_the_others_go_on(small_data, tmp_path, capsys):
    grid = tmp_path / "odd.yaml"
    grid.write_text(GRID.replace("Two & a half", r'"Odd \e[2J"'))
    data, out = shutil.copytree(small_data, tmp_path / "data"), tmp_path / "out"
    test = data / "Preprocessed_data_250Hz_whiten" / "sub-02" / "test.pt"
    whole = test.read_bytes()
    test.write_bytes(whole[:-5000])
    command = ("reproduce", grid, "--eeg", data, "--out", out, *QUICK, "--methods", "vanilla", "--resamples", 0)
    command = [str(word) for word in command]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "failed: vanilla, EEG intra-subject, eeg_project, tiny, sub-02, seed 0: " in error
    assert "test.pt: damaged" in error and "bvsa: error: 1 of 2 cells failed; mend what" in error
    assert "1 of 2 cells missing" in (out / "table.md").read_text()
    assert r"Odd \x1b[2J" in (out / "table.md").read_text()
    assert not any(b"\x1b" in each for each in content(out).values())
    before = (out / "table.md").read_bytes()
    assert main([*command, "--subjects", "sub-02"]) == 2  # no cell is left: the tables stay
    assert "bvsa: error: all 1 cells failed, and no table was written; mend what" in capsys.readouterr().err
    assert (out / "table.md").read_bytes() == before
    test.write_bytes(whole)
    assert main(command) == 0
    assert "cells missing" not in (out / "table.md").read_text()
    embeddings = next(out.rglob("sub-02_seed0/embeddings.safetensors"))
    embeddings.write_bytes(embeddings.read_bytes()[:-1] + b"?")
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"{embeddings}: altered since the run ended (its checksum differs); delete its folder, and train" in error
    assert "1 of 2 cells missing" in (out / "table.md").read_text()
    shutil.rmtree(embeddings.parent)
    assert main(command) == 0


def test_a_run_is_evaluated_in_full(finished, tmp_path, succeed):
    shown = succeed("evaluate", finished, "--full", "--json", tmp_path / "figures.json").replace("\n", " ")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert "hubness: skewness" in shown and "by test repetitions averaged, mean of 10 draws: 1: " in shown
    assert figures["statistics"]["repetitions"][-1]["top5"] == figures["top5"]


def test_repetitions_are_drawn_for_every_image_and_averaged(finished, small_data):
    data = Dataset(small_data).load("sub-01", "test")
    chosen = np.array([[0, 3]] * 11 + [[1, 5]])
    other, part = (each.data for each in averaged(data, np.stack([np.roll(chosen, 1, axis=0), chosen])))
    for mean, image in ((part[11, 0], 11), (other[0, 0], 0)):
        expected = data.data[image, [1, 5]].astype(np.float32).mean(0)
        # float16 means in float32: one addition, one division, each rounded.
        np.testing.assert_allclose(mean, expected, rtol=2**-22, atol=2**-22)
    assert part.shape == (12, 1, *data.data.shape[2:])
    assert steps(1) == [1] and steps(80) == [1, 2, 4, 8, 16, 32, 64, 80]
    folder = RunFolder(finished)
    run_data = RunData(folder.config())
    first, second = repetition_curves(folder, run_data, [Scoring("none"), Scoring("none")], resamples=2)
    assert first == second == repetition_curves(folder, run_data, [Scoring("none")], resamples=2)[0]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_grids_have_cells(name, small_data):
    grid, systems = read_grid(name)
    todo, skipped = cells(grid, systems, {"eeg": small_data}, {})
    assert len({cell.folder for cell in todo}) == len(todo) == 2 * grid.seeds * len(systems) * len(grid.settings)
    assert (skipped == ["MEG is skipped: no folder was given with --meg"]) == (name == "main")
    by_name = {cell.system: cell for cell in todo}
    if name == "ablation":
        assert not by_name["+ decouple"].config.method_options.dynamic
        assert by_name["+ dynamic"].config.method_options.dynamic
        assert {row.gate for row in by_name["+ dynamic"].rows} == {"none", "always", "label_free", "paper", "code"}
    if name == "records":
        assert by_name["LoRA + blur"].baseline == "LoRA" and by_name["ubp"].baseline == "vanilla"
        differing = {"method", "method_options", "preset", "seed", "subject"}
        for name, other in (("shallow", "shallow + blur"), ("LoRA", "LoRA + blur")):
            one, two = (vars(by_name[each].config) for each in (name, other))
            assert {key for key in one if one[key] != two[key]} <= differing
    if name == "main":
        assert by_name["shallow"].config.select_layer and by_name["shallow"].config.projector == "linear"
        assert {cell.config.encoder for cell in todo if cell.config.method == "nice"} == {"tsconv"}


@pytest.mark.parametrize("name", BUILT_IN)
def test_published_grids_take_the_published_image_encoder_for_recorded_data(name, recorded):
    grid, systems = read_grid(name)
    todo, _ = cells(grid, systems, {"eeg": recorded}, {})
    published = {"demo": "tiny", "demo-full": "tiny", "records": "ViT-B-32"}
    assert {cell.config.vision for cell in todo} == {published.get(name, "RN50")}


def test_the_toy_encoder_on_recorded_data_is_warned_of(recorded, small_data, tmp_path, capsys):
    one = ("--subjects", "sub-01", "--seeds", 1, "--resamples", 0, "--methods", "vanilla", "--vision", "tiny")
    flags = {
        "train": ("--data", recorded, "--method", "vanilla"),
        "reproduce": ("demo", "--eeg", recorded, *one),
    }
    bank = ("--bank", small_data / "Image_feature")  # of the same images
    for command, own in flags.items():
        words = (command, *own, *bank, *QUICK[:4], "--out", tmp_path / command)
        assert main([str(word) for word in words]) == 0
        toy = "tiny is a toy encoder for synthetic images, and mine is not synthetic"
        warning = f"warning: {toy}; take the published one with --vision RN50"
        assert warning in capsys.readouterr().err.splitlines()


@pytest.fixture(scope="module")
def recorded(small_data, tmp_path_factory) -> Path:
    """Return a data set that is not called synthetic."""
    folder = tmp_path_factory.mktemp("data") / "recorded"
    shutil.copytree(small_data, folder, ignore=shutil.ignore_patterns("Image_feature"))
    (folder / "dataset.json").write_text('{"name": "mine", "modality": "EEG"}')
    return folder


MADE = {  # folder and concepts of the data that a grid without data makes
    "demo": ("demo", 500), "demo-full": ("demo-full", 600), "ablation": ("demo-full", 600),
    "main": ("synthetic_eeg_2_subjects", 600), "ablation --synthetic.train_concepts 7": ("demo-full", 7),
    "demo --synthetic.subjects 3": ("demo_eeg_3_subjects", 500),
}  # fmt: skip


@pytest.mark.parametrize("flags", MADE)
def test_a_grid_without_data_says_so_and_makes_those_it_names(flags, monkeypatch, fail, capsys):
    def make(folder: Path, config: SyntheticConfig, _: object) -> None:
        said = "the grid runs on synthetic data; for recorded ones give --eeg or --meg" in capsys.readouterr().err
        assert said == (not flags.startswith("demo"))  # which is made for synthetic data
        raise UserError(f"{folder} {config.train_concepts} of {config.subjects}")

    monkeypatch.setattr(reproduce, "make_dataset", make)
    folder, concepts = MADE[flags]
    fail(f"bvsa_data/{folder} {concepts} of ", "reproduce", *flags.split())


WRONG = {
    "metods: [ubp]": "mine.yaml: unknown key 'metods'; did you mean 'methods'?",
    "[ubp]": "mine.yaml: must hold settings as 'name: value'",
    "methods: []": "mine.yaml: methods is empty",
    "methods: [ubq]": "unknown method 'ubq'; did you mean 'ubp'?",
    "methods: [{method: ubp, preset: papr}]": "method ubp has no preset 'papr'",
    "methods: [{method: mcdb, preset: code}]": "method mcdb has no preset 'code'; choose one of corrected, paper",
    "methods: [{method: ubp, options: {gains: 1}}]": "methods[0]: options: unknown key 'gains'; did you mean 'gain'?",
    "methods: [{method: ubp, options: {gain: much}}]": 'methods[0]: options: Parser key "gain": Expected'
    " a <class 'float'>",
    "methods: [{method: vanilla, options: {gain: 1}}]": "methods[0]: options: unknown key 'gain'; choose one of",
    "methods: [{method: ubp, published: UPB}]": "unknown published row 'UPB'",
    "methods: [{method: ubp, scorings: [{gate: papr}]}]": "unknown gate 'papr'",
    "methods: [{method: ubp, scorings: [{gait: none}]}]": "methods[0]: scorings[0]: unknown key 'gait';"
    " did you mean 'gate'?",
    "methods: [ubp, ubp]": "ubp and ubp have the same name",
    "methods: [ubp]\nsynthetic: {concepts: 3}": "mine.yaml: synthetic: unknown key 'concepts'",
    "methods: [ubp]\nseeds: many": "mine.yaml: Parser key \"seeds\": Expected a <class 'int'>. Got value: many",
    "methods: [ubp]\nseeds: 0": "seeds is 0; it must be 1 to 1000",
    "methods: [ubp]\nseeds: 1000000000": "seeds is 1000000000; it must be 1 to 1000",
    "methods: [ubp]\nresamples: 1000000000": "resamples is 1000000000; it must be 0 to 10000",
    "methods: [ubp]\nsettings: [inner]": "Expected a typing.Literal['intra', 'inter']. Got value: inner",
    "methods: [ubp]\nrun: {epochz: 3}": "mine.yaml: run: unknown key 'epochz'; did you mean 'epochs'?",
    "methods: [ubp]\nrun: {seed: 3}": "mine.yaml: run: unknown key 'seed'",
    "methods: [ubp]\nrun: {epochs: 0}": "epochs is 0; it must be at least 1",
    "methods: [ubp]\nencoders: [lstm]": "unknown encoder 'lstm'",
    "methods: [ubp]\nsubjects: [sub-09]": "no subject sub-09; there are sub-01, sub-02",
    "methods: [ubp]\nbaseline: upb": "unknown baseline 'upb'; did you mean 'ubp'?",
    "methods: [ubp]\nmodalities: [meg]": "MEG is skipped: no folder was given with --meg",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_bad_grid_is_refused(text, small_data, tmp_path, fail):
    (tmp_path / "mine.yaml").write_text(text)
    fail(WRONG[text], "reproduce", tmp_path / "mine.yaml", "--eeg", small_data, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_stands_for_its_row_or_for_all_rows_of_a_method():
    _, main_systems = read_grid("main")
    _, ablation = read_grid("ablation")
    labels = lambda systems, names: [each.label for each in systems_named(systems, names)]  # noqa: E731
    assert labels(main_systems, ["vanilla"]) == ["vanilla"]  # not shallow, whose method is vanilla
    assert labels(main_systems, ["samga", "shallow"]) == ["shallow", "samga"]
    rows = [each.label for each in ablation if each.method == "bvsa"]
    assert len(rows) > 1 and "bvsa" not in rows and labels(ablation, ["bvsa"]) == rows


def test_between_subjects_needs_two(small_data, tmp_path):
    grid, systems = read_grid("main")
    alone = shutil.copytree(small_data, tmp_path / "alone")
    shutil.rmtree(alone / "Preprocessed_data_250Hz_whiten" / "sub-02")
    todo, skipped = cells(grid, systems, {"eeg": alone}, {})
    assert {cell.config.setting for cell in todo} == {"intra"} and "inter-subject is skipped" in skipped[0]
    assert all(row.comparison.result is None for row in results.comparison_rows(todo, {}, list_others=False))


def test_the_four_settings_are_rows_of_one_table(small_data, tmp_path, succeed):
    meg, out = tmp_path / "meg", tmp_path / "out"
    shutil.copytree(small_data, meg, ignore=shutil.ignore_patterns("Image_feature"))
    about = json.loads((meg / "dataset.json").read_text())
    (meg / "dataset.json").write_text(json.dumps({**about, "modality": "MEG"}))
    quick = (*QUICK, "--seeds", 1, "--resamples", 0, "--bank", small_data / "Image_feature")  # of the same images
    succeed("reproduce", "main", "--eeg", small_data, "--meg", meg, "--out", out, "--methods", "mcdb", *quick)
    records = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    ours = [record for record in records if record["system"] == "mcdb"]
    settings = [("eeg", "intra"), ("eeg", "inter"), ("meg", "intra"), ("meg", "inter")]
    assert [(record["modality"], record["setting"]) for record in ours] == settings
    assert all(record["data"] == "synthetic" and record["subjects"] == "2" for record in ours)
    protocols = [row["protocol"] for row in json.loads((out / "statistics.json").read_text())["rows"]]
    expected = [(modality, f"{setting}-subject") for modality, setting in settings]
    assert [(protocol["modality"].lower(), protocol["setting"]) for protocol in protocols] == expected
    assert "ours: 17 channels; usual are 271" in ours[2]["notes"]
    assert "2 subject(s); published are means over 4" in ours[3]["notes"]
    bvsa = [(each["modality"], each["published_top1"]) for each in records if each["published_method"] == "BVSA"]
    assert bvsa == [("eeg", "58.2"), ("eeg", "15.8"), ("meg", "32.5"), ("meg", "5.4")]


def test_a_plan_counts_what_the_grid_then_runs(grid, done, small_data, tmp_path, capsys):
    def planned(*flags: object) -> list[str]:
        before = {path: path.stat().st_mtime_ns for root in (tmp_path, small_data, done) for path in root.rglob("*")}
        assert main([str(word) for word in ("reproduce", grid, "--plan", *QUICK[:4], *flags)]) == 0
        after = {path: path.stat().st_mtime_ns for root in (tmp_path, small_data, done) for path in root.rglob("*")}
        assert before == after
        return capsys.readouterr().out.splitlines()

    new = planned("--eeg", small_data, "--out", tmp_path / "new")
    assert new[:2] == [f"EEG: 2 subjects in {small_data}", "4 cells (4 EEG)"]
    assert re.fullmatch(
        r"  EEG intra-subject, vanilla, eeg_project, tiny: 2 of 2 cells left, 2 steps of .*hours", new[2]
    )
    assert new[-1] == "nothing is missing"
    finished = planned("--eeg", small_data, "--out", done)
    assert "vanilla, eeg_project, tiny: 0 of 2 cells left" in finished[2] and "0.00 hours" in finished[2]
    assert any(line.startswith("about 0.0 hours") for line in finished)
    nowhere = planned("--eeg", tmp_path / "nowhere", "--vision", "RN50", "--cache_dir", tmp_path / "no_weights")
    assert "EEG: assumed is THINGS-EEG2 as published, 10 subjects" in nowhere
    assert f"missing: EEG data ({tmp_path}/nowhere: no such folder); see docs/reproduce.md, or" in "\n".join(nowhere)
    assert any(line.startswith("missing: weights of RN50; ") for line in nowhere)
    assert "10 of 10 cells left, 259 steps" in nowhere[2]
    assert any(line.startswith("  features of 16740 EEG images at ") for line in nowhere)


def test_a_plan_counts_images_that_are_encoded_in_the_steps(small_data, tmp_path, succeed):
    shown = succeed("reproduce", "records", "--plan", "--eeg", small_data, "--out", tmp_path / "new", *QUICK[:4])
    images = len(Dataset(small_data).load("sub-01", "train").images)
    for system in ("LoRA", "LoRA + blur", "learnt blur"):
        line = (
            f"EEG intra-subject, {system}, tiny: {2 * 2 * images} images blurred and encoded inside the steps, 3 passes"
        )
        assert line in shown and f"{system}, eeg_project, tiny: 4 of 4 cells left" in shown
    assert "not timed" not in shown and "nothing is missing" not in shown
