"""THINGS-MEG epochs, made by MNE at a small size: five concepts, two of them of the test set, four sensors."""

import functools
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from bvsa_core.data.dataset import Dataset, read_recordings
from bvsa_core.data.layouts import recognise
from bvsa_core.data.layouts.convert import convert
from bvsa_core.data.layouts.source import ConversionOptions
from bvsa_core.data.store import read_header
from bvsa_core.errors import UserError

mne = pytest.importorskip("mne")

from fake_meg import CONCEPTS, SENSORS, TIMES, attributes, epochs_of, images, write_table  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.set_index")  # of MNE's own call


class Published(NamedTuple):
    folder: Path  # like ds004212
    samples: np.ndarray  # (epochs, sensors, time) float32
    rows: list[dict]  # of the attributes


def write_images(folder: Path) -> None:
    """Write the tables of the THINGS images."""
    (folder / "image_concept_index.csv").write_text("".join(f"{concept}\n" for concept, _ in images()))
    (folder / "image_paths.csv").write_text("".join(f"{path}\n" for _, path in images()))


def save_alone(folder: Path, epochs: mne.EpochsArray, rows: list[dict] | None) -> Path:
    """Save the epochs in one file in a folder of their own, with a table of attributes or without."""
    alone = folder / "alone"
    alone.mkdir()
    epochs.save(alone / "preprocessed_P1-epo.fif", verbose="error")
    if rows is not None:
        write_table(alone / "sample_attributes_P1.csv", rows)
    return alone


def check_equal(subject: Path, other: Path) -> None:
    """Check that two subjects hold the same images and samples."""
    one, two = read_header(subject), read_header(other)
    for split in ("train", "test"):
        assert one.splits[split].images == two.splits[split].images
        assert one.splits[split].sha256 == two.splits[split].sha256


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Published:
    """Write a subject as published: z-scores, in parts (MNE reserves 1 MiB of each), with a table of attributes."""
    folder = tmp_path_factory.mktemp("ds004212")
    generator = np.random.default_rng(5)
    rows = attributes(generator)
    samples = generator.standard_normal((len(rows), SENSORS, len(TIMES)), np.float32)
    for epoch, row in enumerate(rows):
        samples[epoch, :, 20:] += row["things_image_nr"] or 0  # known: from onset on, every image has its level
    preprocessed = folder / "derivatives" / "preprocessed"
    preprocessed.mkdir(parents=True)
    epochs_of(rows, samples).save(preprocessed / "preprocessed_P1-epo.fif", split_size=1_300_000, verbose="error")
    assert len(list(preprocessed.iterdir())) > 1
    write_table(folder / "sourcedata" / "sample_attributes_P1.csv", rows)
    return Published(folder, samples, rows)


