"""Whole runs: their files, that they repeat, and that they learn from pairs of recordings and images alone."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from trainings import losses, make_config, train_run

from bvsa_core import methods
from bvsa_core.errors import UserError
from bvsa_core.io import atomic
from bvsa_core.report.comparison_table import ComparisonRow, notes, to_csv
from bvsa_core.report.tables import method_results, to_markdown
from bvsa_core.retrieval.scoring import Scoring
from bvsa_core.synthetic.dataset import SyntheticConfig, make_dataset
from bvsa_core.training import loop
from bvsa_core.training.checkpoint import Checkpointer
from bvsa_core.training.config import RunConfig, RunDataConfig
from bvsa_core.training.run import run, train
from bvsa_core.training.run_data import RunData, choose_device
from bvsa_core.training.run_folder import RunFolder

METHODS = ("vanilla", "ubp", "bvsa")
PRESETS = [(name, preset) for name in METHODS for preset in methods.method_class(name).PRESETS]
FEW_DRAWS = methods.method_class("bravl").Options(draws=2)


@pytest.mark.parametrize("encoder", ["eeg_project", "tsconv"])
@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_every_method_runs_from_recordings_to_scores(run_data, tmp_path, method, preset, encoder):
    folder, reports = tmp_path / "run", []
    config = make_config(run_data, method=method, preset=preset, encoder=encoder)
    result = run(config, run_data, RunFolder(folder), lambda *report: reports.append(report))
    files = {"run.yaml", "metrics.jsonl", "weights.safetensors", "embeddings.safetensors", "result.json"}
    assert {path.name for path in folder.iterdir()} == files
    assert json.loads((folder / "result.json").read_text()) == result.to_json() and RunFolder(folder).result() == result
    scores, protocol = result.scores, result.protocol
    assert scores.n == 12 and len(result.ranks) == 12 and 0 <= scores.top1 <= scores.top5 <= 1
    assert (protocol.dataset, protocol.selection, protocol.encoder) == ("synthetic", "last", "tiny")
    assert (protocol.gallery, protocol.channels, protocol.repetitions) == (12, 17, 6)
    uses_labels = method == "bvsa" and preset != "corrected"
    assert protocol.information == ("uses labels" if uses_labels else "inductive")
    epochs = RunFolder(folder).metrics()
    assert [line["epoch"] for line in epochs] == [1, 2] and all(sum(line["blur"].values()) == 90 for line in epochs)
    assert ("epochs", 2, 2, f"loss {epochs[-1]['loss']:.4f}") in reports
    settings = yaml.safe_load((folder / "run.yaml").read_text())
    assert settings["method"] == method and settings["encoder"] == encoder and settings["seed"] == 0


@pytest.mark.parametrize(
    ("method", "changes", "note"),
    [
        ("nice", {"optimiser": "adam", "betas": (0.5, 0.999), "initial_std": 0.02, "validation": 6}, ""),
        ("atm", {"average": False, "encoder": "atm", "epochs": 1}, ""),
        ("bravl", {"method_options": FEW_DRAWS, "validation": 1}, "fitted on gallery"),
        ("mcdb", {}, "reconstruction"),
    ],
)
def test_comparison_methods_run_with_their_published_training(run_data, small_data, tmp_path, method, changes, note):
    used = RunData(RunDataConfig(data=small_data, average=False)) if "average" in changes else run_data
    result = train_run(tmp_path / "run", used, method=method, **changes)
    assert result.note == note and result.scores.n == 12 and result.protocol.information == "inductive"
    lines = RunFolder(tmp_path / "run").metrics()
    held = {0: 0, 1: 3, 6: 6}[changes.get("validation", 0)]  # whole concepts of three images
    samples = (90 - held) * (2 if "average" in changes else 1)
    for line in lines:
        assert line["blur"] == {"k1 gain 0": samples}
        assert ("validation_loss" in line) == (held > 0) and line.get("validation_loss", 0) < float("inf")
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    if method == "nice":
        assert weights["logit_scale"].item() == pytest.approx(math.log(1 / 0.07))
    assert ("adapters.image.branch.3.weight" in weights) == (method == "mcdb")


def test_bravl_code_trains_on_test_features_before_every_epoch_and_tables_say_so(small_data, tmp_path, monkeypatch):
    config = RunConfig.of("bravl", preset="code", data=small_data, epochs=2, batch_size=64, window=None)
    config = replace(config, method_options=replace(config.method_options, draws=2, latents=3))
    data, seen = RunData(config), []
    original = methods.method_class("bravl").forward
    spy = lambda method, batch: seen.append((len(batch.recordings), len(batch.images))) or original(method, batch)  # noqa: E731
    monkeypatch.setattr(methods.method_class("bravl"), "forward", spy)
    result = run(config, data, RunFolder(tmp_path / "run"))
    # 12 test images, each shown 6 times, then 90 training samples
    assert seen == [(0, 64), (0, 8), (64, 64), (26, 26)] * 2
    test = data.split("sub-01", "test")
    order = loop.epoch_order(config, 0, (test, None, None), (test, None, None))
    shown = torch.cat([samples for samples, _ in order[:-1]])
    assert shown.bincount().tolist() == [6] * 12
    assert result.protocol.training == "trains on test features" and result.protocol.information == "inductive"
    assert result.protocol.knowledge == "transductive (trains on test features)"
    assert RunFolder(tmp_path / "run").config() == config
    saved = RunFolder(tmp_path / "run").result()
    rescored = saved.rescored(RunFolder(tmp_path / "run").embeddings(), Scoring(rescoring="csls"))
    assert rescored.protocol.knowledge == "transductive (trains on test features), label-free transductive"
    (table,) = method_results([saved])
    assert "| transductive (trains on test features) |" in to_markdown([table])
    row = ComparisonRow("eeg", "intra", "bravl", "perceptron", table)
    assert "transductive: bravl (code) trains on test features, those of the test images and their texts" in notes(row)
    assert "transductive (trains on test features)" in to_csv([row])
    with pytest.raises(RuntimeError, match="the test set is read before training has ended"), data.sealed():
        train(config, data)
    several = Checkpointer(processes=SimpleNamespace(size=2))
    with pytest.raises(
        UserError, match="method bravl trains on test features in one process; start it without torchrun"
    ):
        train(config, data, checkpointer=several)


def test_holding_out_for_validation_changes_nothing_but_the_samples(run_data, tmp_path, monkeypatch):
    """The loss of held-out samples draws no random number of training and leaves no trace in the state."""
    train_run(tmp_path / "validated", run_data, method="bvsa", validation=6)
    monkeypatch.setattr(loop, "validate", lambda *_: 0.0)
    train_run(tmp_path / "not", run_data, method="bvsa", validation=6)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("validated", "not")]
    assert weights[0] == weights[1]


def test_multi_level_targets_are_trained_and_saved(small_data, tmp_path):
    fused = {"target_levels": [(51, 0.5)], "target_layers": [0]}
    run_data = RunData(RunDataConfig(data=small_data, **fused))
    first = train_run(tmp_path / "a", run_data, method="vanilla")
    weights = load_file(tmp_path / "a" / "weights.safetensors")
    assert weights["fusion.weights"].shape == (2, 2) and weights["fusion.weights"].abs().max() > 0
    assert weights["fusion.maps.0.weight"].shape == (128, 128) and weights["fusion.maps.0.weight"].abs().max() > 0
    assert load_file(tmp_path / "a" / "embeddings.safetensors")["image"].shape == (12, 128)
    assert train_run(tmp_path / "b", run_data, method="vanilla") == first
    with pytest.raises(UserError, match=r"target_levels has \(50, 0.5\); give an odd kernel size"):
        RunDataConfig(target_levels=[(50, 0.5)])


def test_an_encoder_in_bfloat16_learns_nearly_the_same(run_data, tmp_path):
    for precision in ("32-true", "bf16-mixed"):
        train_run(tmp_path / precision, run_data, method="bvsa", precision=precision)
    expected, half = losses(tmp_path / "32-true"), losses(tmp_path / "bf16-mixed")
    # Cosines are right to two roundings of 2^-8, times the scale 1 / 0.07, in losses of about log 32.
    assert half == pytest.approx(expected, rel=2 * 2**-8 / 0.07 / 3.5) and half != expected


def test_continuous_decoupling_runs_online(small_data, tmp_path):
    online = RunData(RunDataConfig(data=small_data, views="online"))
    options = methods.method_class("bvsa").Options(continuous=True)
    train_run(tmp_path / "run", online, method="bvsa", method_options=options, batch_size=1024)
    state = load_file(tmp_path / "run" / "weights.safetensors")
    assert len(state["gain"].unique()) > 10 and len(state["kernel_size"].unique()) > 10
    lines = [line["blur"] for line in RunFolder(tmp_path / "run").metrics()]
    assert all(sum(line.values()) == 90 and len(line) > 1 for line in lines)


def test_a_run_repeats_to_the_byte_and_another_seed_differs(run_data, small_data, tmp_path):
    fresh = RunData(RunDataConfig(data=small_data))  # as in a fresh process
    for name, seed, used in (("a", 0, run_data), ("b", 0, fresh), ("c", 1, run_data)):
        train_run(tmp_path / name, used, method="bvsa", seed=seed)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_blur_follows_the_similarities(run_data, tmp_path):
    train_run(tmp_path / "run", run_data, method="bvsa", epochs=6, lr=1e-3)
    lines = [line["blur"] for line in RunFolder(tmp_path / "run").metrics()]
    assert all("k51 gain 0.5" in line for line in lines)
    assert len({level for line in lines for level in line}) > 3
    state = load_file(tmp_path / "run" / "weights.safetensors")
    assert state["gain"].unique().tolist() == [0.0, 0.5, 1.0] and set(state["kernel_size"].tolist()) <= {45, 51, 57}


def test_a_complete_run_is_not_repeated_and_an_interrupted_one_is(run_data, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    first = train_run(folder, run_data, method="ubp")
    written = (folder / "weights.safetensors").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "FileLock", lambda *how: pytest.fail("a complete run is locked"))
        assert train_run(folder, run_data, method="ubp") == first
    assert (folder / "weights.safetensors").stat().st_mtime_ns == written
    (folder / "result.json").unlink()
    assert train_run(folder, run_data, method="ubp") == first
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_other_folders_are_left_alone(run_data, tmp_path):
    train_run(tmp_path / "run", run_data, method="vanilla")
    with pytest.raises(UserError, match="holds a run with other settings"):
        train_run(tmp_path / "run", run_data, method="vanilla", seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty and not a run"):
        train_run(tmp_path / "mine", run_data, method="vanilla")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_online_and_banked_runs_agree(run_data, small_data, tmp_path):
    online = RunData(RunDataConfig(data=small_data, views="online"))
    for name, used in (("banked", run_data), ("online", online)):
        train_run(tmp_path / name, used, method="bvsa", batch_size=1024)
    assert losses(tmp_path / "banked") == pytest.approx(losses(tmp_path / "online"), rel=1e-4)


@pytest.fixture(scope="module")
def many_concepts(tmp_path_factory) -> RunData:
    """Return data with 200 test concepts, and enough to learn from."""
    folder = tmp_path_factory.mktemp("data") / "many"
    sizes = {"subjects": 1, "train_concepts": 300, "images_per_concept": 3, "train_repetitions": 2}
    make_dataset(folder, SyntheticConfig(**sizes, test_repetitions=20, samples=100, signal_to_noise=0.6))
    return RunData(RunDataConfig(data=folder))


@pytest.mark.parametrize("method", METHODS)
def test_retrieval_is_above_chance_and_at_chance_with_shuffled_pairs(many_concepts, tmp_path, method):
    settings = {"method": method, "epochs": 12, "batch_size": 256, "lr": 3e-4}
    paired, shuffled = (
        train_run(tmp_path / str(value), many_concepts, **settings, shuffle_pairs=value).scores
        for value in (False, True)
    )
    assert paired.n == 200 and paired.top1 >= 0.03 and paired.top5 >= 0.1  # chance: 0.005 and 0.025
    # A run at chance exceeds these once in ten thousand: binomial, 200 queries.
    assert shuffled.top1 <= 6 / 200 and shuffled.top5 <= 15 / 200 and 60 < shuffled.median_rank < 140


def test_settings_that_cannot_run_are_refused(run_data, tmp_path):
    short = RunData(RunDataConfig(data=run_data.config.data, window=(0.0, 0.096)))
    for data, changes, message in (
        (run_data, {"subject": "sub-09"}, "no subject 'sub-09'; there are sub-01, sub-02"),
        (run_data, {"method": "vanilla", "lr": 1e30}, r"lower the learning rate, lr \(now 1e\+30\)$"),
        (short, {"encoder": "tsconv"}, "needs at least 75 time points, not 25; choose a longer window"),
        (run_data, {"precision": "bf16"}, "unknown precision 'bf16'; choose one of 32-true, bf16-mixed"),
        (run_data, {"precision": "16-mixed"}, "precision 16-mixed is for GPUs; take bf16-mixed on the CPU"),
    ):
        with pytest.raises(UserError, match=message):
            train_run(tmp_path / message, data, **changes)
    with pytest.raises(UserError, match="unknown device 'gpu0'"):
        choose_device("gpu0")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"device 'cuda' is not there \(0 GPUs are visible\); use --device cpu"):
            choose_device("cuda")


def test_a_missing_image_is_named(small_data, tmp_path):
    copy = shutil.copytree(small_data, tmp_path / "data")
    image = next((copy / "Image_set_Resize").rglob("*_02b.jpg"))
    image.unlink()
    with pytest.raises(UserError, match=f"{image.name} is missing"):
        train_run(tmp_path / "run", RunData(RunDataConfig(data=copy)))
