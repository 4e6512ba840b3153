"""Downloads from a server that fails: what comes is what the publisher has, or an error with a remedy."""

import contextlib
import hashlib
import io
import json
import re
import sys
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from publisher_server import publishers

from bvsa_core.cli import main
from bvsa_core.data.downloads import fetch, http
from bvsa_core.data.downloads.fetch import RECORD, Download
from bvsa_core.data.downloads.registry import parse_subjects, published_datasets
from bvsa_core.errors import UserError

ZIPPED = "images/training_images.zip"
RECORDINGS = "Preprocessed_data_250Hz_whiten/sub-01/train.pt"


@pytest.fixture
def server(seed, monkeypatch):
    """Serve things-eeg2-ubp with two subjects, of random bytes."""
    monkeypatch.setattr(http, "FIRST_WAIT", 0.001)
    random = np.random.default_rng(seed)
    with publishers() as made:
        for subject in ("01", "02"):
            for split in ("train", "test"):
                path = f"Preprocessed_data_250Hz_whiten/sub-{subject}/{split}.pt"
                made.files["huggingface", "Haitao999/things-eeg", path] = random.bytes(300_000)
        made.files["huggingface", "Haitao999/things-eeg", "Preprocessed_data_250Hz_whiten/other.pt"] = b"not selected"
        for name in ("training_images.zip", "test_images.zip", "image_metadata.npy", "LICENSE.txt", "features.zip"):
            made.files["osf", "y63gw", name] = random.bytes(1000)
        yield made


@pytest.fixture
def start(server, tmp_path):
    """Return a function that plans and runs a download."""

    def run(name: str = "things-eeg2-ubp", subjects: str = "1", **arguments) -> list[str]:
        hosts = arguments.pop("hosts", ("huggingface.co", "api.osf.io", "files.osf.io"))
        mirrors = {host: server.mirrors()[host] for host in hosts}
        return Download(name, tmp_path / "data", subjects, mirrors).run(**arguments)

    return run


def content_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def expected(server, subjects=("01",)) -> dict[str, bytes]:
    """Return what a download makes, but for the record."""
    images = ("training_images.zip", "test_images.zip", "image_metadata.npy", "LICENSE.txt")
    result = {f"images/{name}": server.files["osf", "y63gw", name] for name in images}
    for (_, name, path), content in server.files.items():
        if name == "Haitao999/things-eeg" and path.split("/")[1] in {f"sub-{subject}" for subject in subjects}:
            result[path] = content
    return result


def check(server, tmp_path, subjects=("01",)) -> None:
    made = content_of(tmp_path / "data")
    record = json.loads(made.pop(RECORD))["files"]
    assert json.loads(made.pop("dataset.json")) == {"name": "THINGS-EEG2", "modality": "EEG"}
    assert made == expected(server, subjects)
    assert record.keys() == made.keys()
    for path, about in record.items():
        kind, digest = about["checksum"].split(":")
        assert digest == hashlib.new(kind, made[path]).hexdigest()


def test_a_data_set_is_fetched_once(server, start, tmp_path):
    planned = Download(
        "things-eeg2-ubp",
        tmp_path / "data",
        "1",
        {host: server.mirrors()[host] for host in ("huggingface.co", "api.osf.io", "files.osf.io")},
    )
    assert planned.bytes_missing == sum(map(len, expected(server).values()))
    printed = "\n".join(planned.describe())
    assert "1 of 10 subjects" in printed and "to fetch: 0.6 MB" in printed and "please cite: Wu et al." in printed
    assert not (tmp_path / "data").exists()
    messages = start()
    check(server, tmp_path)
    assert messages == [
        "6 files have the publisher's checksums",
        f"next: bvsa data images {tmp_path / 'data/images'} {tmp_path / 'data'}",
    ]
    asked = len(server.asked)
    start()
    assert len(server.asked) == asked
    start(subjects="1-2")
    check(server, tmp_path, ("01", "02"))
    assert len(server.asked) == asked + 2


FAULTS = [
    [("drop", 100_000)],
    [("drop", 100_000), ("drop", 90_000), ("drop", 0)],
    [("drop", 200_000), "no ranges"],
    [("drop", 200_000), ("range", "bytes 5-299999/300000")],
    [("drop", 200_000), ("range", "bytes */300000")],
    [("drop", 200_000), ("range", "bytes 196608-299998/299999")],
    [("drop", 200_000), 416],
    [503, 429, 500],
    [("announce", 299_999)],
    [("announce", 300_001)],
    ["endless"],
    ["wrong bytes"],
    [("drop", 200_000), "wrong bytes"],
]


