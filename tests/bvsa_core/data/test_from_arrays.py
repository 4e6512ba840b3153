"""Arrays in memory become a subject of the store."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bvsa_core.data.dataset import Dataset, Recordings
from bvsa_core.data.from_arrays import from_arrays, from_torch, write_subject
from bvsa_core.data.split import load_split
from bvsa_core.errors import UserError


@pytest.fixture
def recordings(seed) -> Recordings:
    images = [f"training_images/thing{i}/thing{i}_01.png" for i in range(4)]
    data = np.random.default_rng(seed).standard_normal((4, 3, 2, 5))
    return Recordings(data, images, ["a", "b", "c", "d"], ["Oz", "Pz"], np.arange(5) / 100)


def test_recordings_are_read_back_and_written_once(recordings, tmp_path):
    folder = write_subject(tmp_path, "sub-07", recordings, recordings, "whitened")
    stored = Dataset(tmp_path).load("sub-07", "test")
    np.testing.assert_array_equal(stored.data, recordings.data.astype(np.float16))
    assert (stored.images, stored.concepts) == (recordings.images, recordings.concepts)
    assert stored.channels == recordings.channels
    np.testing.assert_array_equal(stored.times, recordings.times)
    split = load_split(Dataset(tmp_path), ["sub-07"], "train", channels=["Pz"], window=(0.01, 0.03))
    assert split.recordings.shape == (4, 1, 3)
    header = (folder / "header.json").read_bytes()
    assert b'"sampling_rate": 100.0' in header and b"whitened" in header
    assert write_subject(tmp_path, "sub-07", recordings, recordings, "whitened") == folder
    assert (folder / "header.json").read_bytes() == header
    with pytest.raises(UserError, match="sub-07 is there already, made otherwise"):
        write_subject(tmp_path, "sub-07", recordings, replace(recordings, data=recordings.data + 1), "whitened")
    assert [path.name for path in tmp_path.iterdir()] == ["sub-07"]


SMALL = np.random.default_rng(0).standard_normal((4, 3, 2, 5)) * 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((4, 2, 5))}, r"sub-01 train data: float64 of shape \(4, 2, 5\); it must be floats"),
        ({"data": np.zeros((4, 3, 2, 5), int)}, "data: int64"),
        ({"images": ["a.png"]}, "1 images for data of shape"),
        ({"images": ["../a.png"] * 4}, "image name '../a.png' points outside"),
        ({"channels": ["Oz"]}, "1 channels for data .* give 2"),
        ({"times": np.zeros(5)}, "times must be at least two, .* ascending"),
        ({"modality": "fMRI"}, "modality is 'fMRI'; give 'EEG' or 'MEG'"),
        ({"data": SMALL}, "samples deviate by .*give µV or fT instead of V or T"),
        ({"data": np.full((4, 3, 2, 5), np.nan)}, "condition 0 .* not finite in float16"),
        ({"data": np.linspace(0, 1e6, 120).reshape(4, 3, 2, 5)}, "not finite in float16"),
    ],
)
def test_errors_are_reported_and_nothing_is_written(recordings, tmp_path, changes, message):
    wrong = replace(recordings, **changes)
    with pytest.raises(UserError, match=message):
        write_subject(tmp_path, "sub-01", wrong, wrong)
    assert not (tmp_path / "sub-01").exists()


def test_wrong_names_and_splits_that_differ_are_refused(recordings, tmp_path):
    with pytest.raises(UserError, match="subject 'anna': call it sub-"):
        write_subject(tmp_path, "anna", recordings, recordings)
    with pytest.raises(UserError, match="sub-01 test: its channels are not those of train"):
        write_subject(tmp_path, "sub-01", recordings, replace(recordings, channels=["Oz", "O1"]))


def test_trials_of_an_image_become_its_repetitions(seed):
    data = np.random.default_rng(seed).standard_normal((6, 2, 5)).astype(np.float32)
    made = from_arrays(data, ["b", "a", "a", "b", "b", "a"], concepts=list("yxxyyx"), sessions=[1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(made.data, data[[[0, 3, 4], [1, 2, 5]]])
    assert (made.images, made.concepts, made.sessions) == (["b", "a"], ["y", "x"], [[1, 2, 2], [1, 1, 2]])
    assert made.channels == ["channel 1", "channel 2"] and made.axes.sampling_rate is None


def test_a_torch_data_set_becomes_a_store_with_its_images(tmp_path, seed):
    rng = np.random.default_rng(seed)
    trials, ids = torch.randn(8, 2, 5), torch.tensor([0, 1, 2, 3] * 2)
    names = [f"training_images/thing{i}/thing{i}_01.png" for i in range(4)]
    for name in names:
        (tmp_path / "pictures" / name).parent.mkdir(parents=True)
        (tmp_path / "pictures" / name).write_bytes(rng.bytes(10))
    about = {"channels": ["Oz", "Pz"], "times": np.arange(5) / 200, "units": "whitened", "dataset": "mine"}
    made = from_torch(torch.utils.data.TensorDataset(trials, ids), names, **about)
    np.testing.assert_array_equal(made.data[2, 1], trials[6].numpy())
    store = tmp_path / "store"
    with pytest.raises(UserError, match="image_folder .*elsewhere: no image training_images/thing0"):
        write_subject(store, "sub-01", made, made, image_folder=tmp_path / "elsewhere")
    for _ in range(2):
        write_subject(store, "sub-01", made, made, image_folder=tmp_path / "pictures")
    dataset = Dataset(store)
    assert [dataset.image_path(name).read_bytes() for name in made.images] == [
        (tmp_path / "pictures" / name).read_bytes() for name in names
    ]
    stored = dataset.load("sub-01", "train")
    assert (stored.units, stored.dataset, stored.axes.sampling_rate) == ("whitened", "mine", 200)
    by_name = from_torch([(trials[0], "cat.png"), (trials[1], "dog.png")])
    assert by_name.images == ["cat.png", "dog.png"]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "samples: empty; give pairs"),
        ([torch.zeros(2, 5)], r"samples: sample 0 is a Tensor; each must be a pair"),
        ([(torch.zeros(2, 5), 0), (torch.zeros(2, 4), 1)], r"recordings of shape \(2, 4\), \(2, 5\); all must be"),
        ([(torch.zeros(5), 0)], r"recordings of shape \(5,\); all must be \(channels, time\)"),
        ([(torch.zeros(2, 5), 7)], "images: none for the id 7; give a mapping or list"),
    ],
)
def test_samples_that_are_no_pairs_are_refused(samples, message):
    with pytest.raises(UserError, match=message):
        from_torch(samples, images=["a.png", "b.png"])


def test_labels_that_do_not_fit_are_refused():
    data = np.zeros((4, 2, 5), np.float32)
    for changes, message in (
        ({"images": ["a"]}, "images: 1 for 4 trials; give one a trial"),
        ({"concepts": ["a"]}, "concepts: 1 for 4 trials"),
        ({"channels": ["Oz"]}, "1 channels for data of shape .* give 2"),
        ({"times": [0.0] * 5}, "times must be at least two, .*ascending"),
        ({"data": data[0]}, r"data: float32 of shape \(2, 5\); it must be floats of shape \(trials, channels, time\)"),
    ):
        with pytest.raises(UserError, match=message):
            from_arrays(**{"data": data, "images": list("aabb"), **changes})
