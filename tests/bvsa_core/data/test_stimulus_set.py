"""The stimuli: resized like `read_images` does, from folders and archives, with every problem listed."""

import io
import json
import os
import shutil
import stat
import tracemalloc
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from bvsa_core.cli import main
from bvsa_core.data import stimulus_set
from bvsa_core.data.dataset import Dataset, Recordings
from bvsa_core.data.from_arrays import write_subject
from bvsa_core.data.stimulus_set import INDEX, import_images
from bvsa_core.data.store import sha256_of
from bvsa_core.errors import UserError
from bvsa_core.vision.images import read_images

SIZE = 24
CONCEPTS = ("00001_aardvark", "00002_bat1")
TRAINING = [f"training_images/{name}/{name[6:]}_0{k}b.jpg" for name in CONCEPTS for k in (1, 2)]
TEST = ["test_images/00001_coat_rack/coat_rack_13s.jpg"]
WITHOUT_IMAGES = shutil.ignore_patterns("Image_set_Resize")


def image(number: int, size: tuple[int, int] = (50, 50)) -> Image.Image:
    """Return a smooth image, which JPEG coding changes by a few grey levels only."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]] / max(size)
    planes = [np.cos(3 * x + number), np.sin(2 * y + number), np.cos(2 * (x + y) - number)]
    return Image.fromarray((127 + 100 * np.stack(planes, axis=-1)).astype(np.uint8))


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "stimuli"
    for number, name in enumerate(TRAINING + TEST):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image(number).save(folder / name, quality=95)
    (folder / "training_images" / ".DS_Store").write_bytes(b"x")
    return folder


@pytest.fixture
def store(tmp_path) -> Path:
    """A store with recordings that name the images."""
    parts = []
    for names in (TRAINING, TEST):
        data = np.random.default_rng(0).standard_normal((len(names), 1, 1, 2))
        parts.append(Recordings(data, names, [Path(name).parent.name[6:] for name in names], ["Oz"], np.arange(2.0)))
    return write_subject(tmp_path / "store", "sub-01", *parts).parent


def zipped(source: Path, target: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for name in names:
            archive.write(source / name, name)
    return target


def test_images_are_resized_like_read_images(source, store):
    report = import_images(source, store, SIZE)
    assert report.problems == [] and report.summary == [
        f"{store}/Image_set_Resize/training_images: 4 images, 24 x 24",
        f"{store}/Image_set_Resize/test_images: 1 images, 24 x 24",
    ]
    dataset = Dataset(store)
    imported = read_images([dataset.image_path(name) for name in TRAINING + TEST], SIZE)
    expected = read_images([source / name for name in TRAINING + TEST], SIZE)
    assert (imported.int() - expected.int()).abs().max() <= 6  # quality 95 divides by steps of at most 12
    index = json.loads((store / "Image_set_Resize" / INDEX).read_text())
    assert (index["size"], index["quality"]) == (SIZE, 95)
    assert [entry["name"] for entry in index["images"]] == TRAINING + TEST
    path = dataset.image_path(TEST[0])
    entry = {"name": TEST[0], "concept": "coat_rack", "things_id": "coat_rack_13s", "width": SIZE}
    assert index["images"][-1] == {**entry, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def test_size_0_and_images_of_the_right_size_are_copied_byte_for_byte(source, store, tmp_path):
    import_images(source, store, 0)
    again = shutil.copytree(store, tmp_path / "again", ignore=WITHOUT_IMAGES)
    import_images(source, again, 50)
    for name in TRAINING + TEST:
        for place in (store, again):
            assert (place / "Image_set_Resize" / name).read_bytes() == (source / name).read_bytes()


def test_archives_hold_the_same(source, store, tmp_path):
    import_images(source, store, SIZE)
    folder = tmp_path / "archives"
    folder.mkdir()
    zipped(source, folder / "training_images.zip", TRAINING)
    zipped(source, folder / "test_images.zip", TEST)
    both = zipped(source, tmp_path / "both.zip", TRAINING + TEST)
    for given in (folder, both):
        other = shutil.copytree(store, tmp_path / f"of_{given.name}", ignore=WITHOUT_IMAGES)
        assert import_images(given, other, SIZE).problems == []
        assert (other / "Image_set_Resize" / INDEX).read_text() == (store / "Image_set_Resize" / INDEX).read_text()


def test_archives_of_things_and_of_a_split_without_its_folder(source, store, tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    for name, images in (("object_images_A-C", TRAINING), ("object_images_D-F", TEST)):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for each in images:
                archive.write(source / each, f"object_images/{Path(each).stem.rpartition('_')[0]}/{Path(each).name}")
    assert import_images(folder, store, SIZE).problems == []
    flat = tmp_path / "flat"
    flat.mkdir()
    for split in ("training_images", "test_images"):
        with zipfile.ZipFile(flat / f"{split}.zip", "w") as archive:
            for each in (each for each in TRAINING + TEST if each.startswith(split)):
                archive.write(source / each, each.partition("/")[2])
    other = shutil.copytree(store, tmp_path / "other", ignore=WITHOUT_IMAGES)
    assert import_images(flat, other, SIZE).problems == []
    with zipfile.ZipFile(tmp_path / "images_THINGS.zip", "w") as archive:
        archive.write(folder / "object_images_A-C.zip", "object_images_A-C.zip")
    with pytest.raises(
        UserError, match=r"holds zip files \(object_images_A-C.zip\) and no images; unpack it, then give"
    ):
        import_images(tmp_path / "images_THINGS.zip", store, SIZE)


def test_images_of_things_are_matched_by_file_name(source, store, tmp_path):
    things = tmp_path / "object_images"
    for name in [*TRAINING, *TEST]:
        target = things / Path(name).name.rpartition("_")[0] / Path(name).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target)
    image(9).save(things / "bat1" / "bat1_99s.jpg")
    report = import_images(things, store, SIZE)
    assert report.problems == []
    assert report.summary[0] == f"{things}: 1 more images, which no recording names, left alone"
    assert Dataset(store).image_path(TEST[0]).is_file()


def test_the_same_command_again_changes_nothing_and_repairs_altered_images(source, store, monkeypatch):
    import_images(source, store, SIZE)
    folder = store / "Image_set_Resize"
    contents = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.jpg")}
    index = (folder / INDEX).read_bytes()
    (folder / TRAINING[0]).unlink()
    altered = folder / TRAINING[1]
    time = altered.stat().st_mtime_ns
    altered.write_bytes(altered.read_bytes() + b"x")
    os.utime(altered, ns=(time, time))
    (folder / "training_images" / ".x.jpg.1.partial").write_bytes(b"left by a kill")
    resize = Mock(side_effect=stimulus_set._resize)
    monkeypatch.setattr(stimulus_set, "_resize", resize)
    assert import_images(source, store, SIZE).problems == []
    assert resize.call_count == 2 and (folder / INDEX).read_bytes() == index
    left = [path for path in folder.rglob("*") if path.suffix in (".jpg", ".partial")]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in left} == contents


def test_an_interrupted_run_continues(source, store, monkeypatch):
    resize = Mock(side_effect=stimulus_set._resize)
    outcomes, interrupt = iter([resize] * 3), Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(stimulus_set, "_resize", lambda *arguments: next(outcomes, interrupt)(*arguments))
    with pytest.raises(KeyboardInterrupt):
        import_images(source, store, SIZE)
    folder = store / "Image_set_Resize"
    assert json.loads((folder / INDEX).read_text())["images"] is None
    done = len(list(folder.rglob("*.jpg")))
    resize.reset_mock()
    monkeypatch.setattr(stimulus_set, "_resize", resize)
    import_images(source, store, SIZE)
    assert 0 < done and resize.call_count == 5 - done
    assert len(json.loads((folder / INDEX).read_text())["images"]) == 5


def test_every_problem_is_listed(source, store, capsys):
    cut = source / TRAINING[0]
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 4])
    (source / TRAINING[1]).write_bytes(b"<html>not found</html>")
    (source / TRAINING[2]).unlink()
    image(7, (50, 40)).save(source / TRAINING[3])
    bomb = (source / TEST[0]).read_bytes().replace(b"\0\x32\0\x32", b"\x4e\x20\x4e\x20")  # 20,000 x 20,000, not 50 x 50
    (source / TEST[0]).write_bytes(bomb)
    report = import_images(source, store, SIZE)
    problems = "\n".join(report.problems)
    for name, problem in [
        (TRAINING[0], "cannot be used (image file is truncated"),
        (TRAINING[1], "cannot be used (no JPEG or PNG file); fetch it again"),
        (TRAINING[2], f"missing in {source}; fetch it"),
        (TRAINING[3], "cannot be used (50 x 40 pixels, not a square)"),
        (TEST[0], "cannot be used (Image size (400000000 pixels) exceeds limit"),
    ]:
        assert f"{name}: {problem}" in problems
    assert len(report.problems) == 5 and json.loads((store / "Image_set_Resize" / INDEX).read_text())["images"] is None
    assert main(["data", "images", str(source), str(store), "--size", str(SIZE)]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("wrong: ") == 5 and "5 problem(s), listed above" in captured.err


def test_our_limits_of_pixels_and_bytes_are_below_pillows(source, store, monkeypatch):
    monkeypatch.setattr(stimulus_set, "_MAX_PIXELS", 49 * 50)
    assert len(import_images(source, store, SIZE).problems) == 5
    monkeypatch.setattr(stimulus_set, "_MAX_BYTES", 10)
    assert all("bytes are too many" in problem for problem in import_images(source, store, SIZE).problems)


def test_copies_larger_than_the_disk_are_refused(source, store, monkeypatch):
    monkeypatch.setattr(stimulus_set.shutil, "disk_usage", lambda path: Mock(free=10))
    with pytest.raises(UserError, match="Image_set_Resize: the images take 0.0 GiB, and 0.0 are free; make room, or"):
        import_images(source, store, 0)
    assert import_images(source, store, SIZE).problems == []


def test_equal_images_are_reported(source, store):
    shutil.copy2(source / TRAINING[0], source / TEST[0])
    report = import_images(source, store, SIZE)
    assert report.problems == [] and f"the same image under several names: {TRAINING[0]}, {TEST[0]}" in report.summary


def test_a_full_disk_is_not_a_problem_of_an_image(source, store, monkeypatch):
    def write(path, content, real=stimulus_set.write_atomically):
        if path.name != INDEX:
            raise OSError(28, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(stimulus_set, "write_atomically", write)
    with pytest.raises(OSError, match="No space left"):
        import_images(source, store, SIZE)


def test_grey_images_become_rgb(source, store):
    image(0).convert("L").save(source / TEST[0])
    import_images(source, store, SIZE)
    assert Image.open(Dataset(store).image_path(TEST[0])).mode == "RGB"


def test_without_recordings_names_and_numbers_are_checked(source, tmp_path, monkeypatch):
    report = import_images(source, tmp_path / "empty", SIZE)
    assert [problem.partition(": ")[2].partition(";")[0] for problem in report.problems] == [
        "training_images are 4 images, not 16540 or 19848",
        "test_images are 1 images, not 200",
    ]
    monkeypatch.setattr(stimulus_set, "_EXPECTED", {"training_images": [4], "test_images": [1]})
    assert import_images(source, tmp_path / "empty", SIZE).problems == []
    for wrong in ("00001_aardvark/zebra_01b.jpg", "aardvark_03b.jpg", "1_bat1/bat1_01b.jpg"):
        wrong = f"training_images/{wrong}"
        (source / wrong).parent.mkdir(exist_ok=True)
        shutil.copy2(source / TRAINING[0], source / wrong)
        [problem] = import_images(source, tmp_path / "empty", SIZE).problems
        assert problem == f"{source / wrong}: not named like {TRAINING[0]}; rename or remove it"
        (source / wrong).unlink()
    with pytest.raises(UserError, match="no image named like .* bring those first"):
        import_images(source / "training_images", tmp_path / "other", SIZE)


def test_archives_cannot_write_elsewhere(source, store, tmp_path):
    path = zipped(source, tmp_path / "evil.zip", TRAINING + TEST)
    buffer = io.BytesIO()
    image(1).save(buffer, "JPEG")
    outside = r"../../training_images/00001_x/x_01b.jpg /tmp/x_01b.jpg a\..\x_01b.jpg c:/x_01b.jpg ../x".split()
    with zipfile.ZipFile(path, "a") as archive:
        for name in (*outside, ""):
            archive.writestr(zipfile.ZipInfo(name), buffer.getvalue())
        link = zipfile.ZipInfo("training_images/00001_x/x_01b.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    before = set(tmp_path.rglob("*"))
    report = import_images(path, store, SIZE)
    assert report.problems.pop() == f"{path}: '{link.filename}' is a link; it was not read"
    assert len(report.problems) == 5
    assert all("points outside the archive; it was not read" in problem for problem in report.problems)
    new = set(tmp_path.rglob("*")) - before
    assert all(store / "Image_set_Resize" in (path, *path.parents) for path in new)


def test_a_member_that_is_larger_than_it_says_is_not_decompressed(source, store, tmp_path):
    path, size = tmp_path / "bomb.zip", 2**26
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(TEST[0], bytes(size))
        for name in TRAINING:
            archive.write(source / name, name)
    content = path.read_bytes().replace(size.to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(content)
    tracemalloc.start()
    [problem] = import_images(path, store, SIZE).problems
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"{TEST[0]}: cannot be used (Bad CRC-32" in problem and peak < size / 8


def test_damaged_archives_are_reported(source, store, tmp_path):
    path = zipped(source, tmp_path / "training_images.zip", TRAINING + TEST)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="training_images.zip: damaged or cut off .*fetch it again"):
        import_images(path, store, SIZE)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        offset = archive.getinfo(TEST[0]).header_offset
    flipped = bytearray(content)
    flipped[offset + 300] ^= 255
    path.write_bytes(flipped)
    [problem] = import_images(path, store, SIZE).problems
    assert f"{TEST[0]}: cannot be used (Bad CRC-32" in problem
    locked = bytearray(content)
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(locked)
    with pytest.raises(UserError, match="password-protected; unpack it with the password"):
        import_images(path, store, SIZE)


def test_unusable_sources_settings_and_folders_are_refused(source, store, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "other").mkdir()
    image(0).save(tmp_path / "other" / "x.jpg")
    for given, message in [
        (tmp_path / "nowhere", "no such folder or zip file"),
        (tmp_path / "nothing", "no images inside; give the folder of training_images"),
        (tmp_path / "other", f"none of the 5 images that recordings in .* show, as {TRAINING[0]}"),
        (store, "cannot be made there; give a folder outside"),
        (store / "Image_set_Resize", "cannot be made there; give a folder outside"),
    ]:
        with pytest.raises(UserError, match=message):
            import_images(given, store, SIZE)
    for size, quality in ((-1, 95), (24, 0), (24, 101)):
        with pytest.raises(UserError, match="size must be 0 or more pixels, quality 1 to 100"):
            import_images(source, store, size, quality)
    assert not (store / "Image_set_Resize").exists()
    import_images(source, store, SIZE)
    with pytest.raises(UserError, match="made with size 24 and quality 95; give these, or delete it"):
        import_images(source, store, 32)
    (store / "Image_set_Resize" / INDEX).write_text("{")
    with pytest.raises(UserError, match=r"images.json: damaged .*; delete .* and make it again"):
        import_images(source, store, SIZE)
    (store / "Image_set_Resize" / INDEX).unlink()
    with pytest.raises(UserError, match="not made by 'bvsa data images' .*; move it away"):
        import_images(source, store, SIZE)
