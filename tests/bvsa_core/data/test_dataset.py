"""The layout of UBP and BVSA, and the differences between published files."""

import numpy as np
import pytest
import torch

from bvsa_core.data.dataset import Dataset, Recordings, concept_of, read_recordings, write_recordings
from bvsa_core.data.split import load_split
from bvsa_core.data.things_eeg import OCCIPITAL_CHANNELS
from bvsa_core.errors import UserError


def published(**changes) -> dict:
    """Content of a file like UBP's: arrays for every repetition, and times of the whole epoch."""
    images = [f"training_images/{i + 1:05d}_thing_{i}/thing_{i}_01b.jpg" for i in range(3)]
    labels = {"label": range(3), "img": images, "text": ["thing_0", "thing_1", "thing_2"]}
    return {
        "eeg": np.random.default_rng(0).standard_normal((3, 2, 17, 60)).astype(np.float16),
        **{key: np.tile(np.array(values)[:, None], (1, 2)) for key, values in labels.items()},
        "session": np.zeros((3, 2)),
        "ch_names": list(OCCIPITAL_CHANNELS),
        "times": np.linspace(-0.2, 1.0, 111),
    } | changes


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "Preprocessed_data_250Hz_whiten" / "sub-01"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        torch.save(published(), folder / f"{split}.pt", pickle_protocol=5)
    return tmp_path


def test_files_of_ubp_are_read(root):
    dataset = Dataset(root)
    recordings = dataset.load("sub-01", "train")
    assert dataset.subjects == ["sub-01"]
    assert recordings.data.shape == (3, 2, 17, 60) and recordings.concepts == ["thing_0", "thing_1", "thing_2"]
    assert len(recordings.times) == 60 and recordings.times[-1] == pytest.approx(1.0)
    assert Dataset(root / "Preprocessed_data_250Hz_whiten").subjects == ["sub-01"]


def test_files_without_texts_and_with_one_name_per_condition_are_read(tmp_path):
    content = published()
    torch.save({"eeg": content["eeg"], "img": content["img"][:, 0]}, tmp_path / "train.pt")  # like published MEG
    assert read_recordings(tmp_path / "train.pt").concepts == ["thing_0", "thing_1", "thing_2"]


def test_written_recordings_read_back(tmp_path):
    content = published()
    images, concepts = (list(content[key][:, 0]) for key in ("img", "text"))
    first = Recordings(content["eeg"], images, concepts, content["ch_names"], np.arange(60) / 250)
    write_recordings(tmp_path / "train.pt", first, np.arange(3), content["session"])
    again = read_recordings(tmp_path / "train.pt")
    np.testing.assert_array_equal(again.data, first.data)
    assert (again.images, again.concepts, again.channels) == (first.images, first.concepts, first.channels)


def test_the_concept_is_in_the_path():
    assert concept_of("training_images/00001_aardvark/aardvark_01b.jpg") == "aardvark"
    assert concept_of("test_images/00001_aircraft_carrier/aircraft_carrier_06s.jpg") == "aircraft_carrier"
    assert concept_of("aircraft_carrier_06s.jpg") == "aircraft_carrier"


def test_images_are_found_in_either_folder_under_either_name(root):
    image = root / "Image_set" / "train_images" / "00001_thing_0" / "thing_0_01b.jpg"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"x")
    assert Dataset(root).image_path("training_images/00001_thing_0/thing_0_01b.jpg") == image
    with pytest.raises(UserError, match="image training_images/x/y.jpg is missing: not in .*Image_set"):
        Dataset(root).image_path("training_images/x/y.jpg")
    for outside in ("../secret.jpg", "/etc/passwd"):
        with pytest.raises(UserError, match="points outside"):
            Dataset(root).image_path(outside)


