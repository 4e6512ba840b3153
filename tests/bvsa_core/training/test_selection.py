"""Which epoch's weights are kept, and that only an oracle sees the test set before."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from trainings import make_config, train_run

from bvsa_core.data.split import Split
from bvsa_core.errors import UserError
from bvsa_core.retrieval.scoring import Embeddings
from bvsa_core.training import run as run_module
from bvsa_core.training.run import split_off_validation
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.training.selection import Best, one_sample_per_concept_batches, validation_top1
from bvsa_core.vision.views import SHARP

LONGER = {"epochs": 4, "batch_size": 45, "lr": 1e-3}
METRICS = {
    "loss": [2.0, 1.5, 1.499, 1.498, 1.0],
    "validation_top1": [0.1, 0.5, 0.5, 0.5, 0.2],
    "validation_loss": [1.0, 3.0, 2.0, 2.0, 0.5],
    "test_top1": [0.4, 0.1, 0.4, 0.4, 0.0],
    "test_map": [0.5, 0.9, 0.6, 0.6, 0.9],
}


@pytest.mark.parametrize(("selection", "epoch"), [("last", 5), ("validation", 3), ("oracle", 3)])
def test_the_first_of_the_best_epochs_is_kept(selection, epoch):
    best, module = Best(selection), nn.BatchNorm1d(1)
    for number, values in enumerate(zip(*METRICS.values()), start=1):
        with torch.no_grad():
            module.weight.fill_(number)
            module.running_mean.fill_(-number)
        best.update(module, {"epoch": number, **dict(zip(METRICS, values))})
    assert best.restore(module) == epoch
    assert module.weight.item() == epoch and module.running_mean.item() == -epoch


def test_patience_stops_a_training_whose_loss_stalls(run_data, tmp_path):
    best, module = Best("last"), nn.Identity()
    stalled = []
    for number, loss in enumerate([3.0, 2.0, 1.9995, 1.9991, 1.998, 1.998, 1.9985], start=1):
        best.update(module, {"epoch": number, "loss": loss})
        stalled.append(best.stalled)
    assert stalled == [0, 0, 1, 2, 0, 1, 2]  # progress is more than 0.001 below the least
    still = {"epochs": 9, "batch_size": 1024, "lr": 1e-12, "encoder_options": {"dropout": 0.0}, "method": "vanilla"}
    result = train_run(tmp_path / "stopped", run_data, patience=3, **still)
    assert result.epoch == 4 == len(RunFolder(tmp_path / "stopped").metrics())
    assert train_run(tmp_path / "whole", run_data, **still).epoch == 9


@pytest.mark.parametrize("selection", ["validation", "oracle"])
def test_a_run_ends_with_the_weights_of_its_best_epoch(run_data, tmp_path, selection, monkeypatch):
    """Selection draws no random number of training, and restores per-sample state too."""
    if selection == "validation":
        values = iter([0.0, 0.5, 0.25, 0.25])
        monkeypatch.setattr(run_module, "validation_top1", lambda *_: next(values))
    chosen = train_run(tmp_path / "chosen", run_data, **LONGER, selection=selection, validation=6)
    lines = RunFolder(tmp_path / "chosen").metrics()
    if selection == "validation":
        assert chosen.epoch == 2 and chosen.protocol.selection == "validation"
    else:
        scores_of_epochs = [(line["test_top1"], line["test_map"]) for line in lines]
        assert chosen.epoch == 1 + scores_of_epochs.index(max(scores_of_epochs))
        assert (chosen.scores.top1, chosen.scores.map) == max(scores_of_epochs)
        assert chosen.protocol.selection == "oracle (upper bound, selected on test)"
    last = train_run(tmp_path / "last", run_data, **{**LONGER, "epochs": chosen.epoch}, validation=6)
    assert (last.epoch, last.ranks) == (chosen.epoch, chosen.ranks)
    kept, expected = (load_file(tmp_path / name / "weights.safetensors") for name in ("chosen", "last"))
    assert kept.keys() == expected.keys() and all(torch.equal(kept[name], expected[name]) for name in kept)


@pytest.mark.parametrize("selection", ["last", "validation", "oracle"])
def test_the_test_set_is_sealed_while_training(run_data, tmp_path, monkeypatch, selection):
    """It is compared with the training data before; only the oracle, which shows that the seal works, reads it."""

    def read_while_training(*_: object) -> None:
        (tmp_path / "run" / "metrics.jsonl").touch()
        run_data.split("sub-01", "test")

    monkeypatch.setattr(run_module, "fit", read_while_training)
    sealed = pytest.raises(RuntimeError, match="the test set is read before training has ended")
    with nullcontext() if selection == "oracle" else sealed:
        train_run(tmp_path / "run", run_data, method="vanilla", selection=selection)
    assert len(run_data.split("sub-01", "test")) == 12  # a failed run leaves no seal


def test_one_training_image_in_twenty_is_held_out_for_selection(run_data):
    split = run_data.split("sub-01", "train")
    assert split_off_validation(split, make_config(run_data)) == (split, None)
    train, held_out = split_off_validation(split, make_config(run_data, selection="validation"))
    assert len(held_out) == 6 and len(train) == 84  # five of 90 images are in two concepts of three
    assert len(split_off_validation(split, make_config(run_data, selection="validation", validation=30))[1]) == 30
    with pytest.raises(UserError, match="validation is 2; that holds one concept out, and selection takes two"):
        split_off_validation(split, make_config(run_data, selection="validation", validation=2))


def test_held_out_samples_compete_with_those_of_other_concepts(seed):
    """Against numpy: four concepts of two images, each shown to three subjects."""
    n_images, n_subjects = 8, 3
    image_of = torch.arange(n_images).repeat(n_subjects)
    recordings = torch.randn(len(image_of), 1, 5)
    concepts = [f"concept {i // 2}" for i in range(n_images)]
    names = [str(i) for i in range(n_images)]
    subject_of = torch.arange(n_subjects).repeat_interleave(n_images)
    split = Split(recordings, image_of, names, concepts, ["Oz"], 1, subject_of, ["a", "b", "c"])
    parts = one_sample_per_concept_batches(split)
    assert sorted(torch.cat(parts).tolist()) == list(range(24)) and all(len(part) == 4 for part in parts)
    assert all(len({concepts[image_of[sample]] for sample in part}) == 4 for part in parts)
    three = split.take(torch.tensor([0, 1, 2]))
    assert [part.tolist() for part in one_sample_per_concept_batches(three)] == [[0, 2]]  # sample 1 would be alone

    features = torch.randn(n_images, 5)
    texts = torch.zeros(n_images, 1)
    embed = lambda brain, images, text, subjects: Embeddings(brain[:, 0], images[0], torch.zeros(len(brain), 1), text)  # noqa: E731
    method = SimpleNamespace(eval=lambda: None, gallery_feature_levels=lambda: [SHARP], retrieval_embeddings=embed)
    top1 = validation_top1(method, split, lambda indices, gain, kernel_size: features[indices], texts, ["a", "b", "c"])
    scores = recordings[:, 0].double().numpy() @ features.double().numpy().T  # (samples, images)
    right = 0
    for sample, image in enumerate(image_of.tolist()):
        gallery = np.arange(image % 2, n_images, 2)  # the first image of every concept, or the second
        right += gallery[scores[sample, gallery].argmax()] == image
    assert top1 == right / 24
