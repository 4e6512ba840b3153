"""JSON and YAML: read as data, or refused in one line that ends with the remedy."""

import os

import pytest
import yaml

from bvsa_core.errors import UserError
from bvsa_core.io.text_files import parse_json, read_json, read_yaml

DEEP = b"[" * 100_000
_PAIRS = list(zip(b"abcdefghijklmnopqrstuvwxy", b"bcdefghijklmnopqrstuvwxyz"))
ALIASES = b"".join(b"%c: &%c [*%c, *%c]\n" % (new, new, old, old) for old, new in _PAIRS)
MERGES = b"".join(b"%c: &%c {<<: [*%c, *%c]}\n" % (new, new, old, old) for old, new in _PAIRS)
DAMAGED = {
    "cut": (read_json, b'{"a": ', r"damaged or incomplete \(Expecting value"),
    "empty": (read_json, b"", r"damaged or incomplete \(Expecting value"),
    "JSON that is not UTF-8": (read_json, b'{"a": "\xff"}', "damaged .not UTF-8 text"),
    "deep JSON": (read_json, b'{"a": ' + DEEP, r"damaged or incomplete \(maximum recursion"),
    "a list": (read_json, b"[1]", "holds list where an object is needed"),
    "null": (read_json, b"null", "holds NoneType where an object is needed"),
    "a long integer": (read_json, b'{"a": ' + b"1" * 5000 + b"}", r"damaged or incomplete \(Exceeds the limit"),
    "a tab": (read_yaml, b"a: 1\n\tb: 2", r"not a YAML file \(while scanning"),
    "an object": (read_yaml, b"a: !!python/object/apply:os.getcwd []", r"not a YAML file \(could not determine a con"),
    "a date": (read_yaml, b"a: 2024-13-45", r"not a YAML file \(month must be in 1\.\.12"),
    "a bool": (read_yaml, b"a: !!bool x", r"not a YAML file \('x'\)"),
    "a time": (read_yaml, b"a: !!timestamp x", "not a YAML file"),
    "a number to base 60": (read_yaml, b"a: 1" + b":59" * 400 + b".5", r"not a YAML file \(int too large"),
    "YAML that is not UTF-8": (read_yaml, b"a: \xff", "damaged .not UTF-8 text"),
    "deep YAML": (read_yaml, DEEP, r"not a YAML file \(maximum recursion"),
    "aliases of aliases": (read_yaml, b"a: &a [x, x]\n" + ALIASES, r"not a YAML file \(more than 20000 values"),
    "merges of merges": (read_yaml, b"a: &a {x: 1}\n" + MERGES, r"not a YAML file \(more than 20000 values"),
    "a value in itself": (read_yaml, b"a: &a [*a]", "not a YAML file .*or one that contains itself"),
    "long YAML": (read_yaml, b"a: " + b"1" * 300_000, r"not a YAML file \(longer than 262144 characters"),
    "text": (read_yaml, b"method", "must hold settings as 'name: value'"),
    "nothing": (read_yaml, b"", "must hold settings as 'name: value'"),
}


@pytest.mark.parametrize(("read", "content", "message"), DAMAGED.values(), ids=list(DAMAGED))
def test_damaged_files_are_refused_in_one_line(tmp_path, read, content, message):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: {message}.*; write it again$") as caught:
        read(path, "write it again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_missing_files_and_folders_are_reported(tmp_path, read):
    with pytest.raises(UserError, match=rf"{tmp_path}/x: no such file; write it$"):
        read(tmp_path / "x", "write it")
    with pytest.raises(UserError, match=rf"{tmp_path}: cannot be read \(Is a directory\); write it$"):
        read(tmp_path, "write it")


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_a_pipe_is_refused(tmp_path, read):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(UserError, match=rf"{tmp_path}/x: not a regular file; write it$"):
        read(tmp_path / "x", "write it")


def test_shared_values_of_our_own_files_are_read(tmp_path):
    shared = [1, {"x": 2}]
    (tmp_path / "x").write_text(yaml.safe_dump({"a": shared, "b": shared}))
    assert "*id001" in (tmp_path / "x").read_text()
    assert read_yaml(tmp_path / "x", "") == {"a": shared, "b": shared}


def test_sound_files_are_read(tmp_path):
    (tmp_path / "x").write_text('{"a": [1, null], "é": {"b": 0.5}}', "utf-8")
    assert read_json(tmp_path / "x", "") == read_yaml(tmp_path / "x", "") == {"a": [1, None], "é": {"b": 0.5}}
    (tmp_path / "x").write_text("a: [1, null]  # comment\né: {b: 0.5}\n", "utf-8")
    assert read_yaml(tmp_path / "x", "") == {"a": [1, None], "é": {"b": 0.5}}


def test_messages_about_text_name_its_source():
    assert parse_json('{"a": 1}', "line 2", "") == {"a": 1}
    with pytest.raises(UserError, match=r"^x.jsonl: line 2: damaged or incomplete \(.*\); train again$"):
        parse_json("{", "x.jsonl: line 2", "train again")
