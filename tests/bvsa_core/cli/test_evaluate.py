"""bvsa evaluate on embeddings in files."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from bvsa_core.errors import UserError
from bvsa_core.retrieval.gallery import EmbeddingMatrix


def noisy_pairs() -> tuple[np.ndarray, np.ndarray]:
    noise, image = np.random.default_rng(0).standard_normal((2, 40, 16)).astype(np.float32)
    return image + 2 * noise, image


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def files(tmp_path):
    brain, image = noisy_pairs()
    np.save(tmp_path / "brain.npy", brain)
    np.save(tmp_path / "image.npy", image)
    torch.save(torch.from_numpy(brain), tmp_path / "brain.pt")
    torch.save({"image": torch.from_numpy(image), "other": torch.zeros(1)}, tmp_path / "dict.pt")
    np.savez(tmp_path / "both.npz", brain=brain, images=image)
    safetensors.torch.save_file({"only": torch.from_numpy(image)}, tmp_path / "one.safetensors")
    return tmp_path


@pytest.fixture
def scored(files, succeed):
    """Return a function that scores files, and returns the content of --json and the output."""

    def run(brain: str, image: str, *flags: object) -> tuple[dict, str]:
        where = ("--brain", files / brain, "--image", files / image, "--json", files / "out.json")
        shown = succeed("evaluate", *where, *flags)
        return json.loads((files / "out.json").read_text()), shown

    return run


FILES = ["brain.npy image.npy", "brain.pt dict.pt", "both.npz both.npz:images", "brain.npy one.safetensors"]


@pytest.mark.parametrize("names", FILES)
def test_every_kind_of_file_gives_the_same_scores(scored, names):
    result, shown = scored(*names.split())
    assert set(result) == {"top1", "top5", "map", "median_rank", "n", "protocol"} and "Top-1" in shown
    brain, image = map(unit, noisy_pairs())
    hits = np.argsort(-brain @ image.T, axis=1) == np.arange(40)[:, None]
    assert [result["top1"], result["top5"]] == pytest.approx([hits[:, :k].any(1).mean() for k in (1, 5)])
    assert result["n"] == result["protocol"]["gallery"] == 40 and result["protocol"]["information"] == "inductive"


def test_embeddings_of_shape_n_1_d_are_taken(files, scored, fail):
    whole, _ = scored("brain.npy", "image.npy")
    image = np.load(files / "image.npy")
    np.save(files / "nice.npy", image[:, None])
    assert scored("brain.npy", "nice.npy")[0] == whole
    assert (
        EmbeddingMatrix(files / "nice.npy")
        .read(slice(0, 40))
        .equal(EmbeddingMatrix(files / "image.npy").read(slice(40)))
    )
    wanted = "(40, 2, 8); embeddings are (rows, dimensions), or (rows, 1, dimensions) as NICE publishes them"
    np.save(files / "two.npy", image.reshape(40, 2, 8))
    fail(wanted, "evaluate", "--brain", files / "brain.npy", "--image", files / "two.npy")
    with pytest.raises(UserError, match=r"embeddings are floats \(rows, dimensions\), or \(rows, 1, dimensions\)"):
        EmbeddingMatrix(files / "two.npy")


def test_gates_that_use_labels_are_marked(files, scored):
    result, shown = scored("brain.npy", "image.npy", "--text", files / "image.npy", "--gate", "paper")
    assert result["protocol"]["information"] == "uses labels" and "uses labels" in shown


def test_gate_always_is_the_modulated_similarity(files, scored):
    brain_text, text = np.random.default_rng(1).standard_normal((2, 40, 7)).astype(np.float32)
    np.save(files / "bt.npy", brain_text)
    np.save(files / "t.npy", text)
    flags = ("--text", files / "t.npy", "--brain-text", files / "bt.npy", "--gate", "always")
    result, _ = scored("brain.npy", "image.npy", *flags)
    brain, image = map(unit, noisy_pairs())
    scores = (brain @ image.T) * (1 + unit(brain_text) @ unit(text).T)
    assert result["top1"] == pytest.approx((scores.argmax(1) == np.arange(40)).mean())


def test_a_threshold_given_by_hand_is_in_the_protocol(files, scored):
    flags = ("brain.npy", "image.npy", "--text", files / "image.npy", "--gate", "label_free")
    result, shown = scored(*flags, "--reliability", "margin:0.05")
    assert result["protocol"]["information"] == "threshold by hand" and result["protocol"]["threshold"] == "margin:0.05"
    assert "information threshold by hand, gate label_free, " in shown and "threshold margin:0.05" in shown
    result, _ = scored(*flags, "--reliability", "margin:0.05", "--rescoring", "csls")
    assert result["protocol"]["information"] == "label-free transductive" and "threshold" in result["protocol"]
    result, _ = scored(*flags[:-1], "always", "--reliability", "margin:0.05")
    assert result["protocol"]["information"] == "inductive" and "threshold" not in result["protocol"]


BOTH = "--brain {f}/brain.npy --image {f}/image.npy"
WRONG = [
    ("--brain {f}/nothing.npy --image {f}/image.npy", "nothing.npy: no such file"),
    ("--brain {f}/brain.npy", "--image is missing"),
    ("--image {f}/image.npy", "give either the folder of a run, or --brain and --image"),
    ("--brain {f}/brain.npy --image {f}/both.npz:nope", "holds brain, images; pick an entry with --image"),
    ("--brain {f}/dict.pt:other --image {f}/image.npy", "embeddings are (rows, dimensions), or (rows, 1, dim"),
    ("--brain {f}/short.npy --image {f}/image.npy", "the numbers of rows differ: --brain 7, --image 40"),
    ("--brain {f}/narrow.npy --image {f}/image.npy", "--image has 16 dimensions and the brain embeddings 3"),
    ("--brain {f}/nan.npy --image {f}/image.npy", "row 2 has NaN or infinite values"),
    ("--brain {f}/cut.pt --image {f}/image.npy", "cut.pt: damaged or incomplete"),
    (f"{BOTH} --gate papper", "unknown gate 'papper'; did you mean 'paper'?"),
    (f"{BOTH} --gate paper", "give their embeddings with --text"),
    ("{f}", "no finished run there (result.json is missing)"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[case[1][:40] for case in WRONG])
def test_errors_are_one_line_and_exit_code_2(files, arguments, message, fail):
    brain, _ = noisy_pairs()
    np.save(files / "short.npy", brain[:7])
    np.save(files / "narrow.npy", brain[:, :3])
    brain[2, 1] = np.nan
    np.save(files / "nan.npy", brain)
    (files / "cut.pt").write_bytes((files / "brain.pt").read_bytes()[:300])
    fail(message, "evaluate", *(argument.format(f=files) for argument in arguments.split()))