BROKEN = [
    ({"eeg": None}, "'eeg' is object of shape"),
    ({"eeg": np.zeros((3, 2, 17), np.float16)}, "must be floats of shape"),
    ({"eeg": np.zeros((3, 2, 17, 60), np.int16)}, "'eeg' is int16"),
    ({"img": np.array(["a"])}, "'img' has shape .* for each of 3 conditions"),
    ({"text": np.zeros((3, 2))}, "'text' has shape"),
    (
        {"img": np.array([["a", "a"], ["b", "c"], ["d", "d"]])},
        r"'img' changes over the repetitions of condition 1 \(b, c\); it must have a name for each of 3 conditions",
    ),
    ({"ch_names": ["Oz"]}, "'ch_names' has 1 names for 17 channels"),
    ({"times": ["now"] * 60}, "'ch_names' or 'times' is no list .could not convert"),
    ({"ch_names": 3}, "'ch_names' or 'times' is no list"),
    ({"source": 3}, "'source' is no text"),
    ({"times": np.arange(10.0)}, "'times' has shape .10,. for 60 time points"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN, ids=[next(iter(case[0])) for case in BROKEN])
def test_parts_that_do_not_fit_are_reported(tmp_path, changes, message):
    torch.save(published(**changes), tmp_path / "train.pt")
    with pytest.raises(UserError, match=message):
        read_recordings(tmp_path / "train.pt")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_recording_that_is_not_finite_is_reported(tmp_path, value):
    content = published()
    content["eeg"][1, 0, 3, 7] = value
    torch.save(content, tmp_path / "train.pt")
    with pytest.raises(UserError, match=r"train.pt: condition 1 \(training_images/00002_thing_1/"):
        read_recordings(tmp_path / "train.pt")


def test_folders_without_recordings_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder; give the folder of your recordings"):
        Dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no recordings inside; expected Preprocessed_data_250Hz_whiten"):
        Dataset(tmp_path)


def test_split_averages_repetitions_and_selects_channels_and_times(root):
    dataset = Dataset(root)
    data = dataset.load("sub-01", "train").data.astype(np.float32)
    averaged = load_split(dataset, ["sub-01"], "train")
    np.testing.assert_allclose(averaged.recordings.numpy(), data.mean(1), rtol=1e-5)
    single = load_split(dataset, ["sub-01"], "train", channels=["Oz", "P7"], average=False)
    np.testing.assert_array_equal(single.recordings[3].numpy(), data[1, 1][[15, 0]])
    assert single.image_of.tolist() == [0, 0, 1, 1, 2, 2] and single.channels == ["Oz", "P7"]
    late = load_split(dataset, ["sub-01"], "train", window=(0.5, 0.75))
    times = dataset.load("sub-01", "train").times
    np.testing.assert_array_equal(late.recordings, averaged.recordings[..., (times >= 0.5) & (times <= 0.75)])


def test_split_refuses_unknown_names_and_times(root):
    for arguments, message in [
        ({"channels": ["Fp1", "Oz"]}, "no channel Fp1; there are P7"),
        ({"window": (5.0, 6.0)}, "no sample between 5.0 and 6.0 s; times run"),
        ({"subjects": ["sub-09"]}, "no subject 'sub-09'; there are sub-01"),
    ]:
        with pytest.raises(UserError, match=message):
            load_split(Dataset(root), **{"subjects": ["sub-01"], "split": "train", **arguments})


def test_sessions_are_numbered_from_1_and_other_values_are_dropped(tmp_path):
    first = np.array([[0, 3], [1, 1], [2, 2]])
    wrong = (None, np.zeros(3), np.full((3, 2), 0.5), np.full((3, 2), np.nan), np.full((3, 2), "a"))
    cases = [(first, (first + 1).tolist()), (np.full((3, 2), 2.0), [[2, 2]] * 3), *((given, None) for given in wrong)]
    for given, expected in cases:
        torch.save(published(session=given), tmp_path / "train.pt")
        assert read_recordings(tmp_path / "train.pt").sessions == expected
