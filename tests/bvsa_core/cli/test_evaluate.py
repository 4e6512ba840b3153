"""bvsa evaluate on embeddings made elsewhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from bvsa_core.cli import main


def noisy_pairs(n: int = 40, d: int = 16, noise: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((n, d)).astype(np.float32)
    return image + noise * rng.standard_normal((n, d)).astype(np.float32), image


def expected_top(brain: np.ndarray, image: np.ndarray, k: int) -> float:
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    order = np.argsort(-unit(brain) @ unit(image).T, axis=1)[:, :k]
    return float((order == np.arange(len(brain))[:, None]).any(1).mean())


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


@pytest.mark.parametrize(
    ("brain", "image"),
    [
        ("brain.npy", "image.npy"),
        ("brain.pt", "dict.pt"),
        ("both.npz", "both.npz:images"),
        ("brain.npy", "one.safetensors"),
    ],
)
def test_every_kind_of_file_gives_the_same_figures(files, brain, image, capsys):
    arguments = [
        "evaluate",
        "--brain",
        str(files / brain),
        "--image",
        str(files / image),
        "--json",
        str(files / "out.json"),
    ]
    assert main(arguments) == 0
    result = json.loads((files / "out.json").read_text())
    expected = noisy_pairs()
    assert set(result) == {"top1", "top5", "map", "median_rank", "n", "protocol"}
    assert result["top1"] == pytest.approx(expected_top(*expected, 1)) and result["top5"] == pytest.approx(
        expected_top(*expected, 5)
    )
    assert (
        result["n"] == 40 and result["protocol"]["information"] == "inductive" and result["protocol"]["gallery"] == 40
    )
    assert "Top-1" in capsys.readouterr().out


def test_gates_that_use_labels_are_marked(files, capsys):
    options = ["--text", str(files / "image.npy"), "--gate", "paper", "--json", str(files / "out.json")]
    assert main(["evaluate", "--brain", str(files / "brain.npy"), "--image", str(files / "image.npy"), *options]) == 0
    assert json.loads((files / "out.json").read_text())["protocol"]["information"] == "uses labels"
    assert "uses labels" in capsys.readouterr().out


def test_gate_always_is_the_modulated_similarity(files):
    rng = np.random.default_rng(1)
    brain_text, text = (rng.standard_normal((40, 7)).astype(np.float32) for _ in range(2))
    np.save(files / "bt.npy", brain_text)
    np.save(files / "t.npy", text)
    options = [
        "--text",
        str(files / "t.npy"),
        "--brain-text",
        str(files / "bt.npy"),
        "--gate",
        "always",
        "--json",
        str(files / "o.json"),
    ]
    assert main(["evaluate", "--brain", str(files / "brain.npy"), "--image", str(files / "image.npy"), *options]) == 0
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    brain, image = map(unit, noisy_pairs())
    scores = (brain @ image.T) * (1 + unit(brain_text) @ unit(text).T)
    assert json.loads((files / "o.json").read_text())["top1"] == pytest.approx(
        (scores.argmax(1) == np.arange(40)).mean()
    )


WRONG = [
    (["--brain", "{f}/nothing.npy", "--image", "{f}/image.npy"], "nothing.npy: no such file"),
    (["--brain", "{f}/brain.npy"], "--image is missing"),
    (["--image", "{f}/image.npy"], "give either the folder of a run, or --brain and --image"),
    (["--brain", "{f}/brain.npy", "--image", "{f}/both.npz:nope"], "holds brain, images; pick an entry with --image"),
    (["--brain", "{f}/dict.pt:other", "--image", "{f}/image.npy"], "embeddings are a matrix (rows, dimensions)"),
    (["--brain", "{f}/short.npy", "--image", "{f}/image.npy"], "the numbers of rows differ: --brain 7, --image 40"),
    (["--brain", "{f}/narrow.npy", "--image", "{f}/image.npy"], "--image has 16 dimensions and the brain embeddings 3"),
    (["--brain", "{f}/nan.npy", "--image", "{f}/image.npy"], "row 2 has NaN or infinite values"),
    (["--brain", "{f}/cut.pt", "--image", "{f}/image.npy"], "cut.pt: damaged or incomplete"),
    (
        ["--brain", "{f}/brain.npy", "--image", "{f}/image.npy", "--gate", "papper"],
        "unknown gate 'papper'; did you mean 'paper'?",
    ),
    (["--brain", "{f}/brain.npy", "--image", "{f}/image.npy", "--gate", "paper"], "give their embeddings with --text"),
    (["{f}"], "no finished run there (result.json is missing)"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[case[1][:40] for case in WRONG])
def test_what_is_wrong_is_one_line_and_exit_code_2(files, arguments, message, capsys):
    brain, _ = noisy_pairs()
    np.save(files / "short.npy", brain[:7])
    np.save(files / "narrow.npy", brain[:, :3])
    broken = brain.copy()
    broken[2, 1] = np.nan
    np.save(files / "nan.npy", broken)
    (files / "cut.pt").write_bytes((files / "brain.pt").read_bytes()[:300])
    assert main(["evaluate", *(argument.format(f=files) for argument in arguments)]) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1 and told.err.startswith("bvsa: error: ")