@pytest.fixture
def copied(published, tmp_path) -> Path:
    shutil.copytree(published.folder, tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def bring(converted):
    """Convert a folder; returns the subject's folder."""
    convert = functools.partial(converted, "MEG", sensors=SENSORS)
    return lambda source, store="store", **options: convert(source, store, **options) / "sub-01"


@pytest.fixture
def rejected(refused, tmp_path):
    """Check that converting a folder fails with a message, and makes nothing."""

    def run(source: Path, message: str, **options) -> str:
        error = refused(message, "MEG", source=source, store="rejected", **({"sensors": SENSORS} | options))
        assert not (tmp_path / "rejected" / "sub-01").exists()
        return error

    return run


def test_known_signals_are_in_their_places(published, tmp_path):
    messages = convert(published.folder, tmp_path, "MEG", ConversionOptions(sensors=SENSORS))
    assert messages == [f"sub-01: meg_epochs converted, in {tmp_path / 'sub-01'}"]
    dataset = Dataset(tmp_path)
    train, test = dataset.load("sub-01", "train"), dataset.load("sub-01", "test")
    assert train.data.shape == (36, 1, SENSORS, 201) and test.data.shape == (2, 12, SENSORS, 201)
    assert (train.modality, train.channels[0], dataset.name) == ("MEG", "MLC11-1609", "THINGS-MEG")
    assert train.images[0] == "training_images/00001_aardvark/aardvark_01b.jpg" and train.images == sorted(train.images)
    tested = ("00002_air_mattress/air_mattress_13x.jpg", "00004_coat_rack/coat_rack_13x.jpg")
    assert test.images == [f"test_images/{image}" for image in tested]
    np.testing.assert_allclose(train.times, np.arange(201) / 200, atol=1e-9)
    for recordings in (train, test):
        shown = np.array([Path(row["image_path"]).name for row in published.rows])
        epochs = np.array([np.flatnonzero(shown == Path(image).name) for image in recordings.images])
        np.testing.assert_array_equal(recordings.data, published.samples[epochs][..., 20:221].astype(np.float16))
    header = read_header(tmp_path / "sub-01")
    assert header.units == "standard deviations of the baseline"
    assert "2023" in header.processing[0] and len(header.processing) == 3
    assert header.splits["test"].sessions == [list(range(1, 13))] * 2
    assert [row[0] for row in header.splits["train"].sessions[:12]] == list(range(1, 13))


def test_test_concepts_are_not_trained_on(published, bring):
    header = read_header(bring(published.folder))
    trained, tested = (set(header.splits[split].concepts) for split in ("train", "test"))
    assert tested == {"air_mattress", "coat_rack"} and trained == set(CONCEPTS) - tested


def test_the_store_equals_ubps_processing(published, tmp_path, bring):
    """UBP's steps with MNE alone: crop to the first second, order by event, split by the number of presentations."""
    path = published.folder / "derivatives/preprocessed/preprocessed_P1-epo.fif"
    epochs = mne.read_epochs(path, verbose="error").pick("mag").crop(0, 1)
    events = epochs.events[:, 2]
    concept, path = zip(*images())
    counts = {event: int((events == event).sum()) for event in set(events.tolist())}
    tested = sorted(event for event, count in counts.items() if count == 12 and event != 999999)
    tested_concepts = {concept[event - 1] for event in tested}
    trained = [e for e in sorted(counts) if counts[e] == 1 and concept[e - 1] not in tested_concepts]
    store = bring(published.folder)
    for split, folder, numbers in (("train", "training_images", trained), ("test", "test_images", tested)):
        data = np.stack([epochs.get_data(copy=True)[events == number] for number in numbers]).astype(np.float16)
        names = [f"{folder}/{concept[n - 1]:05d}_{path[n - 1].removeprefix('images/')}" for n in numbers]
        torch.save({"eeg": data, "img": names}, tmp_path / f"{split}.pt", pickle_protocol=5)
        of_ubp, stored = read_recordings(tmp_path / f"{split}.pt"), Dataset(store.parent).load("sub-01", split)
        np.testing.assert_array_equal(stored.data, of_ubp.data)
        assert (stored.images, stored.concepts) == (of_ubp.images, of_ubp.concepts)


def test_the_whole_epoch_can_be_kept(published, bring):
    header = read_header(bring(published.folder, whole_epoch=True))
    assert header.times == pytest.approx(TIMES) and header.splits["train"].shape == [36, 1, SENSORS, 281]


@pytest.mark.parametrize("below", ["derivatives/preprocessed", "derivatives"])
def test_subfolders_are_recognised_too(published, below):
    [source] = recognise(published.folder / below, "MEG")
    assert source.subject == "sub-01" and source.files[0].name == "preprocessed_P1-epo.fif"


@pytest.mark.parametrize(("size", "units", "factor"), [(1e-13, "fT", 1e15), (10, "as in the source", 1)])
def test_units_are_those_of_the_samples(published, copied, bring, size, units, factor):
    samples = published.samples * np.float32(size)
    subject = bring(save_alone(copied, epochs_of(published.rows, samples), published.rows))
    header = read_header(subject)
    assert header.units == units and header.processing[0] == "Before us: as in the file."
    first = next(epoch for epoch, row in enumerate(published.rows) if row["things_image_nr"] == 26)
    stored = np.load(subject / "test.npy")[header.splits["test"].concepts.index("air_mattress"), 0]
    expected = samples[first][:, 20:221].astype(np.float64) * factor
    np.testing.assert_allclose(stored, expected, rtol=2**-11 + 2**-23, atol=2**-25)


def test_samples_too_large_for_float16_are_named(published, copied, rejected):
    samples = published.samples.copy()
    samples[[row["things_image_nr"] for row in published.rows].index(26), 2, 30] = 1e5
    one = save_alone(copied, epochs_of(published.rows, samples), published.rows)
    rejected(one, r"sub-01 test: condition 0 \(test_images/00002_air_mattress/.* not finite")


@pytest.mark.parametrize("pandas", [True, False])
def test_metadata_in_the_file_are_used(published, copied, bring, monkeypatch, pandas):
    frame = pytest.importorskip("pandas").DataFrame(published.rows)
    epochs = epochs_of(published.rows, published.samples)
    epochs.metadata = frame
    one = save_alone(copied, epochs, None)
    if not pandas:
        monkeypatch.setitem(sys.modules, "pandas", None)
    check_equal(bring(one, "metadata"), bring(published.folder, "table"))


def test_the_tables_of_the_images_are_used_too(published, copied, bring, rejected):
    one = save_alone(copied, epochs_of(published.rows, published.samples), None)
    rejected(one, r"nothing says what its epochs show; put sourcedata/sample_attributes_P\*\.csv")
    write_images(one)
    subject = bring(one)
    check_equal(subject, bring(published.folder, "attributes"))
    assert read_header(subject).splits["test"].sessions is None


def test_tables_that_contradict_each_other_are_named(copied, bring, rejected):
    write_images(copied)
    bring(copied)
    swapped = images()
    swapped[0], swapped[1] = swapped[1], swapped[0]
    (copied / "image_paths.csv").write_text("".join(f"{path}\n" for _, path in swapped))
    shown = "training_images/00001_aardvark/aardvark_01b.jpg"
    rejected(copied, rf"trial \d+ shows {shown} in .*attributes_P1.csv and .*aardvark_02s.jpg in .*image_paths")


def changed(rows, **changes):
    return [{**rows[0], **changes}, *rows[1:]]


OTHER_IMAGE = {"trial_type": "exp", "things_image_nr": 64}
CONTRADICTIONS = [
    (lambda rows: rows[1:], "95 trials where there are 96 epochs"),
    (lambda rows: changed(rows, trial_type="extra"), "trial 1 is of the type 'extra', not exp, test, catch"),
    (lambda rows: changed(rows, trial_type="catch"), "trial 1 shows no object, but the event of that epoch is"),
    (lambda rows: changed(rows, **OTHER_IMAGE), "trial 1 shows image 64, but the event of that epoch is"),
    (lambda rows: changed(rows, things_image_nr="many"), "line 1 has the things_image_nr 'many', not a number"),
    (lambda rows: [{**row, "image_path": ""} for row in rows], "line 1 names the image ''"),
    (lambda rows: [{**row, "things_category_nr": ""} for row in rows], "trial 1 has no things_category_nr"),
]


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS)
def test_a_table_that_contradicts_the_epochs_is_refused(published, copied, rejected, change, message):
    trials = [(row["trial_type"], row["things_category_nr"]) for row in published.rows]
    first = trials.index(("exp", 1))
    order = [first, *(epoch for epoch in range(len(trials)) if epoch != first)]
    rows = [published.rows[epoch] for epoch in order]
    one = save_alone(copied, epochs_of(rows, published.samples[order]), change(rows))
    error = rejected(one, message)
    assert "sample_attributes_P1.csv: " in error and "fetch" in error


