"""Safe readers: everything published is read, nothing runs, damage is reported in one line."""

import mmap
import os
import pickle
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.torch
import torch

from bvsa_core.errors import UserError
from bvsa_core.io import safe_pickle
from bvsa_core.io.safe_readers import read_arrays

CONTENT = {
    "eeg": np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float16),
    "img": np.array([["a/b.jpg", "c"], ["d", "é"]]),
    "names": ["Oz", "O1"],
    "times": np.arange(3.0),
    "text in objects": np.array(["x", "yy"], dtype=object),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "big endian": np.arange(4, dtype=">i4"),
    "empty": np.zeros((0, 3)),
    "scalar": np.float64(3.5),
    "nothing": None,
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_numpy_arrays_of_every_pickle_protocol(tmp_path, protocol):
    torch.save(CONTENT, tmp_path / "train.pt", pickle_protocol=protocol)
    read = read_arrays(tmp_path / "train.pt")
    assert read.keys() == CONTENT.keys()
    for key, value in CONTENT.items():
        np.testing.assert_array_equal(np.asarray(read[key]), np.asarray(value))
    assert read["eeg"].dtype == np.float16 and isinstance(read["names"], list)


def test_reads_tensors_and_state_dicts(tmp_path):
    tensors = {"half": torch.rand(3).half(), "transposed": torch.rand(3, 4).t(), "long": torch.arange(5)}
    tensors["bool"] = torch.tensor([True])
    for saved in (tensors, torch.nn.Linear(2, 2).state_dict(), {"one": torch.eye(3)}):
        torch.save(saved, tmp_path / "x.pt")
        read = read_arrays(tmp_path / "x.pt")
        assert read.keys() == saved.keys() and all(torch.equal(read[key], saved[key]) for key in saved)
    torch.save(torch.eye(3), tmp_path / "z.pt")
    assert torch.equal(read_arrays(tmp_path / "z.pt"), torch.eye(3))


