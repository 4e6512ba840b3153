"""The synthetic data set: layout, sizes, seeds, and the signal in it."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bvsa_core.data.dataset import Dataset
from bvsa_core.data.quality.check import check_dataset
from bvsa_core.data.split import load_split
from bvsa_core.errors import UserError
from bvsa_core.io.safe_readers import read_arrays
from bvsa_core.synthetic.dataset import SyntheticConfig, make_dataset, make_subject, plan_images, record

FEW = {"train_concepts": 4, "images_per_concept": 2, "train_repetitions": 2, "test_concepts": 3, "test_repetitions": 4}
TINY = SyntheticConfig(subjects=1, samples=60, **FEW)
RECORDINGS = "Preprocessed_data_250Hz_whiten"


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_files_are_like_those_of_ubp(small_data):
    folder = small_data / RECORDINGS / "sub-02"
    content = read_arrays(folder / "train.pt")
    assert set(content) == {"eeg", "label", "img", "text", "session", "ch_names", "times", "source"}
    assert content["eeg"].dtype == np.float16 and content["eeg"].shape == (90, 2, 17, 100)
    assert {content[key].shape for key in ("label", "img", "text", "session")} == {(90, 2)}
    image = content["img"][0, 0]
    assert image.startswith("training_images/00001_") and (small_data / "Image_set_Resize" / image).is_file()
    test = torch.load(folder / "test.pt", weights_only=False)  # as the published code does
    assert test["eeg"].shape == (12, 6, 17, 100)


def test_the_same_seed_makes_the_same_bytes_and_another_seed_others(tmp_path):
    for name, config in (("a", TINY), ("b", TINY), ("c", dataclasses.replace(TINY, seed=1))):
        make_dataset(tmp_path / name, config)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b and a != c
    recordings = [name for name in a if name.endswith(".pt")]
    assert len(recordings) == 2 and all(a[name] != c[name] for name in recordings)


def test_full_size_by_default():
    config = SyntheticConfig()
    plan = plan_images(config)
    assert len({image.concept for image in plan["train"]}) >= 600 and len(plan["test"]) == 200
    assert config.images_per_concept == 10 and config.train_repetitions == 4 and config.test_repetitions == 80
    assert not {image.concept for image in plan["train"]} & {image.concept for image in plan["test"]}
    assert (config.samples, len(config.channel_names)) == (250, 17)
    assert len(SyntheticConfig(channels="all").channel_names) == 63
    meg = SyntheticConfig(modality="meg")
    assert (meg.images_per_concept, meg.train_repetitions, meg.test_repetitions) == (12, 1, 12)
    assert (meg.samples, len(meg.channel_names)) == (201, 271)


def test_an_interrupted_call_continues_and_other_folders_are_refused(tmp_path):
    make_dataset(tmp_path / "data", TINY)
    whole = digests(tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / RECORDINGS)
    (tmp_path / "data" / RECORDINGS / ".sub-01.partial").mkdir(parents=True)
    make_dataset(tmp_path / "data", TINY)
    assert digests(tmp_path / "data") == whole
    with pytest.raises(UserError, match="made with other settings: seed 0 -> 5; choose another folder"):
        make_dataset(tmp_path / "data", dataclasses.replace(TINY, seed=5))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty and not a synthetic data set"):
        make_dataset(tmp_path / "mine", TINY)
    (tmp_path / "data" / "dataset.json").write_text('{"name": ')
    with pytest.raises(UserError, match=r"dataset.json: damaged .*; .*data: choose another folder or delete it$"):
        make_dataset(tmp_path / "data", TINY)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("subjects", 0, "subjects is 0; it must be at least 1"),
        ("samples", 10, "samples is 10"),
        ("signal_to_noise", -1.0, "signal_to_noise is -1.0; it must be positive"),
        ("channels", "some", "channels is 'some'"),
        ("modality", "fmri", "unknown modality 'fmri'; choose one of eeg, meg"),
        ("train_concepts", 5000, "5000 training and 3 test concepts are requested; there are 8"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, name, value, message):
    with pytest.raises(UserError, match=message):
        make_dataset(tmp_path / "data", dataclasses.replace(TINY, **{name: value}))


def test_trials_have_unit_noise_and_the_stated_signal():
    config = SyntheticConfig(signal_to_noise=0.5)
    drive = np.tanh(np.random.default_rng(0).standard_normal((300, 72)))
    subject = make_subject(1, drive, config)
    trials = record(subject, drive, 40, iter(np.random.SeedSequence(0).spawn(1000))).astype(np.float64)
    noise = trials - trials.mean(1, keepdims=True)
    assert noise.std() == pytest.approx(1.0, rel=0.1)
    signal = trials.mean(1).var() - noise.var() / 40
    assert np.sqrt(signal) == pytest.approx(0.5, rel=0.15)


def test_subjects_differ_but_see_the_same_images(small_data):
    dataset = Dataset(small_data)
    first, second = (load_split(dataset, [subject], "test").recordings.flatten(1) for subject in dataset.subjects)
    similarities = [torch.corrcoef(each)[np.triu_indices(len(each), 1)] for each in (first, second)]
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1] < 0.9
    assert torch.corrcoef(torch.stack(similarities))[0, 1] > 0.3


def test_check_reports_every_problem(small_data, tmp_path):
    report = check_dataset(small_data)
    assert report.problems == [] and len(report.summary) == 5
    copy = shutil.copytree(small_data, tmp_path / "data")
    images = sorted((copy / "Image_set_Resize").rglob("*.jpg"))
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:500])
    train = copy / RECORDINGS / "sub-01" / "train.pt"
    train.write_bytes(train.read_bytes()[:-100])
    (copy / RECORDINGS / "sub-02" / "test.pt").unlink()
    problems = check_dataset(copy).problems
    assert len(problems) == 4
    of_images = (f"{images[0].name} is missing", f"{images[1].name} cannot be read")
    for part in ("sub-01/train.pt: damaged", "sub-02/test.pt: no such file", *of_images):
        assert any(part in problem for problem in problems), part


def test_check_reports_test_concepts_in_the_training_set(small_data, tmp_path):
    copy = shutil.copytree(small_data, tmp_path / "data")
    for train in copy.rglob("train.pt"):
        shutil.copy(train, train.with_name("test.pt"))
    assert any("retrieval is not zero-shot" in problem for problem in check_dataset(copy).problems)


def test_dataset_json_describes_the_data_set(small_data):
    description = Dataset(small_data).description
    assert description["name"] == "synthetic" and description["modality"] == "EEG"
    assert description["config"]["train_concepts"] == 30
