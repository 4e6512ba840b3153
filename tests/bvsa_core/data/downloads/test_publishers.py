"""Lists of files as publishers give them, and lists with any value in any place."""

import json
import random
from typing import Any

import pytest
from publisher_server import publishers

from bvsa_core.data.downloads.http import Client
from bvsa_core.data.downloads.publishers import RemoteFile, list_files
from bvsa_core.data.downloads.registry import Source
from bvsa_core.errors import UserError

ODD = (None, True, -1, 10**30, 1.5, "", "..", "/", "https://", [], {}, [[]], {"a": None}, "x" * 1000)
MD5, SHA256 = "0" * 32, "f" * 64


def source(publisher: str, **changes: Any) -> Source:
    return Source(publisher, "name", "https://page", changes.pop("select", ["*"]), **changes)


class Answers:
    """A client whose answers are given."""

    def __init__(self, *answers: object):
        self.answers = [(json.dumps(each).encode() if not isinstance(each, bytes) else each, None) for each in answers]

    def read(self, url: str) -> tuple[bytes, str | None]:
        return self.answers.pop(0)


OSF = {
    "attributes": {"kind": "file", "materialized_path": "/a.npy", "size": 5, "extra": {"hashes": {"md5": MD5}}},
    "links": {"download": "https://osf.io/download/a"},
}
FIGSHARE = {
    "name": "a.zip",
    "size": 5,
    "download_url": "https://figshare.com/a",
    "supplied_md5": "",
    "computed_md5": MD5,
}
HUGGINGFACE = {"type": "file", "path": "b/a.pt", "size": 5, "oid": "0" * 40, "lfs": {"oid": SHA256, "size": 5}}
S3 = (
    '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Contents><Key>name/a.fif</Key>'
    "<ETag>&quot;{etag}&quot;</ETag><Size>5</Size></Contents></ListBucketResult>"
)
LISTS: dict[str, object] = {
    "osf": {"data": [OSF], "links": {"next": None}},
    "figshare": [FIGSHARE],
    "huggingface": [{"type": "directory", "path": "b"}, HUGGINGFACE],
}


def test_lists_are_read_as_their_publishers_write_them():
    files = {name: list_files(source(name), Answers(content)) for name, content in LISTS.items()}
    assert files["osf"] == [RemoteFile("a.npy", "https://osf.io/download/a", 5, f"md5:{MD5}")]
    assert files["figshare"] == [RemoteFile("a.zip", "https://figshare.com/a", 5, f"md5:{MD5}")]
    resolved = "https://huggingface.co/datasets/name/resolve/main/b/a.pt"
    assert files["huggingface"] == [RemoteFile("b/a.pt", resolved, 5, f"sha256:{SHA256}")]
    (file,) = list_files(source("openneuro"), Answers(S3.format(etag=MD5).encode()))
    assert file == RemoteFile("a.fif", "https://s3.amazonaws.com/openneuro.org/name/a.fif", 5, f"md5:{MD5}")
    (file,) = list_files(source("openneuro"), Answers(S3.format(etag=f"{MD5}-9").encode()))
    assert (file.checksum, file.etag) == (None, f'"{MD5}-9"')
    (file,) = list_files(source("figshare", folder="Raw_data", unpack=True), Answers([FIGSHARE]))
    assert file.path == "Raw_data/a.zip" and file.unpack


def changed(value: Any, chance: random.Random) -> Any:
    """Return a copy of a JSON value with an odd value in one place."""
    if isinstance(value, (list, dict)) and value and chance.random() < 0.85:
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        copy = value.copy()
        if isinstance(copy, dict) and chance.random() < 0.1:
            del copy[key]
        else:
            copy[key] = changed(value[key], chance)
        return copy
    return chance.choice(ODD)


@pytest.mark.parametrize("publisher", LISTS)
def test_any_value_in_a_list_is_a_file_or_an_error_of_one_line(publisher, seed):
    chance = random.Random(seed)
    for _ in range(500):
        content = changed(LISTS[publisher], chance)
        try:
            files = list_files(source(publisher), Answers(*[content] * 5))
        except UserError as error:
            assert "\n" not in str(error)
        else:
            for file in files:
                assert (
                    isinstance(file.url, str)
                    and isinstance(file.size, int)
                    and file.size >= 0
                    and ".." not in file.path.split("/")
                )


def test_a_list_in_xml_defines_nothing():
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>'
    for content in (bomb, b"<x>", b"", S3.replace("5</Size>", "-5</Size>").format(etag=MD5).encode()):
        with pytest.raises(UserError, match="https://page: its list of files is not understood .*by hand"):
            list_files(source("openneuro"), Answers(content))


def test_lists_of_several_pages_and_folders_are_read_whole():
    paths = [f"folder/inner/{number}.npy" for number in range(5)] + [f"{number}.npy" for number in range(3)]
    with publishers() as server:
        for publisher in ("osf", "openneuro", "huggingface"):
            server.files |= {(publisher, "name", path): b"x" * number for number, path in enumerate(paths)}
        client = Client(server.mirrors())
        for publisher in ("osf", "openneuro", "huggingface"):
            found = list_files(source(publisher), client)
            assert {file.path: file.size for file in found} == {path: number for number, path in enumerate(paths)}
            assert len(list_files(source(publisher, select=["folder/*/3.npy"]), client)) == 1