@pytest.mark.parametrize("faults", FAULTS, ids=str)
def test_a_bad_connection_is_overcome(server, start, tmp_path, faults):
    server.faults[RECORDINGS] = list(faults)
    start()
    check(server, tmp_path)
    assert not server.faults[RECORDINGS]
    again = [asked for path, asked in server.asked if path == RECORDINGS]
    if faults[0] == ("drop", 100_000):
        assert again[1:] and all(asked.startswith("bytes=") for asked in again[1:])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (404, "the server answers 404"),
        (403, "the server answers 403"),
        (503, "attempts in a row failed .*503"),
        (("drop", 0), "attempts in a row failed"),
        (("announce", 5), "announces 5 bytes, and 300000 are expected"),
        ("wrong bytes", "does not have the publisher's checksum; try again"),
        ("endless", "the server sends more than 300000 bytes"),
    ],
    ids=str,
)
def test_a_server_that_stays_bad_is_named(server, start, tmp_path, fault, message):
    server.faults[RECORDINGS] = [fault] * 20
    with pytest.raises(UserError, match=message):
        start()
    assert not (tmp_path / "data" / RECORDINGS).exists()
    server.faults.clear()
    start()
    check(server, tmp_path)


def test_ctrl_c_keeps_what_has_come(server, start, tmp_path):
    server.faults[RECORDINGS] = [("interrupt", 250_000)]
    with pytest.raises(KeyboardInterrupt):
        start()
    (part,) = (tmp_path / "data" / RECORDINGS).parent.glob(".train.pt.*.download")
    kept = part.stat().st_size
    assert 100_000 < kept <= 250_000
    assert part.read_bytes() == expected(server)[RECORDINGS][:kept]
    start()
    check(server, tmp_path)
    assert (RECORDINGS, f"bytes={kept}-") in server.asked


def test_a_part_of_another_version_is_not_continued(server, start, tmp_path):
    start()
    path = tmp_path / "data" / RECORDINGS
    path.with_name(".train.pt.0123456789ab.download").write_bytes(b"of an earlier version")
    path.unlink()
    start()
    check(server, tmp_path)


def test_files_that_changed_on_disk_are_fetched_again(server, start, tmp_path):
    start()
    path = tmp_path / "data" / RECORDINGS
    path.write_bytes(bytes(300_000))
    start()
    check(server, tmp_path)


def test_checksums_of_the_first_download_are_compared(server, start, tmp_path):
    server.without_checksums = {"osf"}
    messages = start()
    assert messages[0].startswith("2 files have the publisher's checksums; those of the other 4 are in ")
    check(server, tmp_path)
    path = tmp_path / "data" / ZIPPED
    path.write_bytes(bytes(1000))
    start()
    check(server, tmp_path)
    server.files["osf", "y63gw", "training_images.zip"] = bytes(1000)
    path.unlink()
    with pytest.raises(UserError, match="does not have the first download's checksum"):
        start()
    path.write_bytes(b"short")
    (tmp_path / "data" / RECORD).unlink()
    with pytest.raises(UserError, match="has 5 bytes, and the publisher's 1000; remove it"):
        start()


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return stream.getvalue()


def test_archives_of_recordings_are_unpacked_and_removed(server, start, tmp_path):
    inside = {"ses-01/raw_eeg_training.npy": b"a" * 500, "ses-01/raw_eeg_test.npy": b"b"}
    server.files["figshare", "18470912", "sub-01.zip"] = archive(**{f"sub-01/{k}": v for k, v in inside.items()})
    server.files["figshare", "18470912", "sub-02.zip"] = archive(**inside)  # without the folder
    hosts = "api.figshare.com", "ndownloader.figshare.com", "api.osf.io", "files.osf.io"
    for _ in range(2):
        start("things-eeg2-raw", "1-2", hosts=hosts)
        made = content_of(tmp_path / "data" / "Raw_data")
        assert made == {f"sub-{n}/{name}": content for n in ("01", "02") for name, content in inside.items()}
        assert sum(path.endswith("sub-01.zip") for path, _ in server.asked) == 1
    (tmp_path / "data/Raw_data/sub-01/ses-01/raw_eeg_test.npy").write_bytes(b"changed")
    with pytest.raises(UserError, match="its ses-01/raw_eeg_test.npy is not what sub-01.zip holds; move the folder"):
        start("things-eeg2-raw", "1-2", hosts=hosts)


@pytest.mark.parametrize("name", ["../evil.pt", "sub-01/..", "/etc/sub-01", "sub-01/a\\b", "sub-01/.ssh", "sub-01/a:b"])
def test_names_from_a_server_stay_in_the_folder(server, start, tmp_path, name):
    path = f"Preprocessed_data_250Hz_whiten/{name}/sub-01/train.pt"
    server.files["huggingface", "Haitao999/things-eeg", path] = b"x"
    with pytest.raises(UserError, match="which is no safe name; nothing was fetched"):
        start()
    assert not list(tmp_path.iterdir())


def test_links_in_the_destination_are_not_followed(server, start, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="symbolic link"):
        start()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_full_disk_is_reported_before(server, start, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "free_disk", lambda path: 1000)
    with pytest.raises(UserError, match="0.6 MB are to be fetched, and 0.0 MB of disk are free; make room"):
        start()
    assert not (tmp_path / "data").exists()


