"""Zip files from elsewhere: what is unpacked is what they hold, and nothing leaves the folder."""

import stat
import zipfile

import pytest

from bvsa_core.errors import UserError
from bvsa_core.io import unpack as module
from bvsa_core.io.unpack import unpack


@pytest.fixture
def pack(tmp_path):
    """Return a function that writes sub-01.zip."""

    def write(members: dict[str, bytes], **kwargs):
        path = tmp_path / "sub-01.zip"
        with zipfile.ZipFile(path, "w", **kwargs) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path

    return write


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("top", ["", "sub-01/"])
def test_the_archives_own_folder_is_left_out(pack, tmp_path, top):
    members = {f"{top}ses-01/a.npy": b"one", f"{top}ses-01/b.npy": b"", "__MACOSX/x": b"no", f"{top}.DS_Store": b"no"}
    sizes = unpack(pack(members), tmp_path / "out" / "sub-01")
    assert sizes == {"ses-01/a.npy": 3, "ses-01/b.npy": 0}
    assert files_below(tmp_path / "out" / "sub-01") == {"ses-01/a.npy": b"one", "ses-01/b.npy": b""}
    assert unpack(tmp_path / "sub-01.zip", tmp_path / "out" / "sub-01") == sizes
    (tmp_path / "out/sub-01/ses-01/b.npy").unlink()
    with pytest.raises(UserError, match="its ses-01/b.npy is not what sub-01.zip holds; move the folder away"):
        unpack(tmp_path / "sub-01.zip", tmp_path / "out" / "sub-01")


@pytest.mark.parametrize("name", ["../out.npy", "a/../../out.npy", "/out.npy", "a\\..\\out.npy", "C:/out.npy"])
def test_members_stay_in_the_folder(pack, tmp_path, name):
    with pytest.raises(UserError, match="points outside the archive; do not trust it"):
        unpack(pack({"a.npy": b"x", name: b"evil"}), tmp_path / "inside" / "sub-01")
    assert [path.name for path in tmp_path.rglob("*")] == ["sub-01.zip"]


def test_links_and_bombs_and_doubles_are_refused(pack, tmp_path):
    path, target = pack({"a.npy": b"x"}), tmp_path / "sub-01"
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    with pytest.raises(UserError, match="'link' is a link or device"):
        unpack(path, target)
    with pytest.raises(UserError, match="'bomb' becomes far larger than it is"):
        unpack(pack({"bomb": bytes(2**26 + 1)}, compression=zipfile.ZIP_DEFLATED), target)
    with pytest.raises(UserError, match="holds x twice"):
        unpack(pack({"x": b"1", "sub-01/x": b"2"}), target)
    with pytest.raises(UserError, match="holds no files"):
        unpack(pack({}), target)
    assert not target.exists()


def test_damage_leaves_nothing(pack, tmp_path):
    whole = pack({"a.npy": b"one" * 1000, "b.npy": b"two" * 1000}).read_bytes()
    path, target = tmp_path / "sub-01.zip", tmp_path / "sub-01"
    for damaged in (whole[:-30], whole.replace(b"two" * 10, b"tow" * 10, 1), b"no zip"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="sub-01.zip: damaged .*; remove it, and the same command fetches it again"):
            unpack(path, target)
        assert [each.name for each in tmp_path.iterdir()] == ["sub-01.zip"]


def test_the_free_disk_is_checked_before(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_disk", lambda path: 10)
    with pytest.raises(UserError, match="0.0 GB are inside, and 0.0 GB of disk are free; make room"):
        unpack(pack({"a.npy": bytes(11)}), tmp_path / "sub-01")
