"""The images shown: where they are looked for, and errors."""

import zipfile
from pathlib import Path

import fake_eeg
import numpy as np
import pytest

from bvsa_core.data.layouts.source import ConversionOptions, SubjectSource
from bvsa_core.data.layouts.stimuli import canonical, conditions
from bvsa_core.errors import UserError


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "data" / "Preprocessed_data_250Hz"
    root.mkdir(parents=True)
    return SubjectSource("osf_preprocessed", "sub-01", root, [])


PLACES = ["", "images_set", "../Image_set", "../Image_set_Resize"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("put", [fake_eeg.metadata, fake_eeg.image_set])
def test_images_beside_the_recordings_are_found(place, put, planted, source):
    (source.root / place).mkdir(exist_ok=True)
    put(source.root / place, planted)
    for split in fake_eeg.PARTS:
        images, concepts = conditions(source, ConversionOptions(), split, len(planted.images(split)))
        assert (images, concepts) == (planted.images(split), planted.concepts(split))


def test_the_option_says_where_the_images_are(planted, source, tmp_path):
    fake_eeg.image_set(tmp_path / "set", planted)
    fake_eeg.metadata(tmp_path / "set", planted)
    for place in (tmp_path / "set", tmp_path / "set" / "image_metadata.npy"):
        assert conditions(source, ConversionOptions(images=place), "test")[0] == planted.images("test")
    neither = "neither image_metadata.npy nor a folder or zip file with training"
    for place, message in (("nowhere", "no such file or folder"), ("data", neither)):
        with pytest.raises(UserError, match=f"--images .*{place}: {message}"):
            conditions(source, ConversionOptions(images=tmp_path / place), "test")


def zipped(folder: Path, path: Path, root: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for file in reversed(sorted(folder.rglob("*.*"))):
            archive.write(file, file.relative_to(root))


def test_zip_files_name_the_images(planted, source, tmp_path):
    whole, apart = tmp_path / "whole", tmp_path / "apart"
    fake_eeg.image_set(whole, planted)
    apart.mkdir()
    zipped(whole, tmp_path / "all.zip", tmp_path)  # whole/training_images/...
    zipped(whole / "training_images", apart / "training_images.zip", whole)
    zipped(whole / "test_images", apart / "test_images.zip", whole / "test_images")  # concepts at the top
    for place in (tmp_path / "all.zip", apart):
        for split in fake_eeg.PARTS:
            assert conditions(source, ConversionOptions(images=place), split)[0] == planted.images(split)
    apart.rename(source.root / "images")
    assert conditions(source, ConversionOptions(), "test")[0] == planted.images("test")
    with zipfile.ZipFile(tmp_path / "all.zip", "a") as archive:
        archive.writestr("../x/x_01b.jpg", b"")
    with pytest.raises(UserError, match="all.zip: '../x/x_01b.jpg' points outside the archive; it was not read"):
        conditions(source, ConversionOptions(images=tmp_path / "all.zip"), "test")
    (tmp_path / "all.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="all.zip: damaged or cut off .*; fetch it again"):
        conditions(source, ConversionOptions(images=tmp_path / "all.zip"), "test")


def test_a_folder_is_listed_in_sorted_order_without_other_files(planted, source):
    fake_eeg.image_set(source.root, planted)
    (source.root / "training_images").rename(source.root / "train_images")
    for name in ("train_images/.DS_Store", "train_images/00001_seen_0/Thumbs.db", "train_images/00001_seen_0/.x.jpg"):
        (source.root / name).touch()
    assert conditions(source, ConversionOptions(), "train")[0] == planted.images("train")


def test_no_images_and_another_number_of_them_are_reported(planted, source):
    with pytest.raises(UserError, match="images shown are unknown; put image_metadata.npy .* or give it by --images"):
        conditions(source, ConversionOptions(), "train")
    fake_eeg.image_set(source.root, planted)
    counts = "sub-01 has 7 train conditions and .*250Hz 6 train images"
    with pytest.raises(UserError, match=f"{counts}; give the complete image set"):
        conditions(source, ConversionOptions(), "train", 7)


DAMAGED = [
    ({"train_img_files": None}, "it must hold train_img_concepts and train_img_files"),
    ({"train_img_files": ["a.jpg"]}, "train_img_concepts and train_img_files must be equally many names"),
    ({"train_img_files": [1, 2]}, "must be equally many names"),
    ({"train_img_files": [["a"], ["b", "c"]]}, "must be equally many names"),
    ({"train_img_files": ["a.jpg", "a.jpg"]}, "names training_images/00001_x/a.jpg twice"),
    ({"train_img_files": ["../../a.jpg", "b.jpg"]}, "'../../a.jpg' is not the name of an image"),
    ({"train_img_concepts": ["..", "00001_x"]}, "'..' is not the name of an image"),
]


@pytest.mark.parametrize(("changes", "message"), DAMAGED)
def test_a_damaged_list_of_images_is_reported(changes, message, source):
    content = {"train_img_concepts": ["00001_x", "00001_x"], "train_img_files": ["a.jpg", "b.jpg"]} | changes
    np.save(source.root / "image_metadata.npy", {key: value for key, value in content.items() if value is not None})
    with pytest.raises(UserError, match=message):
        conditions(source, ConversionOptions(), "train")
    np.save(source.root / "image_metadata.npy", np.arange(3))
    with pytest.raises(UserError, match="not the image_metadata.npy of THINGS-EEG2"):
        conditions(source, ConversionOptions(), "train")


def test_paths_have_one_spelling():
    for folder in ("train_images/", "/data/Image_set/training_images/", ""):
        assert canonical(f"{folder}00001_x/a.jpg", "train") == "training_images/00001_x/a.jpg"
