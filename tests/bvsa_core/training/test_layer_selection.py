"""The layer of the image encoder is chosen on held-out concepts, without the test set, before the training on all."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bvsa_core.errors import UserError
from bvsa_core.experiments.report_data import group_runs
from bvsa_core.report.content import Report
from bvsa_core.report.result_figures import report_figures
from bvsa_core.training import layer_selection
from bvsa_core.training import run as run_module
from bvsa_core.training.config import RunConfig, RunDataConfig
from bvsa_core.training.evaluation import evaluate
from bvsa_core.training.run import run, train
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.training.selection import validation_top1
from bvsa_core.vision.encoder import VisionEncoder

TARGETS = ["layer:0", "layer:1", "layer:2", "output"]


def config_of(run_data: RunData, **changes) -> RunConfig:
    chosen = {"data": run_data.config.data, "preset": "shallow", "epochs": 3, "select_epochs": 2, "batch_size": 32}
    return RunConfig.of("vanilla", **{**chosen, "validation": 18, "lr": 1e-3, "projector_dim": 32, **changes})


class OtherTest(RunData):
    """The same data with other test recordings."""

    def split(self, subjects, split, *rest):
        chosen = super().split(subjects, split, *rest)
        return replace(chosen, recordings=chosen.recordings.flip(0)) if split == "test" else chosen


class Planted(RunData):
    """The same data with recordings that are linear maps of the second layer of given features."""

    def split(self, subjects, split, *rest):
        chosen, (_, channels, time) = super().split(subjects, split, *rest), (0, 17, 100)
        layer = self.with_target("layer:1").clip.of(chosen.images)[chosen.image_of]
        to_recording = torch.randn(layer.shape[1], channels * time, generator=torch.Generator().manual_seed(0))
        return replace(chosen, recordings=(layer @ to_recording).unflatten(1, (channels, time)))


def test_selects_the_layer_that_recordings_are_made_from(run_data, tmp_path):
    splits = [run_data.split("sub-01", split).images for split in ("train", "test")]
    names = [name for images in splits for name in dict.fromkeys(images)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    np.save(tmp_path / "three.npy", np.random.default_rng(0).normal(size=(len(names), 3, 8)).astype(np.float32))
    places = {"features": tmp_path / "three.npy", "features_images": tmp_path / "names.txt"}
    config = config_of(run_data, epochs=8, select_epochs=None, **places)
    trained = train(config, Planted(RunDataConfig(data=run_data.config.data, **places)))
    assert trained.layers.chosen == "layer:1" and list(trained.layers.top1) == TARGETS[:3]
    others = [top1 for target, top1 in trained.layers.top1.items() if target != "layer:1"]
    assert trained.layers.top1["layer:1"] > max(others) + 0.2  # chance: 1 of 6
    scores = evaluate(trained, config, Planted(RunDataConfig(data=run_data.config.data, **places))).scores
    assert scores.top1 > 0.5  # chance: 1 of 12


@pytest.fixture(scope="module")
def trained(run_data):
    return train(config_of(run_data), run_data)


def test_the_curve_is_that_of_trainings_on_the_other_concepts(run_data, trained):
    top1 = {}
    for target in TARGETS:
        config = config_of(run_data, target=target, select_layer=False, epochs=2)
        own = RunData(RunDataConfig(data=run_data.config.data, target=target))
        alone = train(config, own)
        views = own.views(alone.split.images, alone.method.gallery_feature_levels())
        texts = own.texts(alone.split.images, alone.split.concepts)
        top1[target] = validation_top1(alone.method, alone.held_out, views, texts, alone.split.subjects)
    assert list(trained.layers.top1) == TARGETS and trained.layers.top1 == top1
    assert top1[trained.layers.chosen] == max(top1.values()) > min(top1.values())
    assert (trained.layers.concepts, trained.layers.epochs) == (6, 2)


def test_the_last_training_is_that_of_the_chosen_layer_on_all_concepts(run_data, trained):
    config = config_of(run_data)
    alone = replace(config, target=trained.layers.chosen, select_layer=False)
    other = train(alone, RunData(RunDataConfig(data=run_data.config.data, target=alone.target)))
    assert other.layers is None and len(trained.split) + len(trained.held_out) == 90
    for name, value in other.method.state_dict().items():
        assert torch.equal(trained.method.get_parameter(name), value), name
    protocol = evaluate(trained, config, run_data).protocol
    assert protocol.selection == "last, layer chosen on 6 held-out concepts" and "layer:" not in protocol.encoder


def test_the_test_set_is_not_read(run_data, trained, monkeypatch):
    config = config_of(run_data)
    assert train(config, OtherTest(RunDataConfig(data=run_data.config.data))).layers == trained.layers
    original = layer_selection.validation_top1

    def peek(*given):
        run_data.split("sub-01", "test")
        return original(*given)

    monkeypatch.setattr(layer_selection, "validation_top1", peek)
    with pytest.raises(RuntimeError, match="the test set is read before training has ended"):
        train(config, run_data)


def test_a_run_keeps_the_layer_and_its_curve(run_data, tmp_path, monkeypatch):
    folder, config = RunFolder(tmp_path / "run"), config_of(run_data)

    def stop(*given, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "evaluate", stop)  # killed after the training
        with pytest.raises(KeyboardInterrupt):
            run(config, run_data, folder)
    chosen = json.loads(folder.layers.read_text())["chosen"]
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "select_layer", stop)
        shutil.copytree(folder.path, tmp_path / "copy")  # continued by its run.yaml
        by_its_settings = run(folder.config(), run_data, RunFolder(tmp_path / "copy"))
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "select_layer", stop)  # it is not chosen again
        result = run(config, run_data, folder)
        assert run(config, run_data, folder) == result == by_its_settings
    assert result.layers.chosen == chosen == folder.config().target and not folder.config().select_layer
    assert result == RunFolder(tmp_path / "run").verify() and not folder.layers.exists()
    with pytest.raises(UserError, match="select_epochs 2 -> 1"):
        run(replace(config, select_epochs=1), run_data, folder)
    again = RunFolder(folder.path, overwrite=True)
    assert run(replace(config, select_epochs=1), run_data, again).layers.epochs == 1


def test_a_stopped_choice_continues(run_data, trained, tmp_path, monkeypatch):
    folder, config, tried = RunFolder(tmp_path / "run"), config_of(run_data), []
    original = layer_selection.validation_top1

    def stopped_at_the_third(*given):
        tried.append(given)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(layer_selection, "validation_top1", stopped_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(config, run_data, folder)
    assert list(json.loads(folder.tried.read_text())["top1"]) == TARGETS[:2]
    assert run(config, run_data, folder).layers == trained.layers and len(tried) == 3 + 2
    assert list(trained.layers.top1) == TARGETS and not folder.tried.exists()


@pytest.mark.parametrize(
    "content",
    ['{"top1": {"output": 2}}', '{"top1": {"output": "x"}}', "{}", "[]", '{"top1"'],
)
def test_a_damaged_choice_is_one_line(run_data, tmp_path, content):
    folder, config = RunFolder(tmp_path / "run"), config_of(run_data)
    folder.path.mkdir()
    folder.begin(config)
    for path in (folder.tried, folder.layers):
        path.write_text(content)
        with pytest.raises(UserError, match=rf"{path.name}.*delete it, and the layer is chosen again"):
            run(config, run_data, folder)


def test_a_choice_with_other_features_is_not_continued(run_data, tmp_path):
    folder, config = RunFolder(tmp_path / "run"), config_of(run_data)
    folder.path.mkdir()
    folder.begin(config)
    selection = {"chosen": "output", "top1": {"output": 0.5}, "concepts": 2, "epochs": 1}
    for path in (folder.tried, folder.layers):
        path.write_text(json.dumps(selection | {"features": {"features": "0"}}))
        with pytest.raises(UserError, match=rf"{path.name}: written for other features .*; delete it"):
            run(config, run_data, folder)


def test_runs_of_other_layers_are_one_row_and_one_figure(run_data, tmp_path):
    folders = [RunFolder(tmp_path / f"seed{seed}") for seed in range(3)]
    results = [run(config_of(run_data, seed=seed, epochs=1), run_data, each) for seed, each in enumerate(folders)]
    assert len({result.layers.chosen for result in results}) > 1, "take other seeds"
    rows = group_runs(folders)
    assert len(rows) == 1 and len(rows[0].runs) == 3
    (figure,) = [each for each in report_figures(Report("", rows)) if each.name.startswith("layer-selection")]
    highest = max(TARGETS, key=lambda target: sum(result.layers.top1[target] for result in results))
    assert "6 concepts held out" in figure.caption and "2 epochs" in figure.caption
    assert f"percent, of {highest}." in figure.alt and "in 1 of 3 runs" in figure.alt
    (axes,) = figure.draw().axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2", "output"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "layer:1"}, "target is layer:1, and select_layer chooses one; give --select_layer false"),
        ({"vision_lora": 2}, "select_layer is for a frozen image encoder; name the layer with target instead"),
        ({"select_epochs": 0}, "select_epochs is 0; it must be at least 1"),
        ({"validation": 1}, "select_layer holds 1 images out, which are of one concept, and the choice takes two"),
    ],
)
def test_what_cannot_be_chosen_is_reported(run_data, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(config_of(run_data, **changes), run_data, RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_methods_that_take_several_layers_or_test_images_choose_none():
    with pytest.raises(UserError, match="select_layer chooses one layer, and method samga takes several"):
        RunConfig.of("samga", target="output", select_layer=True)
    with pytest.raises(UserError, match="select_layer knows no test images, and the method trains on them"):
        RunConfig.of("bravl", preset="code", select_layer=True)


class Stages(nn.Module):
    """An image encoder whose layers have 8, 12 and 16 dimensions, and its output 16."""

    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(*(nn.Conv2d(one, other, 2, 2) for one, other in ((3, 8), (8, 12), (12, 16))))

    def forward(self, images):
        return self.stages(images).mean((2, 3))


def test_data_that_other_runs_share_give_each_target_its_widths(run_data):
    shared = RunData(RunDataConfig(data=run_data.config.data))
    shared.encoder = VisionEncoder(Stages(), image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3, name="stages").frozen()
    assert shared.part_widths() == [16]  # as a run before, with the output as target, asks for
    assert shared.with_target("layer:1").part_widths() == [12]
    assert shared.with_target("layers:[output,0]").part_widths() == [16, 8] and shared.part_widths() == [16]


@pytest.mark.parametrize("layers", [1, 3])
def test_a_layer_of_given_features_is_chosen(run_data, tmp_path, layers):
    images = [name for split in ("train", "test") for name in dict.fromkeys(run_data.split("sub-01", split).images)]
    array = np.random.default_rng(0).standard_normal((len(images), layers, 8), dtype=np.float32)
    torch.save({"features": torch.from_numpy(array), "images": images}, tmp_path / "features.pt")
    config = config_of(run_data, features=tmp_path / "features.pt")
    result = run(config, RunData(config), RunFolder(tmp_path / "run"))
    others = ["output"] if layers == 1 else []
    assert list(result.layers.top1) == [*(f"layer:{layer}" for layer in range(layers)), *others]
