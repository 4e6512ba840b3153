"""The bank: filled by several processes and continued after a kill; damaged and foreign files are refused."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from bank_workers import IMAGES, count_features, end, fill, fill_and_be_killed, start
from PIL import Image

from bvsa_core.errors import UserError
from bvsa_core.vision import bank as bank_module
from bvsa_core.vision import shards
from bvsa_core.vision.bank import ABOUT, FeatureBank, level_files
from bvsa_core.vision.images import read_images
from bvsa_core.vision.views import Falloff, Level, OnlineViews

LEVELS = [Level(51, 0.0), Level(51, 0.5)]
NAMES = ["k51_gain0.safetensors", "k51_gain0.5.safetensors"]  # of which one begins as the other
COUNT = 22  # images: seven shards of three and one of one


@pytest.fixture(scope="module")
def few(paths) -> list[Path]:
    return paths[:COUNT]


@pytest.fixture
def small_shards(one_thread, monkeypatch) -> None:
    """Shards and threads as the processes have them."""
    monkeypatch.setattr(shards, "IMAGES", IMAGES)


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Return a list of how many features each call computed."""
    monkeypatch.setattr(OnlineViews, "__call__", OnlineViews.__call__)  # which is put back
    return count_features()


def files(folder: Path) -> dict[str, bytes]:
    """Return the files of the only bank of a folder."""
    (bank,) = (path for path in folder.iterdir() if path.is_dir())
    return {path.name: path.read_bytes() for path in bank.iterdir()}


@pytest.fixture(scope="module")
def alone(few, tmp_path_factory) -> dict[str, bytes]:
    """The bank as one process fills it."""
    folder = tmp_path_factory.mktemp("alone")
    assert end(start(fill, folder / "bank", few, LEVELS, folder / "counted")) == [0]
    assert json.loads((folder / "counted").read_text()) == len(LEVELS) * COUNT
    content = files(folder / "bank")
    assert set(content) == {ABOUT, *NAMES}
    return content


@pytest.fixture
def filled(alone, few, tmp_path, clip) -> FeatureBank:
    bank = FeatureBank(tmp_path / "bank", clip, few)
    for name, content in alone.items():
        (bank.folder / name).write_bytes(content)
    return bank


@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_processes_leaves_the_same_bytes(alone, few, tmp_path, world):
    counts = [tmp_path / f"counted{rank}" for rank in range(world)]
    ends = end(*(start(fill, tmp_path / "bank", few, LEVELS, path, rank, world) for rank, path in enumerate(counts)))
    assert ends == [0] * world
    assert files(tmp_path / "bank") == alone
    assert sum(json.loads(path.read_text()) for path in counts) == len(LEVELS) * COUNT  # nothing twice


def test_independent_processes_leave_the_same_bytes(alone, few, tmp_path):
    """Both compute the same shards at the same time, and merge them."""
    orders = [LEVELS, [*LEVELS[::-1], Level(57, 0.0)]]
    processes = [start(fill, tmp_path / "bank", few, levels, tmp_path / "counted") for levels in orders]
    assert end(*processes) == [0, 0]
    content = files(tmp_path / "bank")
    assert {name: content[name] for name in alone} == alone
    assert set(content) - set(alone) == {"k57_gain0.safetensors"}


# Files are renamed in this order: about.json, 8 shards of each level, then the levels.
@pytest.mark.parametrize(("method", "nth"), [("replace", 1), ("replace", 7), ("replace", 18), ("unlink", 3)])
def test_after_a_kill_only_unfinished_shards_are_computed_again(
    alone, few, tmp_path, clip, small_shards, computed, method, nth
):
    assert end(start(fill_and_be_killed, tmp_path / "bank", few, LEVELS, method, nth)) == [-9]
    left = files(tmp_path / "bank")
    assert method == "unlink" or any("partial" in name for name in left)
    whole = [name for name in left if "partial" not in name]
    # None of them is the last shard, which has one image.
    finished = sum(COUNT if name in NAMES else IMAGES if "-of-" in name else 0 for name in whole)
    FeatureBank(tmp_path / "bank", clip, few).fill(LEVELS)
    assert files(tmp_path / "bank") == alone
    if nth < 18 and method == "replace":
        assert sum(computed) == len(LEVELS) * COUNT - finished
    else:
        assert not computed


def test_a_kill_after_all_was_done_leaves_nothing_behind(alone, small_shards, filled, tmp_path, computed):
    (filled.folder / "k51_gain0.00003-of-00008.safetensors").write_bytes(b"a shard that was not deleted yet")
    filled.fill(LEVELS)
    assert files(tmp_path / "bank") == alone and not computed


def test_another_process_may_write_first(tmp_path, monkeypatch):
    """It deletes our temporary files once the file is there; without the file, what failed is reported."""
    target, few = tmp_path / "k1_gain0.safetensors", shards.Shards(tmp_path, "key", 3)
    few.add(target, 0, torch.ones(3, 2))
    few.path(target, 0).rename(tmp_path / "kept")
    with pytest.raises(UserError, match="00000-of-00001.safetensors: no such file"):
        few.merge(target)

    def written_by_another(*_: object) -> None:
        target.write_bytes((tmp_path / "kept").read_bytes())
        raise UserError("no such file")

    add = partial(few.add, target, 0, torch.ones(3, 2))
    for function, write in (("map_features", partial(few.merge, target)), ("write_features", add)):
        with monkeypatch.context() as patched:
            patched.setattr(shards, function, written_by_another)
            write()
        assert {path.name for path in tmp_path.iterdir()} == {"kept", target.name}
        target.unlink()


