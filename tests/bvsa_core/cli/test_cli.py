"""The command line: what each command does, and one clear line with exit code 2 for what is wrong."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bvsa_core import encoders, methods
from bvsa_core.cli import COMMANDS, main
from bvsa_core.cli.arguments import Parser, add_run_arguments, to_dataclass
from bvsa_core.cli.demo import in_words
from bvsa_core.experiments.grid import read_grid
from bvsa_core.synthetic.dataset import SyntheticConfig, plan_images
from bvsa_core.training.config import RunConfig
from bvsa_core.vision import downloads

REPOSITORY = Path(__file__).parents[3]
QUICK = ("--epochs", 2, "--batch_size", 64)


def synthetic(**sizes: int) -> list[str]:
    """Flags of `bvsa demo` for a small synthetic data set."""
    return [f"--synthetic.{name}={value}" for name, value in sizes.items()]


def test_demo_makes_table_and_page_and_the_second_time_trains_nothing(tmp_path, succeed):
    runs = tmp_path / "runs"
    sizes = synthetic(train_concepts=20, images_per_concept=2, test_concepts=8, test_repetitions=4, samples=80)
    command = ["demo", "--data", tmp_path / "data", "--out", runs, "--seeds", 2, *QUICK, *sizes]
    shown = succeed(*command)
    parts = ("vanilla", "ubp", "bvsa", "(corrected)", "last, inductive", "gate none", "synthetic data, 8-way retrieval")
    assert [part for part in parts if part not in shown] == []
    assert (
        shown.index("1 seed(s)") < shown.index("seed 0; 1 more") < shown.index("2 seed(s)") < shown.index("bvsa - ubp")
    )
    page = (runs / "page.html").read_text()
    parts = ("<h1>bvsa demo</h1>", "vanilla (corrected)", "Blur levels, ubp", "Test repetitions, synthetic")
    assert [part for part in parts if part not in page] == []
    table = (runs / "table.md").read_text()
    assert table.count("(corrected)") == 3 and "(chance 12.5 %)" in table and "1 subject(s) x 2 seed(s)" in table
    weights = {path: path.stat().st_mtime_ns for path in runs.rglob("weights.safetensors")}
    assert len(weights) == 6
    succeed(*command)
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert (runs / "table.md").read_text() == table


def test_full_demo_has_a_larger_grid_and_folders_of_its_own(capsys):
    for flags, name, concepts, batch_size in ((["--full"], "demo-full", 600, 1024), ([], "demo", 500, 256)):
        with pytest.raises(SystemExit):
            main(["demo", *flags, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        defaults = f"bvsa_data/{name}", f"bvsa_runs/{name}", concepts, batch_size
        assert [value for value in defaults if f"default: {value})" not in shown] == []


def test_the_search_in_the_docs_finds_an_image_of_the_demo():
    word = re.search(r"page\.html#q=(\w+)", (REPOSITORY / "docs" / "command.md").read_text())[1]
    plan = plan_images(SyntheticConfig(**read_grid("demo")[0].synthetic))
    assert any(word in image.concept for image in plan["test"])


def test_words_under_the_table_follow_from_paired_intervals():
    hits = {"a": 1, "b": 3, "c": 3}  # rank of every image
    protocol = SimpleNamespace(gallery=4)
    results = [
        SimpleNamespace(method=name, subject="sub-01", seed=seed, ranks=[rank] * 4, protocol=protocol)
        for name, rank in hits.items() for seed in (0, 1)
    ]  # fmt: skip
    lines = in_words(results)
    assert lines[0] == "Top-1 above chance (25 %) by the whole interval: a"
    apart = "a - b, on the same recordings: +66.7 [+66.7, +66.7] points of mAP: a significant difference"
    assert lines[1] == apart and lines[2] == apart.replace("- b", "- c")
    assert lines[3] == "b - c, on the same recordings: +0.0 [+0.0, +0.0] points of mAP: no significant difference"


def test_demo_with_online_views_gives_the_same_table(tmp_path, succeed):
    sizes = synthetic(train_concepts=8, images_per_concept=2, test_concepts=4, test_repetitions=2, samples=80)
    shared = ["--data", tmp_path / "data", "--vision=tiny", "--seeds", 1, "--resamples", 0, *QUICK, *sizes]
    tables = []
    for views in ("banked", "online"):
        succeed("demo", "--out", tmp_path / views, "--views", views, *shared)
        tables.append((tmp_path / views / "table.md").read_text())
    assert tables[0] == tables[1]


def test_synthetic_data_are_made_and_checked(tmp_path, succeed):
    sizes = "--train_concepts=3 --images_per_concept=2 --test_concepts=2 --test_repetitions=2 --samples=60 --subjects=1"
    assert "synthetic EEG data of 1 subject(s)" in succeed("data", "synthetic", tmp_path / "data", *sizes.split())
    shown = succeed("data", "check", tmp_path / "data")
    parts = ("6 conditions x 4 repetitions x 17 channels x 60 samples", "8 images named", "nothing wrong")
    assert [part for part in parts if part not in shown] == []


def test_features_fill_the_bank_that_runs_then_only_read(small_data, tmp_path, succeed, capsys):
    shown = succeed("features", "--data", small_data, "--bank", tmp_path / "bank")
    assert "train: 90 images at 10 levels" in shown and "test: 12 images at 10 levels" in shown
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "bank").rglob("*") if path.is_file()}
    assert sum(path.name.startswith("k") for path in files) == 20
    for method in ("vanilla", "ubp", "bvsa"):
        run = ["--bank", tmp_path / "bank", "--out", tmp_path / method, "--method", method, *QUICK]
        succeed("train", "--data", small_data, *run)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "bank").rglob("*") if path.is_file()} == files
    chosen = succeed("features", "--data", small_data, "--bank", tmp_path / "two", "--levels", "51:0.5", "1:0")
    assert "90 images at 2 levels" in chosen
    cut = next((tmp_path / "two").glob("*/k51_gain0.5.safetensors"))
    cut.write_bytes(cut.read_bytes()[:-100])
    assert main(["features", "--data", str(small_data), "--bank", str(tmp_path / "two"), "--levels", "51:0.5"]) == 2
    assert f"{cut}: damaged or incomplete" in capsys.readouterr().err


def test_all_subjects_are_trained_one_after_another(small_data, tmp_path, succeed):
    out = ["--subject", "all", "--out", tmp_path / "runs", "--method", "vanilla"]
    shown = succeed("train", "--data", small_data, *out, *QUICK)
    assert "2 subject(s) x 1 seed(s)" in " ".join(shown.split())
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"sub-01", "sub-02"}


def test_a_run_repeats_from_its_own_settings(finished, tmp_path, succeed):
    again, other = tmp_path / "again", tmp_path / "other"
    succeed("train", "--config", finished / "run.yaml", "--out", again)
    assert (again / "result.json").read_text() == (finished / "result.json").read_text()
    succeed("train", "--config", finished / "run.yaml", "--out", other, "--seed", 3, "--method_options.c", 0.25)
    assert json.loads((other / "result.json").read_text())["seed"] == 3
    assert "c: 0.25" in (other / "run.yaml").read_text()


def test_flags_and_files_override_the_training_of_a_method(small_data, tmp_path, capsys, succeed):
    run, again = tmp_path / "run", tmp_path / "again"
    (tmp_path / "mine.yaml").write_text("method: nice\nlr: 0.001\nbatch_size: 40\n")
    given = ["--batch_size", 30, "--epochs", 1, "--validation", 6, "--target_levels", "[[51,0.5]]"]
    succeed("train", "--config", tmp_path / "mine.yaml", "--data", small_data, "--out", run, *given)
    settings = yaml.safe_load((run / "run.yaml").read_text())
    of_nice = {
        "encoder": "tsconv",
        "optimiser": "adam",
        "betas": [0.5, 0.999],
        "initial_std": 0.02,
        "weight_decay": 0.0,
    }
    overridden = {"lr": 0.001, "batch_size": 30, "validation": 6, "target_levels": [[51, 0.5]]}
    assert (of_nice | overridden).items() <= settings.items()
    assert "nice" in succeed("train", "--config", run / "run.yaml", "--out", again)
    assert (again / "result.json").read_text() == (run / "result.json").read_text()
    assert main(["train", "--data", str(small_data), "--out", str(tmp_path / "other"), "--method", "nice"]) == 2
    assert "validation is 740; that leaves none of 90 training images, hold out fewer" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["intra", "inter"])
def test_the_training_of_a_method_depends_on_the_setting(tmp_path, setting):
    (tmp_path / "mine.yaml").write_text(f"method: samga\nsetting: {setting}\n")
    for given in (["--method", "samga", "--setting", setting], ["--config", str(tmp_path / "mine.yaml")]):
        parser = Parser(prog="bvsa train")
        add_run_arguments(parser, given)
        parsed = parser.parse_args(given)
        expected = RunConfig.of("samga", setting=setting)
        assert to_dataclass(RunConfig, parsed) == expected
        assert parsed.encoder == {"intra": "eeg_project", "inter": "tsconv"}[setting]


def test_setting_and_selection_are_saved_with_the_run(small_data, tmp_path, succeed):
    run = tmp_path / "run"
    chosen = "--setting inter --selection validation --repetitions 3 --method vanilla --epochs 1".split()
    shown = succeed("train", "--data", small_data, "--out", run, *chosen)
    assert "validation," in shown and "3 repetitions averaged" in " ".join(shown.split())
    settings = yaml.safe_load((run / "run.yaml").read_text())
    assert {"setting": "inter", "selection": "validation", "repetitions": 3, "lr": 1e-5}.items() <= settings.items()
    again = succeed("train", "--config", run / "run.yaml", "--out", run)
    assert again == shown  # the run is complete and has the same settings


def test_a_run_is_scored_again_under_another_gate(finished, tmp_path, succeed):
    def evaluate(*flags: str) -> tuple[str, dict]:
        shown = succeed("evaluate", finished, *flags, "--json", tmp_path / "new" / "figures.json")
        return shown, json.loads((tmp_path / "new" / "figures.json").read_text())

    assert "last, inductive" in succeed("evaluate", finished)
    shown, figures = evaluate("--gate", "paper")
    assert "last, uses labels" in shown and "gate paper" in shown
    assert figures["protocol"]["information"] == "uses labels"
    assert {"top1", "top5", "map", "median_rank", "n", "protocol"} <= set(figures)
    shown, figures = evaluate("--gate", "label_free", "--rescoring", "csls", "--shuffle_texts")
    assert "+ csls" in shown and "texts shuffled" in shown
    assert figures["protocol"]["information"] == "label-free transductive"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and f"usage: bvsa {command}" in shown
    if command == "train":
        assert all(name in shown for name in (*methods.names(), *encoders.names(), "braindecode:CLASS"))


@pytest.mark.parametrize("words", [["fovblur.info"], ["bvsa_core.cli", "--help"], ["bvsa_core.cli", "data", "--help"]])
def test_a_reader_that_closes_the_pipe_ends_a_command_silently(words):
    process = subprocess.Popen(
        [sys.executable, "-m", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0


@pytest.mark.parametrize("command", ["demo", "features", "train", "reproduce main"])
def test_weights_that_cannot_be_fetched_end_a_start_that_leaves_nothing(
    command, small_data, tmp_path, monkeypatch, fail
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "unreachable", lambda address: "the hub cannot be reached")
    before = {path: path.stat().st_mtime_ns for path in small_data.rglob("*")}
    data = ["--data", small_data] if command in ("features", "train") else []
    flags = [*data, "--vision", "RN50", "--cache_dir", tmp_path / "cache"]
    fail("weights 'openai' of RN50 are not on this machine, and the hub", *command.split(), *flags)
    assert not list(tmp_path.iterdir()) and {path: path.stat().st_mtime_ns for path in small_data.rglob("*")} == before


def test_a_complete_run_needs_no_weights(finished, monkeypatch, succeed):
    monkeypatch.setattr("bvsa_core.cli.train.check_weights", lambda *_: pytest.fail("looked for weights"))
    assert "bvsa" in succeed("train", "--config", finished / "run.yaml", "--out", finished)


def test_help_and_version_by_name(succeed, capsys):
    assert "usage: bvsa COMMAND" in succeed("help")
    with pytest.raises(SystemExit):
        main(["help", "data", "eeg"])
    assert "usage: bvsa data eeg [" in capsys.readouterr().out
    assert succeed("--version").startswith("bvsa 0.") and ", Python 3." in succeed("--version")


def test_help_is_in_words(capsys):
    for words in ([name] for name in COMMANDS):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        shown = capsys.readouterr().out
        for part in ("<class", "Optional", "Literal", "type:", "null", "[options]"):
            assert part not in shown, words
        if words == ["train"]:
            texts = (
                "(path, default: bvsa_data/demo)",
                "(two numbers)",
                "(whole number, default: 50)",
                "(list of whole",
            )
            assert [text for text in texts if text not in " ".join(shown.split())] == []


def test_flags_take_hyphens_another_spelling_and_two_numbers(small_data, tmp_path, succeed):
    flags = "--batch-size 64 --epochs=1 --optimizer adam --method-options.gallery-views=3 --window 0 0.2 --no-lock"
    succeed("train", "--data", small_data, "--out", tmp_path / "run", *flags.split(), "--betas", -0.0, 0.5)
    settings = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    given = {"batch_size": 64, "optimiser": "adam", "window": [0.0, 0.2], "betas": [0.0, 0.5]}
    assert given.items() <= settings.items() and settings["method_options"]["gallery_views"] == 3


IMPORTED_BY_HELP = """
import contextlib, io, sys
from bvsa_core.cli import COMMANDS, main

