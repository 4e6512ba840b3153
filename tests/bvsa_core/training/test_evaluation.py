"""Training and evaluating step by step gives the result of a run; what a result says about its method."""

import json

import pytest
import torch

from bvsa_core import methods
from bvsa_core.cli import main
from bvsa_core.retrieval.scoring import Scoring, ranks, similarity
from bvsa_core.training.config import RunConfig, RunDataConfig, deviations
from bvsa_core.training.evaluation import evaluate
from bvsa_core.training.run import run, train
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder


def test_the_steps_of_a_run_give_its_result(small_data, tmp_path):
    config = RunConfig(data=small_data, method="vanilla", epochs=1, batch_size=32)
    run_data = RunData(config)
    trained = train(config, run_data)
    evaluation = evaluate(trained, config, run_data)
    result = run(config, run_data, RunFolder(tmp_path / "run"))
    assert evaluation.ranks.tolist() == result.ranks and evaluation.images == result.images
    for name in ("scores", "protocol", "reliability"):
        assert getattr(evaluation, name) == getattr(result, name)
    gated = evaluate(trained, config, run_data, Scoring("label_free"))
    assert gated.protocol.gate == "label_free" and gated.reliability == evaluation.reliability is not None
    scores = similarity(evaluation.embeddings, Scoring("label_free", evaluation.reliability))
    assert torch.equal(gated.ranks, ranks(scores))


def test_the_gate_paper_takes_the_alpha_of_the_run(small_data, tmp_path, capsys):
    options = {"preset": "paper", "method_options": {"alpha": 0.5}}
    config = RunConfig.of("bvsa", **options, data=small_data, epochs=1, batch_size=32)
    result = run(config, RunData(config), RunFolder(tmp_path / "run"))
    assert result.alpha == result.protocol.alpha == 0.5
    embeddings = RunFolder(tmp_path / "run").embeddings()
    assert result.ranks == ranks(similarity(embeddings, Scoring("paper", alpha=0.5))).tolist()
    assert main(["evaluate", str(tmp_path / "run"), "--gate", "paper", "--json", str(tmp_path / "out.json")]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["ranks"] == result.ranks and written["protocol"]["alpha"] == 0.5
    assert "alpha 0.5" in capsys.readouterr().out


def test_a_result_lists_the_deviations_from_the_released_code(small_data, tmp_path):
    config = RunConfig.of("vanilla", data=small_data, epochs=1, batch_size=1024)
    result = run(config, RunData(config), RunFolder(tmp_path / "run"))
    settings, *others = result.deviations
    assert settings == (
        "settings, the released code's in brackets: epochs 1 (50), patience 0 (5), unit_norm true (false), "
        "scale exp (softplus)"
    )
    assert RunFolder(tmp_path / "run").result().deviations == result.deviations == deviations(config)
    assert len(others) == 1 and "the released code stops after 5 epochs without a better Top-1" in others[0]


@pytest.mark.parametrize("name", [name for name in methods.names() if len(methods.method_class(name).PRESETS) > 1])
def test_as_published_only_what_is_no_setting_deviates(name):
    kind = methods.method_class(name)
    source, whose = ("code", "the released code's") if "code" in kind.PRESETS else ("paper", "the paper's")
    assert deviations(RunConfig.of(name, preset=source)) == list(kind.DEVIATIONS) != []
    assert deviations(RunConfig.of(name))[0].startswith(f"settings, {whose} in brackets: ")


def test_what_the_released_code_lacks_is_a_deviation():
    parts = {"target": "layer:-1", "projector": "linear", "augment": "noise", "vision_lora": 2}
    settings, *_ = deviations(RunConfig.of("vanilla", preset="code", **parts))
    for text in ("target layer:-1 (output)", "projector linear (none)", "augment [noise] ([])", "vision_lora 2 (0)"):
        assert text in settings
    assert "projector_dim" not in settings
    for layer in ({}, {"target": "layer:1", "select_layer": False}):
        assert deviations(RunConfig.of("vanilla", preset="shallow", epochs=2, **layer))[0].endswith(": epochs 2 (50)")
    changed = deviations(RunConfig.of("samga", preset="code", augment=[]))[0]
    assert changed.endswith("in brackets: augment [] ([smooth])")


def test_prompts_name_the_concept_with_or_without_underscores():
    named = ["aircraft_carrier", "{object}"]
    prompts = lambda text: RunData(RunDataConfig(prompt=text)).prompts(["a.jpg", "b.jpg"], named)  # noqa: E731
    assert prompts("A photo of a {object}.") == ["A photo of a aircraft carrier.", "A photo of a {object}."]
    assert prompts("{concept}, {concept}")[0] == "aircraft_carrier, aircraft_carrier"
