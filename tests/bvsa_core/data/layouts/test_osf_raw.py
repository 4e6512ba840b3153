"""Raw sessions in the store: order, whitening, and resuming after a kill."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from raw_files import by_hand, numbers_of, recording, write_images, write_subject
from sklearn.covariance import ledoit_wolf

from bvsa_core.data.dataset import Dataset
from bvsa_core.data.layouts import convert as conversion
from bvsa_core.data.layouts.raw_session import TARGET, RawSession
from bvsa_core.data.layouts.source import ConversionOptions
from bvsa_core.data.quality.check import check_dataset
from bvsa_core.data.store import open_array, read_header

RATE = 250.0  # no resampling here, see test_raw_session
SPLITS = ("train", "test")
HALF = 2.0**-11  # relative, of rounding to float16
SUBNORMAL = 2.0**-25  # absolute, likewise


@pytest.fixture(scope="module")
def contents() -> dict[tuple[int, str], dict]:
    """Contents of the eight files by session and split, each of another noise."""
    random = np.random.default_rng(int(os.environ.get("FOVBLUR_TEST_SEED", 20260)))
    noise = {(session, split): 1e-5 * (session + (split == "test")) for session in (1, 2, 3, 4) for split in SPLITS}
    return {key: recording(numbers_of(*key), RATE, size, 1e-6, random) for key, size in noise.items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory, contents) -> Path:
    """Write sub-01, and sub-02 which differs from it in the test recordings of session 2 alone."""
    folder = tmp_path_factory.mktemp("osf")
    write_images(folder / "Image_set")
    write_subject(folder / "Raw_data" / "sub-01", lambda *key: contents[key])
    other = {**contents, (2, "test"): recording(numbers_of(2, "test"), RATE, 5e-5, 0, np.random.default_rng(1))}
    write_subject(folder / "Raw_data" / "sub-02", lambda *key: other[key])
    return folder


def convert(source: Path, store: Path, **options) -> Path:
    conversion.convert(source, store, "EEG", ConversionOptions(**options))
    return store


@pytest.fixture(scope="module")
def stores(source, tmp_path_factory) -> dict[str, Path]:
    """Make a store for each whitening."""
    folders = {whitening: tmp_path_factory.mktemp(whitening) for whitening in ("none", "train", "original")}
    convert(source, folders["none"], whitening="none", subjects=["sub-01"], whole_epoch=True)
    convert(source, folders["train"])
    convert(source, folders["original"], whitening="original")
    return folders


def array(store: Path, split: str, subject: str = "sub-01") -> np.ndarray:
    return open_array(store / subject, read_header(store / subject), split)


def expected(contents, split: str, before: float = 0.0, factors: dict[int, np.ndarray] | None = None) -> np.ndarray:
    """Return (images, repetitions, channels, time), sessions ascending, each in the order of presentation."""
    epochs: dict[int, list[np.ndarray]] = {number: [] for number in range(1, 13 if split == "train" else 4)}
    for session in (1, 2, 3, 4):
        of_session, factor = by_hand(contents[session, split], before), 1 if factors is None else factors[session]
        for number in epochs:
            epochs[number] += [np.dot(factor, epoch) for epoch in of_session.get(number, [])]
    return np.array(list(epochs.values()))


def factor(contents, session: int, splits: tuple[str, ...]) -> np.ndarray:
    """Fit by definition: Ledoit and Wolf's covariance of each standardised epoch, mean over epochs and splits."""
    parts = []
    for split in splits:
        of_image = by_hand(contents[session, split])
        of_image.pop(TARGET, None)
        covariances = []
        for epoch in (epoch for epochs in of_image.values() for epoch in epochs):
            spread = epoch.std(axis=1)
            standard = (epoch - epoch.mean(axis=1, keepdims=True)) / spread[:, None]
            covariances.append(ledoit_wolf(standard.T)[0] * np.outer(spread, spread))
        parts.append(np.mean(covariances, axis=0))
    return scipy.linalg.fractional_matrix_power(np.mean(parts, axis=0), -0.5)


def test_without_whitening_the_store_holds_microvolts_in_the_order_of_images_and_sessions(contents, stores):
    header = read_header(stores["none"] / "sub-01")
    assert (header.units, header.sampling_rate, header.layout) == ("µV", 250.0, "osf_raw")
    np.testing.assert_allclose(header.times, np.arange(-50, 250) / 250, rtol=0, atol=1e-9)
    for split in SPLITS:
        known = 1e6 * expected(contents, split, before=0.2)
        # Intermediate samples are float32, whose rounding is far below float16's.
        np.testing.assert_allclose(array(stores["none"], split), known, rtol=1.01 * HALF, atol=SUBNORMAL)
    train, test = header.splits["train"], header.splits["test"]
    assert train.sessions[0] == [1, 1, 3, 3] and train.sessions[2] == [2, 2, 4, 4]
    assert test.sessions == 3 * [[s for s in (1, 2, 3, 4) for _ in range(20)]]
    assert train.images[2] == "training_images/00002_trthing_1/trthing_1_01b.jpg" and train.concepts[2] == "trthing_1"
    assert test.images == [f"test_images/{i + 1:05d}_tething_{i}/tething_{i}_01s.jpg" for i in range(3)]
    assert "whitening" not in " ".join(header.processing) and header.whitened_from is None


