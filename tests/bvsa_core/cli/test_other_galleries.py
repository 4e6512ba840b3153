"""Captions in place of prompts, and class centres in place of the test images: right values, and a mark in tables."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from bvsa_core.retrieval.scoring import Scoring, ranks, similarity
from bvsa_core.training.config import RunDataConfig
from bvsa_core.training.run import load_method
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.vision.clip import load_clip


@pytest.fixture(scope="module")
def run_data(finished) -> RunData:
    return RunData(RunFolder(finished).config())


@pytest.fixture(scope="module")
def test_set(run_data):
    return run_data.split("sub-01", "test")


@pytest.fixture(scope="module")
def captions(test_set, tmp_path_factory) -> Path:
    """Write captions that name the next concept, so that gates see the wrong one."""
    path = tmp_path_factory.mktemp("texts") / "captions.json"
    names = dict(zip(map(Path, test_set.images), [*test_set.concepts[1:], test_set.concepts[0]]))
    path.write_text(json.dumps({image.name: f"a drawing of {concept}" for image, concept in names.items()}))
    return path


def scored(succeed, folder: Path, *flags: object) -> tuple[dict, str]:
    shown = succeed("evaluate", *flags, "--json", folder / "out.json")
    return json.loads((folder / "out.json").read_text()), " ".join(shown.split())


def test_a_run_is_scored_with_captions(finished, run_data, test_set, captions, tmp_path, succeed):
    result, shown = scored(succeed, tmp_path, finished, "--texts", captions, "--gate", "always")
    embeddings, method = RunFolder(finished).embeddings(), load_method(RunFolder(finished), run_data)
    texts = list(json.loads(captions.read_text()).values())
    text = method.text_embeddings(load_clip("tiny").encode_texts(texts)).detach()
    brain = (embeddings.brain_image @ embeddings.image.T) * (1 + embeddings.brain_text @ text.T)
    assert result["ranks"] == ranks(brain).tolist()
    assert result["ranks"] != ranks(similarity(embeddings, Scoring("always"))).tolist()
    assert result["protocol"]["texts_of"] == "captions.json" and "captions.json" in shown
    assert shown.count("bvsa") == 2  # beside the run's own texts


def test_class_centres_are_means_of_other_images(finished, run_data, test_set, tmp_path, succeed):
    things, others = tmp_path / "object_images", {}
    training = [run_data.dataset.image_path(image) for image in run_data.split("sub-01", "train").images]
    for i, (image, concept) in enumerate(zip(test_set.images, test_set.concepts)):
        folder = things / concept
        folder.mkdir(parents=True)
        others[concept] = [folder / f"{concept}_{k + 2:02d}b.jpg" for k in range(1 + i % 3)]
        for k, path in enumerate(others[concept]):
            shutil.copy(training[3 * i + k], path)
        shutil.copy(run_data.dataset.image_path(image), folder / f"{concept}_50b.jpg")  # the test image by content
        shutil.copy(training[-1], folder / Path(image).name)  # and by name
    (things / "other").mkdir()
    shutil.copy(training[0], things / "other" / "other_01b.jpg")
    result, shown = scored(succeed, tmp_path, finished, "--class_centres", things)
    method = load_method(RunFolder(finished), run_data)
    levels, rows = method.gallery_feature_levels(), []
    for concept in test_set.concepts:
        bank = run_data.bank_for_paths(others[concept])
        bank.fill(levels)
        rows.append(normalize(bank.load(levels).double().mean(1), dim=1))
    centres = torch.stack(rows, dim=1).float()
    embeddings = RunFolder(finished).embeddings()
    expected = embeddings.brain_image @ method.image_embeddings(centres).detach().T
    assert result["ranks"] == ranks(expected).tolist() != json.loads((finished / "result.json").read_text())["ranks"]
    assert result["protocol"]["gallery_of"] == "class centres" and "gallery of" in shown and "class centres" in shown
    assert "mAP %" in shown and shown.count("bvsa") == 2  # beside the run's own gallery, and no column is cut
    full, _ = scored(succeed, tmp_path, finished, "--class_centres", things, "--full")
    assert "hubness" in full["statistics"] and "repetitions" not in full["statistics"]


def test_retrieve_searches_a_gallery_by_captions(finished, captions, test_set, tmp_path, succeed, fail):
    out = tmp_path / "found.json"
    flags = ("--gate", "always", "--top", 12, "--out", out)
    scores = {}
    for name, texts in {"prompts": (), "captions": ("--texts", captions)}.items():
        succeed("retrieve", finished, *texts, *flags)
        found = json.loads(out.read_text())
        queries = found["queries"]
        assert found["protocol"].get("texts_of") == (captions.name if texts else None)
        scores[name] = [{each["image"]: each["score"] for each in query["images"]} for query in queries]
    method = load_method(RunFolder(finished), RunData(RunFolder(finished).config()))
    texts = list(json.loads(captions.read_text()).values())
    text = method.text_embeddings(load_clip("tiny").encode_texts(texts)).detach()
    embeddings = RunFolder(finished).embeddings()
    expected = (embeddings.brain_image @ embeddings.image.T) * (1 + embeddings.brain_text @ text.T)
    for found, row in zip(scores["captions"], expected.tolist()):
        assert [found[image] for image in test_set.images] == pytest.approx(row, abs=1e-5)
    assert scores["captions"] != scores["prompts"]
    some = tmp_path / "some.csv"
    some.write_text("concept,text\nzebra crossing,stripes\n")
    fail("some.csv: 12 captions of image(s) are missing ... add them", "retrieve", finished, "--texts", some, *flags)


def test_training_takes_captions(small_data, captions, test_set, tmp_path, monkeypatch, succeed, fail):
    every, train = tmp_path / "every.csv", RunData(RunDataConfig(data=small_data)).split("sub-01", "train")
    write = lambda names: every.write_text("concept,text\n" + "".join(f"{name},my {name}\n" for name in names))  # noqa: E731
    write({*train.concepts, *test_set.concepts})
    quick = ("train", "--data", small_data, "--method", "bvsa", "--epochs", 1, "--batch_size", 64)
    monkeypatch.chdir(tmp_path)
    printed = " ".join(succeed(*quick, "--texts", "every.csv", "--out", "run").split())
    assert "texts:" in printed and "every.csv" in printed
    run = RunFolder(tmp_path / "run")
    assert run.result().protocol.texts_of == "every.csv"
    monkeypatch.chdir("/")
    assert run.config().texts == every  # found from any folder
    write(set(train.concepts))  # none of the test images
    for texts, missing in ((every, len(test_set.images)), (captions, len(train.images))):
        message = f"{texts.name}: {missing} captions of image(s) are missing"
        fail(message, *quick, "--texts", texts, "--out", tmp_path / "other")
        assert not (tmp_path / "other").exists()  # it was noticed before anything was written
