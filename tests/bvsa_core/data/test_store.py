"""The store survives kills, full disks, two processes at once, and files altered or cut off."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from bvsa_core.data import store
from bvsa_core.data.dataset import read_stored
from bvsa_core.data.store import Header, SplitHeader, SubjectWriter, fingerprint, open_array, read_header, verify
from bvsa_core.errors import UserError

RECIPE = {"layout": "some", "files": {"a": [1, "x"]}}


def header(conditions=3, channels=2, samples=5) -> Header:
    splits = {}
    for split in store.SPLITS:
        images = [f"{split}/{i}.jpg" for i in range(conditions)]
        splits[split] = SplitHeader([conditions, 4, channels, samples], images, images, [[1, 1, 2, 2]] * conditions)
    names = [f"c{i}" for i in range(channels)]
    return Header("sub-01", "EEG", "V", 100.0, names, [i / 100 for i in range(samples)], "some", ["Made."], splits)


def fill(writer: SubjectWriter, value: float | None = None) -> None:
    """Fill the writer as a conversion does: intermediate arrays first, then both arrays from them."""
    shape = tuple(header().splits["train"].shape)
    for number, split in enumerate(store.SPLITS):
        cached = writer.cached(f"session-{number}", lambda first=number: np.arange(120, dtype=np.float32) + first)
        array = writer.create_array(split, shape)
        array[:] = cached.reshape(shape) if value is None else value
        array.flush()
    writer.commit(header())


def finish(folder: Path) -> None:
    with SubjectWriter(folder, "sub-01", RECIPE) as writer:
        if not writer.complete:
            fill(writer)


@pytest.fixture
def made(tmp_path) -> Path:
    finish(tmp_path)
    return tmp_path / "sub-01"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_written_reads_back(made):
    written = read_header(made)
    assert sorted(path.name for path in made.iterdir()) == ["header.json", "test.npy", "train.npy"]
    assert written.recipe == RECIPE and written.splits["train"].sessions == [[1, 1, 2, 2]] * 3
    assert json.loads((made / "header.json").read_text())["made_from"] == RECIPE  # the key of earlier stores
    np.testing.assert_array_equal(open_array(made, written, "test"), np.arange(120).reshape(3, 4, 2, 5) + 1)
    for split in store.SPLITS:
        verify(made, written, split)


def test_a_header_of_an_earlier_version_has_its_layout_as_source(made):
    path = made / "header.json"
    content = json.loads(path.read_text())
    assert content.pop("source") == ""
    path.write_text(json.dumps(content))
    assert read_header(made).source == "" and read_stored(made, "test").source == read_header(made).layout


def test_a_finished_subject_is_complete_and_another_recipe_is_refused(made):
    before = contents(made.parent)
    with SubjectWriter(made.parent, "sub-01", RECIPE) as writer:
        assert writer.complete
    with pytest.raises(UserError, match=r"sub-01 is there already, made otherwise \(files, rate\); delete it"):
        SubjectWriter(made.parent, "sub-01", {"layout": "some", "rate": 1, "files": {}})
    assert contents(made.parent) == before


STEPS = {Path: ("mkdir", "replace", "rename", "unlink", "write_bytes"), os: ("fsync", "posix_fallocate"), np: ("save",)}


def killed_at(step: int, after: bool, folder: Path) -> bool:
    """Convert in a child process that dies just before or after a change of the disk. Returns whether it died."""
    child = os.fork()
    if child == 0:
        _die_at(step, after)
        try:
            finish(folder)
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def _die_at(fatal: int, after: bool) -> None:
    taken = 0

    def counted(genuine):
        def step(*arguments, **named):
            nonlocal taken
            taken += 1
            number = taken
            if number == fatal and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return genuine(*arguments, **named)
            finally:
                if number == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)

        return step

    for owner, names in STEPS.items():
        for name in names:
            setattr(owner, name, counted(getattr(owner, name)))


@pytest.mark.parametrize("after", [False, True])
def test_a_conversion_killed_at_any_step_is_resumed_to_the_same_end(after, made, tmp_path):
    expected, step = contents(made), 1
    while killed_at(step, after, tmp_path / "store"):
        assert not (tmp_path / "store" / "sub-01").exists() or contents(tmp_path / "store" / "sub-01") == expected
        finish(tmp_path / "store")
        assert contents(tmp_path / "store") == {f"sub-01/{name}": content for name, content in expected.items()}
        shutil.rmtree(tmp_path / "store")
        step += 1
    assert step > 20


def test_arrays_complete_at_a_kill_are_not_made_again(tmp_path, monkeypatch):
    def stopped(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SubjectWriter, "_rename", stopped)
        finish(tmp_path)
    with SubjectWriter(tmp_path, "sub-01", RECIPE) as writer:
        assert writer.complete
    assert sorted(path.name for path in (tmp_path / "sub-01").iterdir()) == ["header.json", "test.npy", "train.npy"]


def test_kills_upon_kills(made, tmp_path, seed):
    random = np.random.default_rng(seed)
    for _ in range(12):
        killed_at(int(random.integers(1, 25)), bool(random.integers(2)), tmp_path / "store")
    finish(tmp_path / "store")
    assert contents(tmp_path / "store") == {f"sub-01/{name}": content for name, content in contents(made).items()}


def test_cached_arrays_are_used_by_the_same_recipe_and_deleted_by_another(tmp_path):
    made = []

    def make():
        made.append(1)
        return np.ones(3)

    for recipe, times in ((RECIPE, 1), (RECIPE, 1), ({"layout": "other"}, 2)):
        with SubjectWriter(tmp_path, "sub-01", recipe) as writer:
            np.testing.assert_array_equal(writer.cached("one", make), np.ones(3))
        assert len(made) == times


def test_one_process_at_a_time(tmp_path, made):
    with SubjectWriter(tmp_path / "new", "sub-01", RECIPE) as first:
        with pytest.raises(UserError, match="sub-01: a conversion is going on there .*; wait"):
            SubjectWriter(tmp_path / "new", "sub-01", RECIPE)
        with SubjectWriter(tmp_path / "new", "sub-02", RECIPE) as second:
            assert first.folder.exists() and second.folder.exists()


def test_a_subject_finished_by_another_process_meanwhile_is_complete(tmp_path, monkeypatch):
    enter = SubjectWriter._enter

    def late(self):
        monkeypatch.setattr(SubjectWriter, "_enter", enter)
        finish(tmp_path)  # after this one looked for the folder, before it has the lock
        enter(self)

    monkeypatch.setattr(SubjectWriter, "_enter", late)
    with SubjectWriter(tmp_path, "sub-01", RECIPE) as writer:
        assert writer.complete
    assert [path.name for path in tmp_path.iterdir()] == ["sub-01"]


def test_a_full_disk_is_reported_before_and_while_it_fills(tmp_path, monkeypatch):
    with SubjectWriter(tmp_path, "sub-01", RECIPE) as writer:
        with pytest.raises(UserError, match=r"train takes 7450580.6 GiB and [\d.]+ are free; make room"):
            writer.create_array("train", (10**6, 10**6, 1000, 4))

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError, match=r"train.npy: no room for 0.0 GiB \(No space left on device\); make room"):
            writer.create_array("train", (3, 4, 2, 5))


def test_arrays_that_do_not_fit_their_header_or_are_not_finite_stay_unfinished(tmp_path):
    with SubjectWriter(tmp_path, "sub-01", RECIPE) as writer:
        infinite = r"sub-01 train: condition 0 \(train/0.jpg\) has samples that are not finite in float16"
        with pytest.raises(UserError, match=infinite):
            fill(writer, np.inf)
        for split in store.SPLITS:
            writer.create_array(split, (3, 4, 2, 4))
        shapes = r"train.npy: \(3, 4, 2, 4\) written where the header has \(3, 4, 2, 5\)"
        with pytest.raises(UserError, match=shapes):
            writer.commit(header())
    assert not (tmp_path / "sub-01").exists()


def test_a_damaged_folder_is_reported(made):
    written = read_header(made)
    whole = (made / "train.npy").read_bytes()
    for content in (whole[:-4], whole[:10], b"", np.lib.format.magic(1, 0)):
        (made / "train.npy").write_bytes(content)
        with pytest.raises(UserError, match="train.npy: missing or damaged"):
            open_array(made, written, "train")
    np.save(made / "train.npy", np.zeros((3, 4, 2, 5)))
    with pytest.raises(UserError, match="train.npy: float64 .* where header.json has"):
        open_array(made, written, "train")
    (made / "train.npy").write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match="train.npy: altered since it was made"):
        verify(made, written, "train")
    with pytest.raises(UserError, match="no validation data; there are train, test"):
        open_array(made, written, "validation")


HEADERS = [
    (lambda content: content.update(format=2), "format 2, and this version reads 1"),
    (lambda content: content.pop("times"), "damaged"),
    (lambda content: content.update(extra=1), "damaged"),
    (lambda content: content["channels"].pop(), "the train part contradicts itself"),
    (lambda content: content["splits"]["test"]["images"].pop(), "the test part contradicts itself"),
    (lambda content: content["splits"].update(other=content["splits"]["train"]), "the other part contradicts itself"),
    (lambda content: content.update(splits=[]), "damaged"),
]


@pytest.mark.parametrize(("change", "message"), HEADERS)
def test_a_damaged_header_is_reported(change, message, made):
    content = json.loads((made / "header.json").read_text())
    change(content)
    (made / "header.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"header.json: .*{message}"):
        read_header(made)
    for text in ("", "[", "[]", "3"):
        (made / "header.json").write_text(text)
        with pytest.raises(UserError, match="header.json: (damaged|holds)"):
            read_header(made)


def test_fingerprints_depend_on_size_and_ends_but_not_on_time(tmp_path):
    file = tmp_path / "a" / "big"
    file.parent.mkdir()
    file.write_bytes(bytes(3 * 2**20))
    first = fingerprint([file], tmp_path)
    os.utime(file, (1, 1))
    assert list(first) == ["a/big"] and fingerprint([file], tmp_path) == first
    for content in (bytes(3 * 2**20 + 1), b"x" + bytes(3 * 2**20 - 1), bytes(3 * 2**20 - 1) + b"x"):
        file.write_bytes(content)
        assert fingerprint([file], tmp_path) != first


def test_the_first_bad_condition_is_in_any_block(monkeypatch):
    monkeypatch.setattr(store, "_BLOCK", 40)
    data = np.zeros((7, 1, 2, 10), np.float16)
    assert store.first_bad_condition(data) is None
    data[5, 0, 1, 3] = data[6, 0, 0, 0] = np.nan
    assert store.first_bad_condition(data) == 5