def test_a_table_of_another_kind_is_refused(copied, rejected):
    unreadable = ((b"\xff\xfe\x00", "cannot be read"), (b"a" * 200_000, "cannot be read"))
    for content, message in ((b"a,b\n" + b"1,2\n" * 96, "no column trial_type, things_"), *unreadable):
        (copied / "sourcedata" / "sample_attributes_P1.csv").write_bytes(content)
        rejected(copied, f"sample_attributes_P1.csv: {message}")


RARE_IMAGE = r"test images must be shown 12 time\(s\), but there are test_images/00002_.*/air_mattress_13x.jpg 11"
RARE_CONCEPT = r"train concepts must have 12 image\(s\), but there are aardvark 10; fetch"


@pytest.mark.parametrize(("lost", "message"), [([26], RARE_IMAGE), ([1, 2], RARE_CONCEPT)])
def test_missing_trials_are_named(published, copied, rejected, lost, message):
    first = {row["things_image_nr"]: epoch for epoch, row in enumerate(published.rows)}
    kept = sorted(set(range(len(published.rows))) - {first[number] for number in lost})
    rows = [published.rows[epoch] for epoch in kept]
    rejected(save_alone(copied, epochs_of(rows, published.samples[kept]), rows), message)


def test_a_missing_part_is_named(copied, rejected):
    (copied / "derivatives/preprocessed/preprocessed_P1-epo-1.fif").unlink()
    rejected(copied, r"preprocessed_P1-epo.fif: a part is missing .*preprocessed_P1-epo-1.fif")


