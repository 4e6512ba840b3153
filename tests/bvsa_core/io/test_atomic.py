"""Files that are written whole or not at all, and the lock of a folder."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from bvsa_core.cli import main
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import Locked, append_line, lock, make_folder, write_atomically


@pytest.fixture
def read_only(request) -> Path:
    """Return a folder that cannot be written to, not even if root runs the tests."""
    folder, before = Path(tempfile.mkdtemp()), os.geteuid()
    folder.chmod(0o555)
    if before == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(before)
    shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written_to_is_named(read_only):
    why = r"cannot be written \(Permission denied\); make room, or choose another folder"
    for write in (
        lambda path: write_atomically(path, b"content"),
        lambda path: append_line(path, "line"),
        lambda path: make_folder(path, lambda folder: None),
        lambda path: lock(path, activity="a run").__enter__(),
    ):
        with pytest.raises(UserError, match=f"{read_only}/target: {why}"):
            write(read_only / "target")
    assert not list(read_only.iterdir())


def test_a_file_is_replaced_whole_or_stays(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"first")
    monkeypatch.setattr(Path, "replace", Mock(side_effect=OSError(5, "Input/output error")))
    with pytest.raises(UserError, match="file: cannot be written"):
        write_atomically(path, b"second")
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["file"]


def test_a_folder_that_could_not_be_filled_leaves_nothing(tmp_path):
    def fill(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"full: cannot be written \(No space left on device\)"):
        make_folder(tmp_path / "full", fill)
    assert not list(tmp_path.iterdir())


OWNER = """
import sys
from pathlib import Path
from bvsa_core.io.atomic import lock
with lock(Path(sys.argv[1]), activity="a run"):
    Path(sys.argv[1], ".half.partial").touch()
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_lock_ends_with_its_owner_however_that_ends(tmp_path):
    folder = tmp_path / "run"
    owner = subprocess.Popen([sys.executable, "-c", OWNER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b"locked\n"
    busy = rf"run: a run is going on there \(process {owner.pid} on .*\); wait for its end, or choose"
    with pytest.raises(UserError, match=busy), lock(folder, activity="a run"):
        pass
    assert (folder / ".half.partial").exists()  # of the living nothing is cleared away
    owner.kill()
    owner.communicate()
    with lock(folder, activity="a run"):
        assert os.listdir(folder) == [".lock"]
    assert not os.listdir(folder)


def test_names_have_locks_of_their_own_and_others_can_wait(tmp_path):
    (tmp_path / ".a.0123.partial").touch()
    (tmp_path / ".b.0123.partial").touch()
    threads = [threading.Thread(target=append_in_lock, args=(tmp_path,)) for _ in range(4)]
    with lock(tmp_path, "a"), lock(tmp_path, "b"), lock(tmp_path / "new"):
        with pytest.raises(Locked, match="a: work is going on there"), lock(tmp_path, "a"):
            pass
        for thread in threads:
            thread.start()
        assert not (tmp_path / "lines").exists()
    for thread in threads:
        thread.join()
    assert (tmp_path / "lines").read_text() == "first\nsecond\n" * 4
    assert os.listdir(tmp_path) == ["lines"]


def test_a_folder_that_stays_empty_is_removed_with_the_parents_that_were_made(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "there" / "new" / "run"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["there"] and not os.listdir(tmp_path / "there")
    with lock(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "file").touch()
    assert os.listdir(tmp_path / "new" / "run") == ["file"]


def append_in_lock(folder: Path) -> None:
    with lock(folder, "a", blocking=True):
        for line in ("first", "second"):
            append_line(folder / "lines", line)
            time.sleep(0.01)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_can_be_used_alone(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(number, os.strerror(number))))
    message = (
        rf"^{tmp_path}: its file system has no locks \({os.strerror(number)}\); .* add --no_lock \(BVSA_NO_LOCK=1\)"
    )
    with pytest.raises(UserError, match=message), lock(tmp_path):
        pass
    (tmp_path / ".x.killed.partial").touch()
    monkeypatch.setenv("BVSA_NO_LOCK", "1")
    with lock(tmp_path):
        assert not list(tmp_path.glob("*.partial")) and not (tmp_path / ".lock").exists()


def test_the_flag_switches_locks_off(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BVSA_NO_LOCK", "")
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))))
    sizes = ("--train_concepts", "2", "--images_per_concept", "1", "--test_concepts", "2", "--subjects", "1")
    command = ["data", "synthetic", str(tmp_path / "data"), *sizes]
    assert main(command) == 2
    assert "has no locks" in (message := capsys.readouterr().err) and message.count("\n") == 1
    assert main([*command, "--no_lock"]) == 0
