"""What makes a score no test is refused before training, or said; files that changed after a run are noticed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import make_config, train_run

from bvsa_core.data.dataset import RECORDINGS_FOLDER, Dataset
from bvsa_core.data.quality.check import check_dataset
from bvsa_core.errors import UserError
from bvsa_core.io.safe_readers import read_arrays
from bvsa_core.report.tables import caption, method_results
from bvsa_core.training.config import RunDataConfig
from bvsa_core.training.run import train
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder

ONE = {"method": "vanilla", "epochs": 1}


@pytest.fixture
def copy(small_data, tmp_path) -> Path:
    """A copy of the data set, to be changed."""
    return shutil.copytree(small_data, tmp_path / "data")


def change(data: Path, split: str, **changes) -> None:
    """Change the parts of a recordings file of sub-01 by functions of them."""
    path = data / RECORDINGS_FOLDER / "sub-01" / f"{split}.pt"
    content = read_arrays(path)
    torch.save(content | {name: new(content[name]) for name, new in changes.items()}, path, pickle_protocol=5)


def run_data(data: Path, **config) -> RunData:
    return RunData(RunDataConfig(data=data, **config))


def replaced(values: np.ndarray, number: int, name: str) -> np.ndarray:
    """Rename a condition."""
    names = values.astype("U200")
    names[number] = name
    return names


@pytest.mark.parametrize("kind", ["concept", "image"])
def test_a_test_set_that_is_trained_on_is_refused_or_said(copy, tmp_path, kind):
    train_split = Dataset(copy).load("sub-01", "train")
    if kind == "concept":
        concept = train_split.concepts[0].replace("_", " ").title()
        change(copy, "test", text=lambda text: replaced(text, 3, concept))
        leak = rf"1 concept\(s\) \({concept}\) of the test set"
    else:
        dataset = Dataset(copy)
        target = dataset.image_path(dataset.load("sub-01", "test").images[2])
        shutil.copy(dataset.image_path(train_split.images[5]), target)
        leak = rf"1 image\(s\) \({target.name}\) of the test set"
    message = rf"data: the training data have {leak}; take them out, or give --allow_leak true"
    with pytest.raises(UserError, match=message):
        train_run(tmp_path / "run", run_data(copy), **ONE)
    with pytest.raises(UserError, match=message):  # the concept may be held out, which is no better
        train_run(tmp_path / "held", run_data(copy), **ONE, selection="validation", validation=60)
    assert not list(tmp_path.rglob("metrics.jsonl"))
    result = train_run(tmp_path / "allowed", run_data(copy), **ONE, allow_leak=True)
    assert result.protocol.leak == "test data are trained on"
    assert RunFolder(tmp_path / "allowed").result().protocol.leak and "leak" in str(result.protocol)


def test_channels_of_the_test_set_are_those_of_training(copy, small_data, tmp_path):
    """Whatever their order in the file."""
    expected = train_run(tmp_path / "expected", run_data(small_data, channels="all"), **ONE)
    order = np.random.default_rng(0).permutation(17)
    shuffled = {
        "ch_names": lambda names: [names[i] for i in order],
        "eeg": lambda data: np.ascontiguousarray(data[:, :, order]),
    }
    change(copy, "test", **shuffled)
    assert train_run(tmp_path / "run", run_data(copy, channels="all"), **ONE).ranks == expected.ranks
    inter = [
        train_run(tmp_path / name, run_data(data, channels="all"), **ONE, setting="inter").ranks
        for name, data in (("plain", small_data), ("shuffled", copy))
    ]
    assert inter[0] == inter[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"times": lambda times: times * 2.5},
            "100 samples from 0 to 0.99 s, where the run was trained on 100 samples",
        ),
        ({"times": lambda times: times[::-1].copy()}, "times that do not increase, or are not finite; make the file"),
        ({"times": lambda times: times * np.nan}, "times that do not increase, or are not finite; make the file"),
        ({"eeg": lambda data: data[..., :-1]}, "99 samples from 0.004 to 0.396 s, where the run was trained on 100"),
        ({"ch_names": lambda names: ["X1", *names[1:]]}, "no channel P7; there are X1, P5"),
    ],
)
def test_a_test_set_that_does_not_fit_is_refused_before_training(copy, tmp_path, changes, message):
    change(copy, "test", **changes)
    with pytest.raises(UserError, match=rf"sub-01/test.pt: {message}"):
        train_run(tmp_path / "run", run_data(copy, channels="all"), **ONE)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_data_check_names_what_training_refuses(copy):
    change(copy, "test", times=lambda times: times * np.nan)
    (line, *_) = check_dataset(copy).problems
    assert "sub-01/test.pt: times that do not increase, or are not finite; make the file again" in line


def test_an_image_named_twice_is_in_the_gallery_once(copy, tmp_path):
    images, concepts = (getattr(Dataset(copy).load("sub-01", "test"), name) for name in ("images", "concepts"))
    twice = {"img": lambda names: replaced(names, 4, images[1]), "text": lambda names: replaced(names, 4, concepts[1])}
    change(copy, "test", **twice)
    result = train_run(tmp_path / "run", run_data(copy), **ONE)
    assert (result.protocol.gallery, result.protocol.repeated) == (11, 1) and len(result.ranks) == 11
    assert RunFolder(tmp_path / "run").embeddings().image.shape[0] == 11


def test_files_that_changed_after_a_run_are_noticed(small_data, tmp_path):
    data, folder = run_data(small_data), RunFolder(tmp_path / "run")
    first = train_run(folder.path, data, **ONE)
    names = ["weights.safetensors", "embeddings.safetensors"]
    assert first.files.keys() == {*names, "metrics.jsonl"} and folder.verify() == first
    for name in names:
        path = folder.path / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        message = rf"{name}: altered since the run ended \(its checksum differs\); delete its folder, and train the run"
        with pytest.raises(UserError, match=message):
            train_run(folder.path, data, **ONE)
        path.write_bytes(whole)
    assert train_run(folder.path, data, **ONE) == first
    assert first.protocol.sampling_rate == 250 and first.axes.channels[:2] == ("P7", "P5")
    (folder.path / "weights.safetensors").unlink()
    assert folder.verify() == first
    metrics = folder.path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"loss": ', '"loss": 1'))
    with pytest.raises(UserError, match="metrics.jsonl: altered since the run ended"):
        folder.metrics()
    (folder.path / "result.json").write_text(json.dumps(replace(first, method="bvsa").to_json()))
    with pytest.raises(UserError, match="method is bvsa, and vanilla in run.yaml; delete it, and train the run again"):
        folder.verify()


def test_runs_of_earlier_versions_are_read(small_data, tmp_path):
    """They have no checksums, axes, rate, window or source of the recordings, and no settings allow_leak and texts."""
    data, folder = run_data(small_data), RunFolder(tmp_path / "run")
    first = train_run(folder.path, data, **ONE)
    content = json.loads((folder.path / "result.json").read_text())
    for name in ("checksum", "files", "axes"):
        del content[name]
    for name in ("sampling_rate", "window", "source"):
        del content["protocol"][name]
    (folder.path / "result.json").write_text(json.dumps(content))
    lines = [
        line
        for line in folder.settings.read_text().splitlines()
        if not line.startswith(("allow_leak", "texts", "concepts"))
    ]
    folder.settings.write_text("\n".join(lines))
    again = train_run(folder.path, data, **ONE)
    assert again.ranks == first.ranks and not again.files and again.axes is None and folder.verify() == again
    assert "17 channels (unknown rate, unknown window, source unknown)" in caption(method_results([again]))
    assert method_results([again, replace(first, seed=1)])[0].protocol == first.protocol  # which knows them


def test_training_reads_the_test_set_only_to_compare_it(copy):
    """Its samples shape no weight: other samples give the same ones."""
    states = []
    for _ in range(2):
        data = run_data(copy)
        states.append(train(make_config(data, **ONE), data).method.state_dict())
        change(copy, "test", eeg=lambda values: values[::-1].copy())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