@pytest.mark.parametrize(("whitening", "fitted_on"), [("train", ("train",)), ("original", ("train", "test"))])
def test_whitening_is_the_matrix_power_of_scikit_learns_covariances(contents, stores, whitening, fitted_on):
    header = read_header(stores[whitening] / "sub-01")
    factors = {session: factor(contents, session, fitted_on) for session in (1, 2, 3, 4)}
    assert header.units == "whitened" and f"whitening: {whitening}" in " ".join(header.processing)
    assert header.times[0] == 0 and len(header.times) == 250
    covariance = np.mean([np.linalg.inv(each @ each) for each in factors.values()], axis=0)
    np.testing.assert_allclose(header.whitened_from, covariance, rtol=1e-6, atol=1e-6 * abs(covariance).max())
    for split in SPLITS:
        known = expected(contents, split, factors=factors)
        # 63 products in float32 are summed: below 63 eps of the largest, beside float16's rounding.
        atol = 63 * 2.0**-23 * abs(known).max() + SUBNORMAL
        np.testing.assert_allclose(array(stores[whitening], split), known, rtol=HALF, atol=atol)


def test_training_recordings_never_see_the_test_recordings(stores):
    store = stores["train"]
    recordings = Dataset(store).load("sub-02", "test")
    assert recordings.data.shape == (3, 80, 63, 250) and recordings.modality == "EEG"
    np.testing.assert_array_equal(array(store, "train"), array(store, "train", "sub-02"))
    same, other = array(store, "test"), array(store, "test", "sub-02")
    changed = np.isin(np.arange(80), range(20, 40))  # session 2
    np.testing.assert_array_equal(same[:, ~changed], other[:, ~changed])
    assert (same[:, changed] != other[:, changed]).any(axis=(2, 3)).all()


def test_the_original_whitening_does_see_them_session_by_session(stores):
    same, other = array(stores["original"], "train"), array(stores["original"], "train", "sub-02")
    in_two = np.array(read_header(stores["original"] / "sub-01").splits["train"].sessions) == 2
    assert (same[in_two] != other[in_two]).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(same[~in_two], other[~in_two])


def test_a_killed_conversion_resumes_with_the_sessions_it_finished(source, stores, tmp_path, monkeypatch):
    whole, calls = RawSession.epochs, []

    def killed(self):
        calls.append(self.path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(self)

    monkeypatch.setattr(RawSession, "epochs", killed)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path, subjects=["sub-01"])
    assert not (tmp_path / "sub-01").exists()
    convert(source, tmp_path, subjects=["sub-01"])
    assert len(calls) == 4 + 5 and len(set(calls)) == 8
    again, first = (read_header(store / "sub-01") for store in (tmp_path, stores["train"]))
    assert again.splits == first.splits  # the checksums too
    assert sorted(path.name for path in (tmp_path / "sub-01").iterdir()) == ["header.json", "test.npy", "train.npy"]


def linked(source: Path, folder: Path, without: str = "") -> Path:
    """Link the files of sub-01 into another folder, without some of them."""
    for path in (source / "Raw_data" / "sub-01").rglob("*.npy"):
        place = folder / "sub-01" / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not without or without not in str(place):
            place.symlink_to(path)
    (folder / "Image_set").symlink_to(source / "Image_set")
    return folder


def replace(folder: Path, name: str, content: dict) -> None:
    (folder / "sub-01" / name).unlink()
    np.save(folder / "sub-01" / name, content)


def test_missing_sessions_are_named(source, tmp_path, refused):
    folder = linked(source, tmp_path / "raw", without="ses-03")
    missing = "without ses-03/raw_eeg_training.npy, ses-03/raw_eeg_test.npy"
    refused(f"sub-01: {missing}; fetch what is missing", source=folder)


def test_an_image_shown_in_too_few_sessions_is_named(source, tmp_path, contents, refused):
    folder = linked(source, tmp_path / "raw")
    replace(folder, "ses-03/raw_eeg_training.npy", contents[4, "train"])  # the other half again
    rare = r"image 1 \(training_images/.*\) is in 1 session.s. and should be in 2; 11 more"
    refused(f"sub-01 train: {rare}", source=folder, whitening="none")


def test_an_incomplete_image_set_is_refused_and_the_complete_one_resumes(source, stores, tmp_path, refused):
    write_images(tmp_path / "images")
    last = tmp_path / "images" / "training_images" / "00006_trthing_5" / "trthing_5_01n.jpg"
    last.unlink()
    options = {"images": tmp_path / "images", "subjects": ["sub-01"]}
    counts = "ses-02/raw_eeg_training.npy: shows image 12, and the image set has 11"
    refused(f"{counts}; give the complete one by --images", source=source, **options)
    last.touch()
    store = convert(source, tmp_path / "store", **options)
    assert read_header(store / "sub-01").splits == read_header(stores["train"] / "sub-01").splits


def test_a_flat_channel_is_named(source, tmp_path, contents, refused):
    folder = linked(source, tmp_path / "raw")
    content = contents[2, "train"]
    flat = content["raw_eeg_data"].copy()
    flat[content["ch_names"].index("Cz")] = 0.1
    replace(folder, "ses-02/raw_eeg_training.npy", {**content, "raw_eeg_data": flat})
    refused(r"ses-02: cannot be whitened, .*flat channels: Cz.; give --whitening none", source=folder)


def test_a_dry_run_reads_raw_sessions(source):
    report = check_dataset(source)
    shapes = [f"sub-0{k} {shape}" for k in (1, 2) for shape in ("train: 12 x 4 x 63 x 250", "test: 3 x 80 x 63 x 250")]
    assert report.summary == [f"{source} {shape}, layout osf_raw" for shape in shapes] and report.problems == []


def test_impossible_options_are_refused(source, refused):
    refused("whitening is 'all'; choose one of train, original, none", source=source, whitening="all")
    refused("sampling_rate is 0; give 10 Hz or more", source=source, sampling_rate=0.0)
    rates = "recorded at 250 Hz, and sampling_rate is 300; give a lower one"
    refused(rates, source=source, sampling_rate=300.0)
