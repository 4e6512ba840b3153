"""Targets that are layers, and projectors: in training, in retrieval, in old files, and in the decoder."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from torch.nn.functional import normalize
from trainings import make_config, train_run

from bvsa_core import Dataset, Decoder
from bvsa_core.cli import main
from bvsa_core.distributed.processes import ProcessGroup
from bvsa_core.encoders import InputSpec
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Batch
from bvsa_core.retrieval.scoring import Scoring, ranks, similarity
from bvsa_core.training.checkpoint import Checkpointer, Stopped
from bvsa_core.training.config import RunConfig, RunDataConfig, from_dict, to_dict
from bvsa_core.training.embedding import embed
from bvsa_core.training.evaluation import check_gate, evaluate
from bvsa_core.training.loop import make_batch
from bvsa_core.training.run import build_method, load_method, train
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.vision.images import read_images
from bvsa_core.vision.views import OnlineViews, features_at

NO_DATA = SimpleNamespace(processes=ProcessGroup(), device=torch.device("cpu"), fusion=lambda: None)
PROJECTED = {"projector": "linear", "projector_dim": 12}


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def data_of(run_data: RunData, **changes) -> RunData:
    return RunData(replace(run_data.config, **changes))


@pytest.mark.parametrize("kind", ["none", "linear", "mlp"])
def test_embeddings_are_maps_of_the_raw_layer_and_of_recordings(run_data, tmp_path, kind):
    data = data_of(run_data, target="layer:1")
    result = train_run(tmp_path / "run", data, method="ubp", **{**PROJECTED, "projector": kind})
    maps = "" if kind == "none" else f" with projector {kind} 12"
    assert result.protocol.encoder == f"tiny layer:1{maps}"
    weights, saved = (load_file(tmp_path / "run" / f"{name}.safetensors") for name in ("weights", "embeddings"))
    test = data.split("sub-01", "test")
    method = load_method(RunFolder(tmp_path / "run"), data)
    blurred = OnlineViews(data.clip, read_images([data.dataset.image_path(each) for each in test.images], 224))
    raw = features_at(method.gallery_levels()[0], blurred, torch.arange(12)).double().numpy()  # mean of patches
    assert raw.shape == (12, 128) and np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.5
    encoder = method.encoder if kind == "none" else method.encoder.encoder
    brain = encoder(test.recordings).detach().double().numpy()

    def mapped(x: np.ndarray, prefix: str) -> np.ndarray:
        matrix = lambda name: weights[f"{prefix}{name}.weight"].astype(float).T  # noqa: E731
        if kind == "none":
            return unit(x)
        if kind == "linear":
            return unit(x @ matrix("") + weights[f"{prefix}.bias"])
        hidden = torch.from_numpy(x @ matrix(".0") + weights[f"{prefix}.0.bias"])
        return unit(torch.nn.functional.gelu(hidden).numpy() @ matrix(".2") + weights[f"{prefix}.2.bias"])

    np.testing.assert_allclose(saved["image"], mapped(raw, "image_map.map"), atol=2e-5)
    np.testing.assert_allclose(saved["brain_image"], mapped(brain, "encoder.map"), atol=2e-5)
    assert saved["text"].shape == (12, 1) and not saved["text"].any()  # no recording was aligned with a text
    assert result.reliability is None
    message = "gate 'always' reads texts, and the run's recordings are not aligned with any"
    with pytest.raises(UserError, match=message):
        check_gate("always", "ubp", RunFolder(tmp_path / "run").embeddings())


CASES = [
    ("vanilla", {}), ("nice", {}), ("atm", {}), ("ubp", {}), ("mcdb", {}), ("bvsa", {}), ("bvsa", {"heads": 1}),
    ("vanilla", {"unit_norm": False}),
]  # fmt: skip


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_method_trains_its_maps(name, options, shared, seed):
    shared = shared or options.get("heads") == 1
    config = RunConfig.of(name, encoder="eeg_project", method_options=options, projector_shared=shared, **PROJECTED)
    texts = 16 if shared else 10
    method = build_method(config, InputSpec(3, 20, 16, texts=texts, parts=(16,)), 8, NO_DATA).eval()
    raw_images, raw_texts = 5 * torch.randn(8, 16), torch.randn(8, texts)
    images = method.image_targets([raw_images])
    batch = Batch(torch.arange(8), torch.randn(8, 3, 20), images, method.text_targets(raw_texts))
    weight, bias = method.image_map.map.weight, method.image_map.map.bias
    torch.testing.assert_close(images, normalize(raw_images @ weight.T + bias, dim=1))
    method(batch).backward()
    assert weight.grad.abs().max() > 0 and bias.grad.abs().max() > 0
    names = {key for key, _ in method.named_parameters() if ".map." in key or "_map." in key}
    expected = {"image_map.map"} if shared else {"image_map.map", "encoder.map"}
    if not shared:
        expected |= {"text_map.map"} if method.uses_texts else set()
        expected |= {"text_encoder.map"} if getattr(method, "text_encoder", None) is not None else set()
    assert names == {f"{name}.{each}" for name in expected for each in ("weight", "bias")}
    assert all(parameter.grad.abs().max() > 0 for key, parameter in method.named_parameters() if key in names)
    brain, _ = method.embed(batch.recordings)
    linear = method.image_map.map if shared else method.encoder.map
    if name != "mcdb":  # which adapts it further
        of_encoder = method.encoder.encoder(batch.recordings)
        torch.testing.assert_close(brain, normalize(of_encoder @ linear.weight.T + linear.bias, dim=1))
    gallery = torch.stack([raw_images] * len(method.gallery_feature_levels()))
    embeddings = method.retrieval_embeddings(batch.recordings, gallery, raw_texts)
    assert embeddings.image.shape[1] == embeddings.brain_image.shape[1] == 12 * len(method.gallery_levels())
    assert embeddings.text.shape[1] == embeddings.brain_text.shape[1] == (12 if method.uses_texts else 1)


def test_what_does_not_fit_is_refused():
    def build(name: str, shape: InputSpec = InputSpec(3, 20, 16, texts=10, parts=(16,)), options=None, **changes):
        return build_method(RunConfig(method=name, method_options=options, **changes), shape, 8, NO_DATA)

    with pytest.raises(UserError, match="method bravl is generative: it compares no embeddings; leave projector out"):
        build("bravl", **PROJECTED)
    for name in ("atm", "mcdb"):
        with pytest.raises(UserError, match=r"images have 16 dimensions and texts 10; give --projector linear, or ano"):
            build(name)
    with pytest.raises(UserError, match="BVSA compares one embedding with both"):
        build("bvsa", options={"heads": 1})
    with pytest.raises(UserError, match="target layer:0 is not in their space; put the output first"):
        build("bvsa", options={"heads": 1}, target="layer:0")
    with pytest.raises(UserError, match="texts would have an untrained map; give --projector_shared true"):
        build("bvsa", options={"heads": 1}, **PROJECTED)
    two = build("bvsa")
    brain, text = two.eval().embed(torch.zeros(2, 3, 20))
    assert brain.shape == (2, 16) and text.shape == (2, 10)
    with pytest.raises(UserError, match="projector_shared: images have 16 dimensions and texts 10, which one map"):
        build("bvsa", projector_shared=True, **PROJECTED)
    build("vanilla", projector_shared=True, **PROJECTED)  # reads no texts
    with pytest.raises(UserError, match="unknown projector 'cubic'; choose one of none, linear, mlp"):
        RunConfig(projector="cubic")
    with pytest.raises(UserError, match="projector_dim is 0; it must be at least 1"):
        RunConfig(projector_dim=0)
    with pytest.raises(UserError, match="target is 'layer:3', and target_layers are given too"):
        RunConfig(target="layer:3", target_layers=[0])


def test_layers_are_fused_around_the_first_one(run_data, tmp_path):
    data = data_of(run_data, target="layers:[2,0.cls,output]", target_levels=[(51, 0.5)])
    train_run(tmp_path / "run", data, method="vanilla", epochs=1, lr=0.01)
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert weights["fusion.weights"].shape == (2, 3) and weights["fusion.maps.1.weight"].shape == (128, 128)
    method = load_method(RunFolder(tmp_path / "run"), data)
    test = data.split("sub-01", "test")
    blurred = OnlineViews(data.clip, read_images([data.dataset.image_path(each) for each in test.images], 224))
    parts = [
        [unit(part.double().numpy()) for part in features_at(level, blurred, torch.arange(12)).split(128, 1)]
        for level in method.gallery_feature_levels()
    ]
    softmax = np.exp(weights["fusion.weights"].astype(float))
    softmax /= softmax.sum()
    maps = [np.eye(128), weights["fusion.maps.0.weight"].T, weights["fusion.maps.1.weight"].T]
    expected = sum(softmax[i, j] * parts[i][j] @ maps[j] for i in range(2) for j in range(3))
    embeddings = RunFolder(tmp_path / "run").embeddings()
    np.testing.assert_allclose(embeddings.image, unit(expected), atol=2e-5)
    assert not method.compares_texts  # layer 2 is not in the space of texts


def test_a_run_of_an_earlier_release_gives_the_same_scores(run_data, tmp_path):
    """Its run.yaml has target_layers, whose means take the CLS token in, and its result no widths."""
    old = {"target_layers": [0, -1], "target_levels": [(51, 0.5)]}
    data = data_of(run_data, **old)
    result = train_run(tmp_path / "new", data, method="vanilla", epochs=1, lr=0.01)
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    settings = yaml.safe_load((tmp_path / "new" / "run.yaml").read_text())
    assert settings["target"] == "layers:[output,0.tokens,-1.tokens]" and settings["target_layers"] == []
    settings = {name: settings[name] for name in settings if "projector" not in name and name != "target"}
    settings |= {"target_layers": [0, -1]}
    (tmp_path / "old" / "run.yaml").write_text(yaml.safe_dump(settings))
    content = json.loads((tmp_path / "old" / "result.json").read_text())
    content["shape"] = {name: content["shape"][name] for name in ("channels", "time", "embedding", "subjects")}
    del content["checksum"]
    (tmp_path / "old" / "result.json").write_text(json.dumps(content))
    folder = RunFolder(tmp_path / "old")
    again = RunData(replace(folder.config(), views="online"))
    method = load_method(folder, again)
    assert method.compares_texts and from_dict(settings) == from_dict(to_dict(folder.config()))
    embeddings = embed(method, again.split("sub-01", "test"), again, ["sub-01"])
    torch.testing.assert_close(embeddings.image, folder.embeddings().image, rtol=0, atol=2e-5)
    assert ranks(similarity(embeddings, Scoring())).tolist() == result.ranks == folder.verify().ranks
    # What the earlier release computed: unit-norm means over all tokens, mapped, and added to the output.
    images = read_images([again.dataset.image_path(each) for each in result.images], 224)
    clip = again.clip.with_layers(["output"])
    views = OnlineViews(clip, images)
    tokens: list[torch.Tensor] = []
    for block in (clip.model.visual.transformer.resblocks[0], clip.model.visual.transformer.resblocks[2]):
        block.register_forward_hook(lambda module, inputs, output: tokens.append(normalize(output.mean(1), dim=-1)))
    outputs = [features_at(level, views, torch.arange(12)) for level in method.gallery_feature_levels()]
    parts = [[outputs[i], *tokens[2 * i : 2 * i + 2]] for i in range(2)]
    softmax, (first, last) = method.fusion.weights.flatten().softmax(0).view(2, 3), method.fusion.maps
    fused = sum(
        softmax[i, 0] * parts[i][0] + softmax[i, 1] * first(parts[i][1]) + softmax[i, 2] * last(parts[i][2])
        for i in range(2)
    )
    torch.testing.assert_close(normalize(fused, dim=1), embeddings.image, rtol=0, atol=2e-5)


def test_a_projected_run_continues_and_repeats(run_data, tmp_path):
    data = data_of(run_data, target="layers:[1,output]")
    settings = {"method": "bvsa", "projector": "mlp", "projector_dim": 8, "validation": 6, "selection": "validation"}
    expected = train_run(tmp_path / "whole", data, **settings)
    config, folder = make_config(data, **settings), RunFolder(tmp_path / "stopped")
    checkpointer = Checkpointer(folder)

    def stop(state, *of: int) -> None:
        checkpointer.stopping = signal.SIGINT if (state.epoch, state.batch) == (1, 1) else None
        Checkpointer.on_step_end(checkpointer, state, *of)

    checkpointer.on_step_end = stop
    with folder.locked(), pytest.raises(Stopped):
        train(config, data, folder.add_metrics, checkpointer)
    assert train_run(tmp_path / "stopped", data, **settings) == expected
    weights = [load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "stopped")]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    # Texts are in the space of recordings too, so gates work.
    assert expected.reliability is not None
    trained = train(config, data)
    assert evaluate(trained, config, data, Scoring("always")).embeddings.text.shape == (12, 8)


def test_the_first_step_moves_the_maps(run_data):
    data = data_of(run_data, target="layer:-2.cls")
    config = make_config(data, method="vanilla", **PROJECTED)
    split = data.split("sub-01", "train")
    shape = InputSpec(17, split.recordings.shape[2], 128, texts=128, parts=(128,))
    method = build_method(config, shape, len(split), data)
    views = data.views(split.images, method.training_levels(), method)
    batch = make_batch(method, split, torch.arange(8), views, data.texts(split.images, split.concepts))
    method(batch).backward()
    assert batch.images.shape == (8, 12) and method.image_map.map.weight.grad.abs().max() > 0


@pytest.mark.filterwarnings("ignore:target. tiny is a toy")
def test_a_decoder_takes_layers_and_projectors(small_data, tmp_path):
    data = Dataset(small_data)
    settings = {"epochs": 1, "batch_size": 64, "device": "cpu", "bank": tmp_path / "bank", **PROJECTED}
    decoder = Decoder("vanilla", "tiny", "layer:1", **settings).fit(data)
    assert decoder.training_.encoder == "tiny layer:1" and decoder.get_params()["layers"] == "layer:1"
    result = decoder.evaluate(data)
    decoder.save(tmp_path / "saved")
    loaded = Decoder.load(tmp_path / "saved", device="cpu", bank=tmp_path / "bank")
    assert loaded.layers == "layer:1" and loaded.projector == "linear" and loaded.evaluate(data).ranks == result.ranks
    found = loaded.retrieve(data, top=12)
    assert loaded.embed(data).shape == (12, 12)
    order = [found.rows[i].tolist().index(i) + 1 for i in range(12)]
    assert order == result.ranks
    with pytest.raises(UserError, match="gate 'always' reads texts, with which the target cannot be compared"):
        loaded.retrieve(data, gate="always")
    with pytest.raises(UserError, match="target_levels and layers need an image encoder"):
        given = np.random.default_rng(0).standard_normal((4, 6))
        Decoder("vanilla", given, "layer:0", device="cpu").fit(np.zeros((4, 2, 9)), range(4))


def test_features_of_a_gallery_are_mapped_as_those_of_the_bank(run_data, tmp_path):
    data = data_of(run_data, target="layers:[1,output]")
    train_run(tmp_path / "run", data, method="vanilla", epochs=1, lr=0.01, **PROJECTED)
    embeddings = RunFolder(tmp_path / "run").embeddings()
    expected = similarity(embeddings, Scoring()).topk(3, dim=1)
    bank = data.bank(data.split("sub-01", "test").images)
    np.save(tmp_path / "features.npy", bank.load(load_method(RunFolder(tmp_path / "run"), data).gallery_levels())[0])
    for gallery in ([], ["--gallery", bank.folder], ["--gallery", tmp_path / "features.npy"]):
        arguments = ["retrieve", tmp_path / "run", "--top", 3, "--device", "cpu", "--quiet", *gallery]
        assert main([*map(str, arguments)]) == 0
        ranked = json.loads((tmp_path / "run" / "retrieved.json").read_text())
        rows = [[image["row"] for image in query["images"]] for query in ranked["queries"]]
        assert rows == expected.indices.tolist()


def test_every_flag_survives_run_yaml(tmp_path: Path):
    config = RunConfig(target="layer:-1", projector="mlp", projector_dim=7, projector_shared=True)
    assert from_dict(to_dict(config)) == config
    since = ("projector", "projector_dim", "projector_shared", "target")
    older = {name: value for name, value in to_dict(RunConfig()).items() if name not in since}
    assert from_dict(older) == RunConfig() and RunDataConfig(target_layers=[0]).target == "layers:[output,0.tokens]"


def test_data_of_another_target_have_its_widths(run_data):
    data = data_of(run_data, target="layers:[output,0]")
    assert data.part_widths() == [128, 128] and data.with_target("layer:1").part_widths() == [128]
    assert data.with_target("layer:1").clip.layers == ("1",) and data.part_widths() == [128, 128]