def test_levels_that_differ_have_files_that_differ(filled):
    gains = (0.0, 0.5, 0.1234567, 0.1234568, 1.0)
    names = [filled.path(Level(51, gain)).name for gain in gains]
    assert len(set(names)) == len(gains) and names[1] == "k51_gain0.5.safetensors"


def flip_the_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGE = {
    "truncated": (lambda data: data[:1000], "damaged or incomplete"),
    "empty": (lambda data: b"", "damaged or incomplete"),
    "altered": (flip_the_last_bit, "altered since it was written (its checksum differs)"),
    "other rows": (lambda data: data.replace(b"[22, 128]", b"[11, 256]"), "float32 (11, 256), not float32 of 22 rows"),
    "another level": (None, f"is {NAMES[1]} of bank"),
    "no bank's": (
        lambda _: safetensors.torch.save({"features": torch.ones(22, 128)}),
        "a file that no bank has written",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_or_foreign_file_is_refused(filled, clip, damage, message):
    file = filled.folder / NAMES[0]
    assert filled.load(LEVELS).shape == (2, COUNT, 128) and filled.files(LEVELS)[0] == [file]  # its checksum is known
    damaged = damage(file.read_bytes()) if damage else file.with_name(NAMES[1]).read_bytes()
    file.write_bytes(damaged)
    pattern = f"{re.escape(str(file))}: .*{re.escape(message)}.*; delete it, and the same command"
    for read in (lambda: filled.load(LEVELS), lambda: level_files(filled.folder, LEVELS, clip)):
        with pytest.raises(UserError, match=pattern):
            read()
    file.unlink()
    with pytest.raises(UserError, match="no such file; fill the bank with 'bvsa features'"):
        level_files(filled.folder, LEVELS, clip)


def test_a_level_of_another_bank_is_refused(filled, few, tmp_path, clip):
    other = FeatureBank(tmp_path / "bank", clip, few[::-1])
    shutil.copy(filled.folder / NAMES[0], other.folder)
    with pytest.raises(UserError, match=f"is {NAMES[0]} of bank {filled.key}, not {NAMES[0]} of bank {other.key}"):
        other.load(LEVELS[:1])


def test_altered_texts_are_refused(filled):
    path = filled.texts_path(["A photo of a banana."])
    path.write_bytes(flip_the_last_bit(path.read_bytes()))
    with pytest.raises(UserError, match=f"{path.name}: altered since"):
        filled.texts(["A photo of a banana."])


def test_the_folder_of_one_bank_is_that_bank_or_refused(filled, few, clip, computed):
    same = FeatureBank(filled.folder, clip, few)
    same.fill(LEVELS)
    assert same.folder == filled.folder and not computed
    listed = sorted(filled.folder.iterdir())
    falloffs = r"features of something else than asked for \(falloff is .*3.0.*, not .*2.0.*\); name the folder"
    with pytest.raises(UserError, match=falloffs):
        FeatureBank(filled.folder, clip, few, Falloff(decay=2.0))
    with pytest.raises(UserError, match=r"\(pictures is 22, not 21, pictures_sha256 is \w{8}, not \w{8}\)"):
        FeatureBank(filled.folder, clip, few[1:])
    with pytest.raises(UserError, match=r"falloff is .*; give a bank made with these settings"):
        level_files(filled.folder, LEVELS, clip, Falloff(curve="linear"))
    assert sorted(filled.folder.iterdir()) == listed


def test_an_about_that_is_of_another_version_altered_or_damaged_is_refused(filled, few, clip):
    about = filled.folder / ABOUT
    kept = json.loads(about.read_text())
    open_bank = lambda: FeatureBank(filled.folder.parent, clip, few)  # noqa: E731
    open_levels = lambda: level_files(filled.folder, LEVELS, clip)  # noqa: E731
    for name, value, message in (("format", 1, r"format is 1, not 2"), ("mean", None, r"mean is unknown, not \[0\.")):
        about.write_text(json.dumps({**kept, name: value}))
        for open_it in (open_bank, open_levels):
            with pytest.raises(UserError, match=rf"\({message}"):
                open_it()
    about.write_text(json.dumps({**kept, "pictures": 21}))
    with pytest.raises(UserError, match=f"is {NAMES[0]} of bank {filled.key}, not"):
        open_levels()
    for damaged in ('{"format', "[]"):
        about.write_text(damaged)
        with pytest.raises(UserError, match=r"about.json: (damaged|holds list).*; delete the folder"):
            open_bank()


def test_what_a_format_stands_for(tmp_path):
    """A change of how images are resized, blurred or normalised must raise FORMAT, as earlier features differ."""
    y, x = np.mgrid[:300, :400]
    image = np.stack([x * 255 // 399, y * 255 // 299, (x // 8 + y // 8) % 2 * 255], axis=-1).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    views = OnlineViews(_Identity(), read_images([tmp_path / "image.png"], 96))
    seen = views(torch.tensor([0]), torch.tensor([0.5]), torch.tensor([51]))
    assert bank_module.FORMAT == 2
    torch.testing.assert_close(seen[0, :, [0, 48, 90], [0, 50, 7]].T, FORMAT_2, rtol=0, atol=2e-5)


class _Identity:
    """Stands for an encoder whose features are the pixels it is given."""

    device, mean, std = torch.device("cpu"), (0.5, 0.4, 0.3), (0.25, 0.5, 1.0)
    encode_images = staticmethod(lambda images: images)


# Pixels x channels, by Pillow's bilinear resizing and scipy's Gaussian in float64.
FORMAT_2 = torch.tensor([[-1.73506, -0.66753, 0.1858], [0.09912, 0.20534, 0.14894], [-1.63496, 1.03336, 0.19344]])