assert main(["--help"]) == 0 and "torch" not in sys.modules
for command in (*COMMANDS, "data check", "data synthetic"):
    for flag in ("--help", "--hepl"):
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            assert main([*command.split(), flag]) == 2
slow = {"lightning_fabric", "open_clip", "torchvision", "matplotlib", "sklearn", "scipy.stats", "torch._dynamo"}
print("imported:", *sorted(slow & set(sys.modules)))
"""


def test_help_and_a_typo_import_nothing_slow():
    done = subprocess.run([sys.executable, "-c", IMPORTED_BY_HELP], capture_output=True, text=True)
    assert done.stdout.endswith("imported:\n"), done.stdout + done.stderr


WAITING_AT_IMPORT = """
import os, sys

class AtImportOfTorch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))

sys.meta_path.insert(0, AtImportOfTorch())
if sys.argv[1] == "library":
    import fovblur, bvsa_core.training.run
else:
    from bvsa_core.cli import main
    main(["features", "--hepl"])
"""


@pytest.mark.parametrize("user, waiting, expected", [
    ("command", None, "PASSIVE"), ("command", "ACTIVE", "ACTIVE"), ("library", None, "None"),
])  # fmt: skip
def test_threads_of_the_command_sleep_while_they_wait(user, waiting, expected):
    """Torch's OpenMP reads the policy when it is loaded; a user's choice stays, and the library makes none."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": waiting} if waiting else {}
    command = [sys.executable, "-c", WAITING_AT_IMPORT, user]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == f"{expected}\n", done.stderr


def test_the_command_runs_as_a_program_and_names_a_missing_extra(monkeypatch, capsys):
    done = subprocess.run([sys.executable, "-m", "bvsa_core.cli", "trian"], capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean 'train'?" in done.stderr and "Traceback" not in done.stderr
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "open_clip" else find_spec(name))
    assert main(["train"]) == 2
    assert "open_clip not installed; the command needs: pip install 'fovblur[train]'" in capsys.readouterr().err
