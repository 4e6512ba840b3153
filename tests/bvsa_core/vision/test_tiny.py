"""The tiny CLIP: its size, and its accuracy on unseen images, sharp and blurred, as in its log."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import fovblur
from bvsa_core.synthetic import openmoji
from bvsa_core.vision import tiny

SCRIPT = Path(__file__).parents[3] / "scripts" / "train_tiny_clip.py"


@pytest.fixture(scope="module")
def unseen() -> torch.Tensor:
    """Images (concepts, 3, 224, 224) from a stream of random numbers that the training did not use."""
    images = [openmoji.render(concept, np.random.default_rng([77, i])) for i, concept in enumerate(openmoji.concepts())]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def texts(clip) -> torch.Tensor:
    """Features (concepts, D) of the names."""
    return clip.encode_texts([f"A photo of a {concept.name.replace('_', ' ')}." for concept in openmoji.concepts()])


@pytest.mark.parametrize(("kernel_size", "gain"), [(1, 0.0), (51, 0.0), (51, 0.5), (57, 0.0), (57, 0.5)])
def test_accuracy_on_unseen_images_is_that_of_the_log(clip, unseen, texts, kernel_size, gain):
    condition = "sharp" if kernel_size == 1 else f"k{kernel_size} gain {gain}"
    logged = json.loads(tiny.LOG.read_text())["accuracy_on_held_out"][f"{condition} (one of 848)"]["top1"]
    seen = fovblur.foveated_blur(unseen, kernel_size=kernel_size, gain=gain, mean=clip.mean, std=clip.std)
    similarities = torch.cat([clip.encode_images(part) for part in seen.split(64)]) @ texts.T
    top1 = (similarities.argmax(1) == torch.arange(len(unseen))).double().mean().item()
    assert top1 > 0.5 and top1 == pytest.approx(logged, abs=0.05)  # three standard errors of 848 images


def test_weights_are_small_and_the_log_describes_the_training(clip):
    assert tiny.WEIGHTS.stat().st_size <= 10 * 2**20
    with safe_open(tiny.WEIGHTS, "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}
    log = json.loads(tiny.LOG.read_text())
    assert log["trained_on"]["concepts"] == 848 and log["seconds_of_training"] > 0
    assert log["parameters"] == sum(weight.numel() for weight in clip.model.state_dict().values())
    losses = list(log["loss_by_step"].values())
    assert losses[-1] < losses[0] / 3


def test_texts_end_with_the_highest_token_and_fit_the_model(clip):
    tokens = clip.tokenize([f"An image of the {concept.name.replace('_', ' ')}." for concept in openmoji.concepts()])
    last = tokens.argmax(1)
    assert (tokens.max(1).values == 4095).all() and (last < 19).any()
    assert all((row[end + 1 :] == 0).all() for row, end in zip(tokens, last))


def test_the_script_trains_one_from_images_to_files(tmp_path):
    small = ["--concepts", "6", "--renderings", "2", "--held-out", "1", "--steps", "20", "--batch-size", "6"]
    done = subprocess.run([sys.executable, str(SCRIPT), "--out", str(tmp_path), *small], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(path.name for path in tmp_path.iterdir()) == {tiny.WEIGHTS.name, tiny.LOG.name}
    conditions = ("sharp", "k51 gain 0.0", "k51 gain 0.5", "k57 gain 0.0", "k57 gain 0.5")
    scores = json.loads(done.stdout.partition("\n")[2])
    assert set(scores) == {f"{condition} (one of 6)" for condition in conditions}
