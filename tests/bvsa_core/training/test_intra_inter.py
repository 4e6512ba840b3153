"""Training and test subjects, EEG and MEG, test repetitions."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainings import train_run

from bvsa_core.cli import main
from bvsa_core.data.dataset import Dataset
from bvsa_core.data.quality.check import check_dataset
from bvsa_core.errors import UserError
from bvsa_core.synthetic import dataset
from bvsa_core.training.config import RunConfig, RunDataConfig, training_of
from bvsa_core.training.run_data import RunData

SENSORS, SAMPLES = 271, 201


@pytest.fixture(scope="module")
def meg_data(small_data, tmp_path_factory) -> Path:
    """Return MEG data of two subjects with the images of small_data."""
    folder = tmp_path_factory.mktemp("data") / "meg"
    images = small_data / "Image_set_Resize"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "write_images", lambda folder, *_: shutil.copytree(images, folder, dirs_exist_ok=True))
        sizes = {"train_concepts": 30, "images_per_concept": 1, "test_concepts": 12, "test_repetitions": 2}
        flags = [f"--{name}={value}" for name, value in sizes.items()]
        assert main(["data", "synthetic", str(folder), "--modality", "meg", *flags]) == 0
    return folder


def test_every_fold_starts_fresh_and_learns_from_the_others_alone(run_data, small_data, tmp_path):
    """With two subjects a fold trains on the other one, as an intra-subject run of that one does."""
    alone = RunData(RunDataConfig(data=small_data))  # as in a fresh process
    folds = (("sub-01", "sub-01", run_data), ("sub-02", "sub-02", run_data), ("alone", "sub-02", alone))
    for name, subject, used in folds:
        result = train_run(tmp_path / name, used, lr=1e-3, subject=subject, setting="inter")
        assert (result.protocol.setting, result.subject, result.samples) == ("inter-subject", subject, 90)
    for file in ("weights.safetensors", "embeddings.safetensors", "result.json"):
        other, after_it, by_itself = ((tmp_path / name / file).read_bytes() for name in ("sub-01", "sub-02", "alone"))
        assert after_it == by_itself != other, file
    intra = train_run(tmp_path / "intra", run_data, lr=1e-3, subject="sub-01")
    assert (intra.protocol.setting, intra.protocol.modality) == ("intra-subject", "EEG")
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("intra", "sub-02")]
    assert weights[0] == weights[1]
    tested = [load_file(tmp_path / name / "embeddings.safetensors")["brain_image"] for name in ("intra", "sub-02")]
    assert not torch.equal(*tested)


def test_inter_subject_needs_the_subject_and_another_one(run_data, small_data, tmp_path):
    with pytest.raises(UserError, match="no subject 'sub-09'; there are sub-01, sub-02"):
        train_run(tmp_path / "a", run_data, subject="sub-09", setting="inter")
    lonely = shutil.copytree(small_data, tmp_path / "data")
    shutil.rmtree(lonely / "Preprocessed_data_250Hz_whiten" / "sub-02")
    message = "sub-01 is the only subject, with nobody else to train on; use --setting intra"
    with pytest.raises(UserError, match=message):
        train_run(tmp_path / "b", RunData(RunDataConfig(data=lonely)), setting="inter")


def test_the_learning_rate_follows_the_setting_unless_it_is_given():
    assert RunConfig().lr == 1e-4 and RunConfig(setting="inter").lr == 1e-5
    assert RunConfig(setting="inter", lr=1e-4).lr == 1e-4
    assert RunConfig(method="nice", setting="inter", **training_of("nice")).lr == 2e-4
    for wrong, message in (
        ({"setting": "both"}, "unknown setting 'both'; choose one of intra, inter"),
        ({"selection": "best"}, "unknown selection 'best'; choose one of last, validation, oracle"),
        ({"repetitions": 0}, "repetitions is 0; it must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            RunConfig(**wrong)


def test_the_first_repetitions_of_the_test_set_are_averaged(run_data, small_data, tmp_path):
    trials = torch.from_numpy(Dataset(small_data).load("sub-01", "test").data).float()
    for repetitions in (1, 4, 6):
        split = run_data.split("sub-01", "test", repetitions)
        assert split.repetitions == repetitions
        # float32 sums of at most 6 numbers below 2^4, in any order: twice an error of 6 * 2^4 * 2^-24
        torch.testing.assert_close(split.recordings, trials[:, :repetitions].mean(1), rtol=0, atol=2 * 6 * 2**-20)
    with pytest.raises(UserError, match="test.pt: an image is shown 6 times, not 7; ask for fewer repetitions"):
        run_data.split("sub-01", "test", 7)
    result = train_run(tmp_path / "run", run_data, method="vanilla", repetitions=2, epochs=1)
    assert result.protocol.repetitions == 2


def test_meg_has_its_shape_and_runs_in_both_settings(meg_data, tmp_path, capsys):
    assert Dataset(meg_data).description["modality"] == "MEG"
    recordings = Dataset(meg_data).load("sub-02", "train")
    assert recordings.data.shape == (30, 1, SENSORS, SAMPLES) and recordings.times[[0, -1]].tolist() == [0.0, 1.0]
    assert check_dataset(meg_data).problems == []
    run_data = RunData(RunDataConfig(data=meg_data))
    for setting in ("intra", "inter"):
        result = train_run(tmp_path / setting, run_data, method="vanilla", epochs=1, setting=setting)
        protocol, shape = result.protocol, result.shape
        assert (protocol.modality, protocol.setting) == ("MEG", f"{setting}-subject")
        assert (protocol.channels, protocol.repetitions, protocol.gallery) == (SENSORS, 2, 12)
        assert (shape.channels, shape.time) == (SENSORS, SAMPLES)
    assert main(["retrieve", str(tmp_path / "inter"), "--top", "1"]) == 0
    assert main(["evaluate", str(tmp_path / "inter")]) == 0
