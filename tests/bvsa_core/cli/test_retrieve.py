"""bvsa retrieve: every kind of recordings and gallery against the run's own embeddings, and errors in one line."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bvsa_core.cli import main, retrieve
from bvsa_core.cli.retrieve import read_queries
from bvsa_core.data.dataset import Dataset
from bvsa_core.data.split import load_split
from bvsa_core.retrieval.scoring import Scoring, similarity
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder


@pytest.fixture
def retrieved(finished, tmp_path, succeed):
    """Return a function that runs the command, and returns the ranked images that it wrote and its output."""

    def run(*arguments: object) -> tuple[dict, str]:
        shown = succeed("retrieve", finished, "--out", tmp_path / "ranked.json", *arguments)
        return json.loads((tmp_path / "ranked.json").read_text()), shown

    return run


def rows(ranked: dict, key: str = "row") -> list[list]:
    return [[image[key] for image in query["images"]] for query in ranked["queries"]]


@pytest.mark.parametrize("gate", ["none", "always", "label_free"])
def test_test_recordings_are_ranked_by_the_embeddings_of_the_run(finished, retrieved, gate):
    folder = RunFolder(finished)
    ranked, shown = retrieved("--top", 3, "--gate", gate)
    scores = similarity(folder.embeddings(), Scoring(gate, folder.result().reliability))
    best = scores.topk(3, dim=1)
    assert rows(ranked) == best.indices.tolist()
    np.testing.assert_allclose(rows(ranked, "score"), best.values, atol=1e-5)
    assert ranked["protocol"] == {"information": "inductive", "gate": gate, "gallery": 12}
    names = folder.result().images
    assert [query["recording"] for query in ranked["queries"]] == names
    assert rows(ranked, "image") == [[names[row] for row in query] for query in rows(ranked)]
    assert Path(names[0]).name in shown and "gate " + gate in shown


def test_a_folder_of_images_a_bank_and_a_file_of_features_are_the_same_gallery(
    finished, small_data, retrieved, tmp_path
):
    config, folder = RunFolder(finished).config(), small_data / "Image_set_Resize" / "test_images"
    of_folder, _ = retrieved("--gallery", folder, "--bank", tmp_path / "bank", "--gate", "always")
    (bank,) = (tmp_path / "bank").iterdir()
    texts = next(bank.glob("texts_*.safetensors"))
    of_bank, _ = retrieved("--gallery", bank, "--gallery-text", texts, "--gate", "always")
    level = bank / "k51_gain0.5.safetensors"
    of_file, _ = retrieved("--gallery", f"{level}:features", "--gallery-text", texts, "--gate", "always")
    assert rows(of_folder) == rows(of_bank) == rows(of_file) and config.data == small_data
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")}
    assert names.issuperset(rows(of_folder, "image")[0])
    by_default, _ = retrieved("--gate", "always")
    assert rows(by_default) == rows(of_folder)  # the test images are in the order of their paths


def test_the_correct_image_is_marked_where_it_is_known(finished, small_data, retrieved, tmp_path):
    folder = RunFolder(finished)
    ranks = np.array(folder.result().ranks)
    ranked, shown = retrieved("--top", 3)
    assert [query["correct_row"] for query in ranked["queries"]] == list(range(12))
    marked = [[image["rank"] for image in query["images"] if image.get("correct")] for query in ranked["queries"]]
    assert marked == [[rank] if rank <= 3 else [] for rank in ranks]
    first, found = (ranks == 1).sum(), (ranks <= 3).sum()
    assert f"the correct image is first for {first} and among the best 3 for {found} of 12 recordings" in shown
    assert f"{100 * first / 12:.1f} % and {100 * found / 12:.1f} %, chance 8.33 % and 25 %" in shown
    assert len(re.findall(r"\bcorrect +\n", shown)) == found
    images = small_data / "Image_set_Resize" / "test_images"
    for path in sorted(images.rglob("*.jpg"))[:4]:
        (tmp_path / "some" / path.parent.name).mkdir(parents=True)
        shutil.copy(path, tmp_path / "some" / path.parent.name)
    some, shown = retrieved("--gallery", tmp_path / "some", "--bank", tmp_path / "bank", "--top", 1)
    assert [query.get("correct_row") for query in some["queries"]] == [0, 1, 2, 3, *[None] * 8]
    assert "of 4 recordings (8 others have none there)" in shown
    test = load_split(Dataset(small_data), ["sub-01"], "test")
    np.save(tmp_path / "unnamed.npy", test.recordings.numpy())
    unnamed, shown = retrieved("--recordings", tmp_path / "unnamed.npy")
    assert "correct" not in json.dumps(unnamed["queries"]) and "the correct image" not in shown


def test_a_page_shows_the_images(small_data, retrieved, tmp_path, monkeypatch):
    page = tmp_path / "new" / "page.html"
    ranked, shown = retrieved("--page", page, "--top", 2)
    text = page.read_text()
    assert f"the page is {page}" in shown
    found = sum(image.get("correct", False) for query in ranked["queries"] for image in query["images"])
    assert text.count('<li class="query">') == 12 and text.count('<li class="correct">') == found
    assert text.count('<li class="wrong">') == 24 - found
    used = set(re.findall(r'class="blank i(\d+)"', text))
    assert used == set(re.findall(r"\.query \.i(\d+) ", text)) == {str(i) for i in range(12)}
    assert "<script" not in text and not re.search(r"https?:", text)
    assert "The correct image is first for" in text and "default-src 'none'" in text
    monkeypatch.setattr(retrieve, "ON_PAGE", 5)
    monkeypatch.setattr(retrieve, "THUMBNAILS", 1)
    retrieved("--page", page)
    assert "The first 5 of 12 recordings are shown. Some images are not shown" in page.read_text()
    assert page.read_text().count("data:image/jpeg") == 1
    images = small_data / "Image_set_Resize" / "test_images"
    evil = tmp_path / "evil" / "00001_<img src=x onerror=alert(1)>"
    evil.mkdir(parents=True)
    shutil.copy(next(images.rglob("*.jpg")), evil / "a.jpg")
    retrieved("--page", page, "--gallery", evil.parent, "--bank", tmp_path / "bank", "--top", 1)
    assert "<img" not in page.read_text() and "&lt;img src=x" in page.read_text()


def test_a_run_with_fused_targets_fuses_its_gallery(small_data, succeed, tmp_path):
    fused = "--target_levels [[51,0.5]] --target_layers [0] --method vanilla --epochs 1 --lr 0.01"
    succeed("train", "--data", small_data, "--out", tmp_path / "run", *fused.split())
    succeed("retrieve", tmp_path / "run", "--top", 3)
    ranked = json.loads((tmp_path / "run" / "retrieved.json").read_text())
    scores = similarity(RunFolder(tmp_path / "run").embeddings(), Scoring())
    assert rows(ranked) == scores.topk(3, dim=1).indices.tolist()


def test_recordings_come_from_published_files_and_arrays(finished, small_data, retrieved, tmp_path):
    test = load_split(Dataset(small_data), ["sub-01"], "test")
    np.save(tmp_path / "two.npy", test.recordings[3:5].numpy())
    by_default, _ = retrieved()
    of_array, _ = retrieved("--recordings", tmp_path / "two.npy")
    of_file, _ = retrieved("--recordings", small_data / "Preprocessed_data_250Hz_whiten" / "sub-01" / "test.pt")
    assert rows(of_file) == rows(by_default) and rows(of_array) == rows(by_default)[3:5]
    assert [query["recording"] for query in of_array["queries"]] == ["0", "1"]


def test_encoders_get_the_subject_indices_of_recordings(finished, small_data):
    folder = RunFolder(finished)
    run_data = RunData(folder.config())
    files = [small_data / "Preprocessed_data_250Hz_whiten" / subject / "test.pt" for subject in ("sub-01", "sub-02")]
    own, of_file, of_another = (
        read_queries(path, folder.result(), folder.config(), run_data)[2].unique().tolist() for path in (None, *files)
    )
    assert own == of_file == [0] and of_another == [-1]


def test_data_may_have_moved_and_out_defaults_to_the_run(finished, small_data, succeed, tmp_path):
    shutil.copytree(small_data, tmp_path / "moved")
    shutil.copytree(finished, tmp_path / "run")
    succeed("retrieve", tmp_path / "run", "--data", tmp_path / "moved")
    assert (tmp_path / "run" / "retrieved.json").is_file() and (tmp_path / "moved" / "Image_feature").is_dir()


def test_an_index_reports_its_recall(retrieved, tmp_path):
    flags = ("--index", tmp_path / "kept.faiss", "--candidates", 5, "--top", 5)
    ranked, shown = retrieved(*flags)
    assert ranked["protocol"]["recall"] == 1.0 and "recall 1.000" in shown and (tmp_path / "kept.faiss").is_file()
    modulated, _ = retrieved(*flags, "--gate", "always")
    exact, _ = retrieved("--top", 5, "--gate", "always")
    both = zip(rows(modulated), rows(exact))
    assert modulated["protocol"]["recall"] == pytest.approx(np.mean([len(set(a) & set(b)) / 5 for a, b in both]))


WRONG = [
    ("{t}/empty", "no finished run there (result.json is missing)"),
    ("{r} --gate papr", "unknown gate 'papr'; did you mean 'paper'?"),
    ("{r} --gate paper", "paper belongs to 'bvsa evaluate'"),
    ("{r} --top 13", "13 images are requested; the gallery has 12"),
    ("{r} --gallery {t}/empty", "no image inside"),
    ("{r} --gallery {t}/nope", "--gallery {t}/nope: no such folder"),
    ("{r} --gallery {t}/nope.npy", "{t}/nope.npy: no such file"),
    ("{r} --gallery {t}/cut", "cut.jpg cannot be read"),
    ("{r} --gallery {t}/bank", "{t}/bank: features of something else than asked for (encoder is another, not tiny, "),
    ("{r} --gallery {t}/rows.npy --gate always --top 2", "compares recordings with texts; the gallery has none"),
    ("{r} --gallery {t}/empty --gallery-text {t}/rows.npy", "--gallery_text belongs to a gallery of features"),
    ("{r} --recordings {t}/rows.npy", "is (4, 128); it must be one array (N, channels, time)"),
    ("{r} --recordings {t}/short.npy", "17 channels x 20 samples; the run was trained on 17 x 100"),
    ("{r} --recordings {t}/nan.npy", "recording 1 has NaN or infinite samples"),
    ("{r} --recordings {t}/nope.npy", "{t}/nope.npy: no such file"),
    ("{r} --index {t}/x.faiss --candidates 4", "--candidates 4 are fewer than --top 5"),
    ("{r} --gallery {t}/rows.npy --page {t}/p.html", "--page shows images, and --gallery {t}/rows.npy has features"),
    ("{r} --page {t}", "--page {t}: is a folder; name a file, such as {t}/retrieved.html"),
    ("{o}", "a run of an earlier version; train it again"),
    ("{c}", "weights.safetensors: damaged or incomplete"),
]


@pytest.fixture(scope="module")
def wrong(finished, tmp_path_factory) -> dict[str, Path]:
    """Return a folder of invalid files, and copies of a run: one of an earlier version, one with truncated weights."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty").mkdir()
    (folder / "cut").mkdir()
    (folder / "cut" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "bank").mkdir()
    (folder / "bank" / "about.json").write_text('{"format": 2, "encoder": "another", "encoder_sha256": "0"}')
    np.save(folder / "rows.npy", np.ones((4, 128), np.float32))
    np.save(folder / "short.npy", np.ones((4, 17, 20), np.float32))
    np.save(folder / "nan.npy", np.stack([np.ones((17, 100)), np.full((17, 100), np.nan)]))
    old, cut = folder / "old", folder / "cut_run"
    for copy in (old, cut):
        shutil.copytree(finished, copy)
    result = json.loads((old / "result.json").read_text())
    del result["shape"], result["checksum"]
    (old / "result.json").write_text(json.dumps(result))
    weights = cut / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return {"t": folder, "r": finished, "o": old, "c": cut}


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[arguments for arguments, _ in WRONG])
def test_errors_are_one_line_and_exit_code_2(wrong, arguments, message, fail):
    fail(message.format(**wrong), "retrieve", *(word.format(**wrong) for word in arguments.split()))