def test_reads_npy_npz_and_safetensors(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(2))
    np.savez(tmp_path / "b.npz", one=np.eye(2))
    safetensors.torch.save_file({"one": torch.eye(2)}, tmp_path / "c.safetensors")
    assert np.array_equal(read_arrays(tmp_path / "a.npy"), np.eye(2))
    assert read_arrays(tmp_path / "b.npz").keys() == read_arrays(tmp_path / "c.safetensors").keys() == {"one"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_pickled_dicts_of_npy_files(tmp_path, protocol):
    raw = {"raw_eeg_data": np.arange(6.0).reshape(2, 3), "ch_names": ["Oz", "stim"], "sfreq": 1000, "times": None}
    np.save(tmp_path / "saved.npy", raw)
    (tmp_path / "dumped.npy").write_bytes(pickle.dumps(raw, protocol))
    np.save(tmp_path / "rows.npy", np.array([{"x": 1}, "y"], dtype=object))
    for name in ("saved.npy", "dumped.npy"):
        read = read_arrays(tmp_path / name)
        np.testing.assert_array_equal(read.pop("raw_eeg_data"), raw["raw_eeg_data"])
        assert read == {key: value for key, value in raw.items() if key != "raw_eeg_data"}
    assert read_arrays(tmp_path / "rows.npy") == [{"x": 1}, "y"]


class _Payload:
    """Unpickles to a call that would leave a mark."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads(mark: Path) -> list:
    touch = f"open({str(mark)!r}, 'w').close()"
    return [
        _Payload(os.system, f"touch {mark}"),
        _Payload(exec, touch),
        _Payload(eval, touch),
        _Payload(getattr, [], "append"),
        _Payload(np.save, str(mark), np.eye(2)),
        _Payload(torch.save, 1, str(mark)),
        _Payload(Path, mark),
        [{"deep": _Payload(os.mkdir, str(mark))}],
    ]


@pytest.mark.parametrize("number", range(8))
def test_a_hostile_file_raises_and_runs_nothing(tmp_path, number):
    mark = tmp_path / "mark"
    payload = payloads(mark)[number]
    torch.save({"eeg": payload, "img": np.array(["x"])}, tmp_path / "train.pt")
    np.save(tmp_path / "x.npy", np.array([payload], dtype=object), allow_pickle=True)
    (tmp_path / "y.npy").write_bytes(pickle.dumps({"eeg": payload}))
    for name in ("train.pt", "x.npy", "y.npy"):
        with pytest.raises(UserError, match="not data; it was not run"):
            read_arrays(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02cnumpy\ndtype\n(X\x02\x00\x00\x00O8K\x00K\x01tR.",  # a bare dtype
        b"\x80\x02cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R.",  # no state
        pickle.dumps([[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]),
        b"\x80\x02.",
        b"",
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x04\x8e" + b"\xff" * 5 + b"\0" * 3 + b"x.",  # bytes of a length that is not there
        b"\x80\x02cnumpy._core.multiarray\nscalar\nN}X\x0c\x00\x00\x00__defaults__NsN\x86b.",  # state of our function
        b"\x80\x02cnumpy\ndtype\n(X\x02\x00\x00\x00f8K\x00K\x01t\x81.",  # an object made without its constructor
        b"\x80\x02]q\0%s." % b"".join(b"]q%c(%se" % (i, b"h%c" % (i - 1) * 40) for i in range(1, 15)),
    ],
)
def test_an_odd_pickle_is_refused(tmp_path, code):
    before = safe_pickle._scalar.__defaults__
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", code)
    (tmp_path / "x.npy").write_bytes(code)
    for name in ("x.pt", "x.npy"):
        with pytest.raises(UserError):
            read_arrays(tmp_path / name)
    assert safe_pickle._scalar.__defaults__ == before


def test_a_memo_number_does_not_take_memory(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")  # None as memo 2^31 - 1: a table of 32 GB in C
    assert read_arrays(tmp_path / "x.npy") is None


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path):
    torch.save(torch.arange(4.0), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive, zipfile.ZipFile(tmp_path / "y.pt", "w") as changed:
        for name in archive.namelist():
            data = archive.read(name)
            changed.writestr(name, data.replace(b"K\x04\x85", b"K\x09\x85"))  # size (4,) becomes (9,)
    with pytest.raises(UserError, match="reaches beyond its storage"):
        read_arrays(tmp_path / "y.pt")


def test_a_cut_file_and_a_flipped_bit_are_refused(tmp_path):
    torch.save(CONTENT, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    at = data.index(b"times")
    flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    for damaged in (flipped, *(data[: int(len(data) * part)] for part in (0.0, 0.1, 0.5, 0.9, 0.999))):
        (tmp_path / "x.pt").write_bytes(damaged)
        with pytest.raises(UserError, match="x.pt: damaged or incomplete"):
            read_arrays(tmp_path / "x.pt")


def test_missing_and_unknown_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing.pt: no such file"):
        read_arrays(tmp_path / "nothing.pt")
    with pytest.raises(UserError, match=r"notes.txt: unknown kind of file; give one of .pt"):
        read_arrays(tmp_path / "notes.txt")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_large_array_of_a_pickled_npy_file_is_mapped_and_a_cut_one_refused(tmp_path, monkeypatch, protocol):
    monkeypatch.setattr(safe_pickle, "_MAX_COPY", 100_000)
    content = {"first": np.arange(30_000.0), "names": ["a", "b"], "second": np.arange(40_000, dtype=np.float32)}
    content["small"] = np.zeros(2)
    whole = pickle.dumps(content, protocol=protocol)
    (tmp_path / "x.npy").write_bytes(whole)
    read = read_arrays(tmp_path / "x.npy")
    assert read["small"].flags.writeable
    for name in ("first", "second"):
        np.testing.assert_array_equal(read[name], content[name])
        assert not read[name].flags.writeable
        base = read[name]
        while isinstance(base, np.ndarray):
            base = base.base
        assert type(base.obj) is mmap.mmap
    assert read["names"] == ["a", "b"]
    for size in (1000, 200_000, 300_000, len(whole) - 10):
        (tmp_path / "x.npy").write_bytes(whole[:size])
        with pytest.raises(UserError, match="x.npy: damaged or incomplete"):
            read_arrays(tmp_path / "x.npy")


def swallowed(folder: Path) -> bytes:
    """Return an .npz file whose first entry has a comment that takes in the second."""
    np.savez(folder / "two.npz", one=np.eye(2), two=np.eye(3))
    content = bytearray((folder / "two.npz").read_bytes())
    content[content.index(b"PK\1\2") + 32] = 207  # the low byte of the length of the comment
    return bytes(content)


def test_damaged_headers_and_wrong_sizes_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(4))
    content = (tmp_path / "x.npy").read_bytes()
    giant = content.replace(b"(4, 4)", b"(4, 4000000000)").replace(b" " * 9 + b"\n", b"\n")
    np.savez(tmp_path / "x.npz", np.eye(40))
    archive = (tmp_path / "x.npz").read_bytes()
    end = archive.rindex(b"PK\5\6")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as changed:
        changed.writestr("a.npy", giant)
    for name, damaged, message in (
        ("open.npy", content.replace(b"(4, 4)", b"[(4, 4"), ""),
        ("less.npy", content.replace(b"(4, 4)", b"(4, 2)"), "128 bytes of data where its header says 64"),
        ("more.npy", content + b"x", "129 bytes of data where its header says 128"),
        ("giant.npy", giant, "128 bytes of data where its header says 128000000000"),
        ("giant.npz", (tmp_path / "x.npz").read_bytes(), "a.npy does not have the size that its header needs"),
        ("fewer.npz", swallowed(tmp_path), "its table of contents lists 1 files of 2"),
        ("nothing.npz", archive[: end + 8] + bytes(8) + end.to_bytes(4, "little") + bytes(2), "its table of contents"),
    ):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name}: damaged or incomplete \({message}"):
            read_arrays(tmp_path / name)
    assert zipfile.ZipFile(tmp_path / "nothing.npz").namelist() == []


@pytest.mark.parametrize("error", [MemoryError(), SystemError("AST constructor recursion depth mismatch")])
def test_a_header_that_the_parser_runs_out_of_memory_on_is_refused(tmp_path, monkeypatch, error):
    np.save(tmp_path / "x.npy", np.eye(4))
    monkeypatch.setattr("ast.literal_eval", Mock(side_effect=error))
    with pytest.raises(UserError, match=rf"x.npy: damaged or incomplete \({str(error) or 'MemoryError'}\)"):
        read_arrays(tmp_path / "x.npy")


def test_a_pickle_that_ends_early_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"one": np.arange(5), "two": "x" * 9000}, path, pickle_protocol=5)
    path.write_bytes(path.read_bytes().replace(b"xxxxx", b".xxxx").replace(b"one", b"on."))
    with pytest.raises(UserError, match="damaged"):
        read_arrays(tmp_path / "x.pt")


def test_names_in_a_pickle_are_reported_in_one_line(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"\x80\x04\x8c\x02o\n\x8c\x04\x1b[2J\x93.")
    with pytest.raises(UserError, match=r"names 'o\\n.\\x1b\[2J', which is not data"):
        read_arrays(tmp_path / "x.npy")


def test_an_array_in_neither_row_nor_column_order_is_read(tmp_path):
    array = np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2)
    torch.save({"eeg": array}, tmp_path / "x.pt", pickle_protocol=5)
    (tmp_path / "x.npy").write_bytes(pickle.dumps({"eeg": array}, protocol=5))
    for name in ("x.pt", "x.npy"):
        np.testing.assert_array_equal(read_arrays(tmp_path / name)["eeg"], array)


NESTED = b")" + b"".join(b"q%ch%ch%c\x86" % (i, i, i) for i in range(60))  # tuples of pairs, 2^60 if written out
NESTED_ARGUMENTS = {
    "a key": b"\x80\x02}%sNs.",
    "an item of a set": b"\x80\x04\x8f(%s\x90.",
    "a key of an ordered dict": b"\x80\x02ccollections\nOrderedDict\n]]q\xff(%sNeeN\x86\x85R.",
    "a name of a type": b"\x80\x02cnumpy\ndtype\n%s\x85R.",
    "a shape": b"\x80\x02cnumpy._core.numeric\n_frombuffer\n"
    b"(C\x00cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R%sX\x01\x00\x00\x00CtR.",
    "an encoding": b"\x80\x02c_codecs\nencode\nX\x00\x00\x00\x00%s\x86R.",
    "a reference": b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n%sNNtQ.",
}


@pytest.mark.parametrize("place", NESTED_ARGUMENTS)
def test_nested_tuples_are_refused_at_once(tmp_path, place):
    """Their hash or text would take forever: a test that hangs has failed."""
    code = NESTED_ARGUMENTS[place] % NESTED
    (tmp_path / "x.npy").write_bytes(code)
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", code)
    for name in ("x.npy", "x.pt"):
        with pytest.raises(UserError, match=rf"{name}: damaged or incomplete"):
            read_arrays(tmp_path / name)


_ALIKE = [n * (2**61 - 1) for n in range(1, 100_000)]  # numbers that all have the hash 0
ALIKE = {
    "keys": b"\x80\x02}(" + b"".join(b"\x8a\x0c" + n.to_bytes(12, "little") + b"N" for n in _ALIKE) + b"u.",
    "memo numbers": b"\x80\x02N" + b"".join(b"p%d\n" % n for n in _ALIKE) + b".",
    "complex keys": b"\x80\x02}cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\3\0\0\0c16\x85RC\x10%b\x86RNs."
    % bytes(16),
}


@pytest.mark.parametrize("code", ALIKE.values(), ids=list(ALIKE))
def test_numbers_of_one_hash_are_refused_at_once(tmp_path, code):
    """In a dict each would be compared with all others, which takes minutes."""
    (tmp_path / "x.npy").write_bytes(code)
    with pytest.raises(UserError, match="a number of a usual size|an impossible memo number"):
        read_arrays(tmp_path / "x.npy")


@pytest.fixture(scope="module")
def bombs(tmp_path_factory) -> Path:
    """Write files of at most 1 MB that would take hundreds of megabytes if read without a limit."""
    folder = tmp_path_factory.mktemp("bombs")
    buffer, copies = np.zeros(2**18, np.uint8), 5000
    head = b"\x80\x05(\x96" + len(buffer).to_bytes(8, "little") + bytes(buffer) + b"q\0"
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85Rq\1"
    array = b"cnumpy._core.numeric\n_frombuffer\n(h\0h\1J%s\x85X\x01\x00\x00\x00CtR" % len(buffer).to_bytes(4, "little")
    (folder / "arrays.npy").write_bytes(head + dtype + array * copies + b"t.")
    (folder / "lists.npy").write_bytes(b"\x80\x02(" + b"]" * 1_000_000 + b"t.")
    text = b"X" + (2**16).to_bytes(4, "little") + b"x" * 2**16 + b"q\2"
    words = b"](" + text + b"h\2" * 200 + b"eq\3"
    words_array = (
        b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R(K\1K\xc9\x85cnumpy\ndtype\n"
    )
    words_array += b"X\x02\0\0\0O8\x85R\x89h\3tb"
    (folder / "texts.npy").write_bytes(b"\x80\x03(" + words + words_array * 400 + b"t.")
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuJ%stQ" % (2**18).to_bytes(
        4, "little"
    )
    shape = b"J%s\x85" % (2**18).to_bytes(4, "little")
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + shape + b"K\1\x85\x89NtR"
    with zipfile.ZipFile(folder / "tensors.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02(" + tensor * 2000 + b"t.")
        archive.writestr("x/data/0", bytes(2**20))
    np.savez_compressed(folder / "zeros.npz", np.zeros(3 * 2**27, np.uint8))
    return folder


@pytest.mark.parametrize("name", ["arrays.npy", "lists.npy", "texts.npy", "tensors.pt", "zeros.npz"])
def test_a_small_file_does_not_take_much_memory(bombs, monkeypatch, name):
    path = bombs / name
    assert path.stat().st_size < 1.5e6
    with pytest.raises(UserError, match=rf"{name}: its \d+ bytes become far more .* set BVSA_MAX_READ_BYTES"):
        read_arrays(path)
    if name == "zeros.npz":
        monkeypatch.setenv("BVSA_MAX_READ_BYTES", str(2**31))
        assert read_arrays(path)["arr_0"].nbytes == 3 * 2**27
    monkeypatch.setenv("BVSA_MAX_READ_BYTES", "much")
    with pytest.raises(UserError, match="BVSA_MAX_READ_BYTES is 'much'; it must be a number of bytes"):
        read_arrays(path)