def test_lists_that_are_not_understood_are_named(server, start, monkeypatch):
    del server.files["huggingface", "Haitao999/things-eeg", RECORDINGS]
    del server.files["huggingface", "Haitao999/things-eeg", RECORDINGS.replace("train", "test")]
    with pytest.raises(UserError, match="has no files of sub-01; choose others by --subjects"):
        start()
    for key in [key for key in server.files if key[0] == "huggingface"]:
        del server.files[key]
    with pytest.raises(
        UserError, match="no file is called .*train.pt, .*the publisher has renamed them, get the files"
    ):
        start()
    monkeypatch.setattr(http.Client, "read", lambda self, url: (b'{"error": "gone"}', None))
    with pytest.raises(UserError, match="list of files is not understood .*; get the files by hand from https://hugg"):
        start()


def test_an_encrypted_address_must_not_lead_to_an_open_one(monkeypatch):
    answer = contextlib.nullcontext(Mock(status_code=200, reason="OK", url="http://elsewhere/file"))
    client = http.Client()
    monkeypatch.setattr(client._session, "get", lambda *args, **kwargs: answer)
    with pytest.raises(UserError, match="leads to http://elsewhere/file, which is not encrypted; nothing was read"):
        client.read("https://huggingface.co/file")
    with pytest.raises(UserError, match="'file:///etc/passwd' is no address of a file"):
        client.read("file:///etc/passwd")


def test_a_server_that_asks_for_time_gets_it(server, monkeypatch):
    waits = []
    client = http.Client(server.mirrors())
    monkeypatch.setattr(client.stopped, "wait", waits.append)
    answers = iter([(429, "7"), (503, ""), (429, "100000"), (429, "Thu, 01 Jan"), (200, "")])

    def answer(*args, **kwargs):
        status, seconds = next(answers)
        made = Mock(status_code=status, reason="", url="https://x", headers={"Retry-After": seconds}, links={})
        made.iter_content = lambda size: [b"content"]
        return contextlib.nullcontext(made)

    monkeypatch.setattr(client._session, "get", answer)
    assert client.read("https://huggingface.co/list") == (b"content", None)
    assert waits == [7, 0.002, 600, 0.008]


def test_a_wait_is_reported_with_its_reason_alone(monkeypatch):
    monkeypatch.setattr(http, "ATTEMPTS", 2)
    told = []
    client = http.Client({"huggingface.co": "http://127.0.0.1:9"}, told.append)  # where nobody answers
    with pytest.raises(UserError, match=r"list: 2 attempts in a row failed \([^()]*refused\); check the connection"):
        client.read("https://huggingface.co/list")
    assert len(told) == 1 and re.fullmatch("huggingface.co: [^()]*refused; another attempt in 1 s", told[0])


def test_downloads_stop_beside_an_answer_that_is_complete(server):
    client = http.Client(server.mirrors())
    with client.open("https://api.osf.io/v2/nodes/y63gw/files/osfstorage/") as response:
        assert response.content
        client.stop()
    assert client.stopped.is_set()


def test_without_pooch_the_extra_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "pooch", None)
    monkeypatch.delitem(sys.modules, "bvsa_core.data.downloads.fetch")
    assert main(["data", "download", "things-meg", str(tmp_path / "data")]) == 2
    needed = "bvsa: error: pooch is not installed; downloads need: pip install 'fovblur[download]'\n"
    assert capsys.readouterr().err == needed


def test_unknown_names_subjects_and_hosts_are_refused(server, start):
    with pytest.raises(UserError, match="unknown data set 'things-eg2'; did you mean 'things-eeg2'"):
        start("things-eg2")
    with pytest.raises(UserError, match="subjects are '0-3'; give numbers from 1 to 10"):
        start(subjects="0-3")
    with pytest.raises(UserError, match=r"unknown host of --mirror 's3.amazonaws.com'; choose one of api.osf.io"):
        start(hosts=("huggingface.co", "api.osf.io", "files.osf.io", "s3.amazonaws.com"))


def test_subjects_are_read():
    assert parse_subjects("", 4) == [1, 2, 3, 4]
    assert parse_subjects("1-3,sub-02, 4", 4) == [1, 2, 3, 4]
    for text in ("5", "3-1", "a", "1,", "-1", "1-5"):
        with pytest.raises(UserError):
            parse_subjects(text, 4)


def test_the_registry_names_layouts_and_subjects():
    from bvsa_core.data.layouts import layouts

    known = published_datasets()
    assert {"things-eeg2", "things-eeg2-raw", "things-meg"} <= known.keys()
    for dataset in known.values():
        assert dataset.layout in layouts()
        assert dataset.license and dataset.citation and dataset.gigabytes > 0
        for source in dataset.sources:
            assert source.page.startswith("https://") and source.select
    osf, meg = known["things-eeg2"].sources[0], known["things-meg"].sources[0]
    assert [osf.subject_of(path) for path in ("sub-01.zip", "sub-10/x.npy", "sub2.zip", "x.npy")] == [1, 10, 2, None]
    fif = "derivatives/preprocessed/preprocessed_P{}-epo{}.fif".format
    assert [meg.subject_of(path) for path in (fif(1, ""), fif(4, "-2"), "sourcedata/sample_attributes_P3.csv")] == [
        1,
        4,
        3,
    ]