def test_a_closed_pipe_is_no_error(monkeypatch):
    def broken(*_) -> None:
        raise BrokenPipeError

    duplicated = []
    monkeypatch.setattr("bvsa_core.cli._dispatch", broken)
    monkeypatch.setattr("os.dup2", lambda *handles: duplicated.append(handles))
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    assert main(["train"]) == 0 and len(duplicated) == 1


def test_embeddings_do_not_depend_on_the_number_of_threads(retrieved):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, _ = retrieved()
        torch.set_num_threads(3)
        three, _ = retrieved()
    finally:
        torch.set_num_threads(before)
    assert one == three


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bank": "elsewhere"}, "the run's feature bank {folder}/elsewhere is not in its data folder"),
        ({"vision": "hf-hub:a/b"}, "unknown vision encoder 'hf-hub:a/b'"),
        ({"vision": "local-dir:{folder}"}, "unknown vision encoder 'local-dir:{folder}'"),
    ],
)
@pytest.mark.parametrize("command", [("retrieve",), ("evaluate", "--full"), ("report", "--resamples", "1")])
def test_a_run_from_elsewhere_names_no_folder_or_hub(finished, tmp_path, capsys, command, settings, message):
    shutil.copytree(finished, run := tmp_path / "run")
    text = (run / "run.yaml").read_text()
    for name, value in settings.items():
        value = str(tmp_path / value) if name == "bank" else value.format(folder=tmp_path)
        text = re.sub(rf"^{name}: .*$", f"{name}: {value}", text, flags=re.MULTILINE)
    (run / "run.yaml").write_text(text)
    (tmp_path / "elsewhere").mkdir()
    assert main([command[0], str(run), *command[1:]]) == 2
    assert message.format(folder=tmp_path) in capsys.readouterr().err
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("command", [("retrieve",), ("evaluate", "--full"), ("report", "--resamples", "1")])
@pytest.mark.parametrize("setting", [None, "0"])
def test_a_run_is_read_offline_unless_the_user_allows_a_hub(finished, tmp_path, monkeypatch, command, setting):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # so that the test's end restores what was there
    if setting is None:
        monkeypatch.delenv("HF_HUB_OFFLINE")
    seen = []
    load = lambda *_: seen.append(os.environ.get("HF_HUB_OFFLINE")) or 1 / 0  # noqa: E731
    monkeypatch.setattr("bvsa_core.training.run_data.load_vision_encoder", load)
    shutil.copytree(finished, run := tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        main([command[0], str(run), *command[1:]])
    assert seen == [setting or "1"]