@pytest.mark.parametrize("part", ["preprocessed_P1-epo.fif", "preprocessed_P1-epo-1.fif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9999])
def test_a_file_cut_off_is_refused(copied, rejected, part, share):
    path = copied / "derivatives/preprocessed" / part
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    rejected(copied, rf"{part}: damaged or cut off .* fetch it again")


def test_other_files_are_refused(copied, rejected):
    path = copied / "derivatives/preprocessed/preprocessed_P1-epo.fif"
    whole = path.read_bytes()
    half = whole[: len(whole) // 2]
    astray = b"\0\0\0\x64" + bytes(8) + b"\xff\xff\xff\xfe" + bytes(100)  # its next tag would lie before the file
    html, zeros = b"<html>not found</html>" * 10, half + bytes(len(whole) - len(half))
    for content in (astray, bytes(100), b"\xff" * 100, html, zeros):
        path.write_bytes(content)
        rejected(copied, "preprocessed_P1-epo.fif: .*fetch it again")


def test_recordings_that_differ_from_the_published_ones_are_refused(published, copied, rejected, monkeypatch):
    rejected(copied, "4 MEG sensors, not 271; if that is right, give --sensors 4", sensors=271)
    rejected(copied, "sampling_rate is 100, but fixed in the layout meg_epochs", sampling_rate=100)
    one = save_alone(copied / "derivatives", epochs_of(published.rows, published.samples, rate=250.0), published.rows)
    rejected(one, "epochs run -0.1 to 1.02 s at 250 Hz; they must hold 0 to 1 s at 200 Hz")
    mixed = published.samples.copy()
    mixed[80:] *= 1e-13
    one = save_alone(copied, epochs_of(published.rows, mixed), published.rows)
    monkeypatch.setattr("bvsa_core.data.layouts.meg_epochs._BLOCK", 8)
    rejected(one, "standard deviations of the baseline at first, but fT from epoch")


def test_a_subject_twice_is_refused(copied):
    shutil.copytree(copied / "derivatives/preprocessed", copied / "again")
    with pytest.raises(UserError, match="sub-01 is in .* too; keep one of them"):
        recognise(copied, "MEG")


def test_without_mne_the_extra_is_named(copied, rejected, monkeypatch):
    monkeypatch.setitem(sys.modules, "mne", None)
    rejected(copied, r"MNE cannot be imported \(.*\); .fif files need: pip install 'fovblur\[preprocess\]'")
