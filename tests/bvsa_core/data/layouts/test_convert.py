"""Errors in epochs are reported by file; tested on a layout of arrays in memory."""

import mmap
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from bvsa_core.data.layouts import convert as conversion
from bvsa_core.data.layouts.files import blocks_of, check_array, open_file
from bvsa_core.data.layouts.source import ConversionOptions, Epochs, SubjectSource
from bvsa_core.data.store import SubjectWriter, read_header
from bvsa_core.errors import UserError
from bvsa_core.io import safe_pickle
from bvsa_core.io.memmap import mmap_of
from bvsa_core.progress import no_progress


@pytest.fixture
def convert(tmp_path, seed, monkeypatch):
    """Convert 3 conditions x 2 repetitions x 4 channels x 10 samples, with one change; returns the folder."""

    def run(split="train", whole=False, scale=1.0, **changes):
        def read(source, which, context):
            data = np.random.default_rng(seed).standard_normal((3, 2, 4, 10)) * (scale if which == split else 1)
            about = {"images": list("abc"), "concepts": list("xyz"), "channels": list("CDEF")}
            about |= {"times": np.arange(-2, 8) / 100} | (changes if which == split else {})
            blocks = blocks_of(data.__getitem__, data.shape, data.itemsize)
            return Epochs(tmp_path / f"{which}.npy", data.shape, blocks, units="V", processing=["First."], **about)

        monkeypatch.setattr(conversion, "layouts", lambda: {"some": SimpleNamespace(read=read)})
        source, options = SubjectSource("some", "sub-01", tmp_path, []), ConversionOptions(whole_epoch=whole)
        with SubjectWriter(tmp_path / "store", "sub-01", {}) as writer:
            conversion.convert_subject(source, writer, options, no_progress)
        return tmp_path / "store" / "sub-01"

    return run


def test_samples_from_onset_on_are_kept_and_the_steps_recorded(convert):
    header = read_header(convert())
    assert header.times == [i / 100 for i in range(8)] and header.sampling_rate == 100
    assert header.processing == ["First.", "Samples from 0 to 0.07 s kept, as float16."]
    assert (header.splits["train"].shape, header.units, header.modality) == ([3, 2, 4, 8], "V", "EEG")


WRONG = [
    ({"channels": list("CDE")}, "train.npy: 4 channels, and 3 names; fetch or make it again"),
    ({"channels": None}, "4 channels, and their names are no list of names"),
    ({"channels": [["C"], ["D", "E"]]}, "4 channels, and their names are no list of names"),
    ({"channels": list("CDEC")}, r"a channel's name appears twice \(C, D, E, C\)"),
    ({"channels": ["C", "D", "E", "stim"]}, "channel stim is the trigger, which reveals the images"),
    ({"times": np.arange(9) / 100}, r"times of shape \(9,\) for 10 samples"),
    ({"times": np.zeros(10)}, "must be increasing seconds"),
    ({"times": np.arange(-20, 80, 10)}, "times run from -20 to 70; they must be seconds"),
    ({"times": ["now"] * 10}, "its times are not numbers"),
    ({"times": np.arange(-5, 15) / 100}, "20 times, of which the last 10 start at 0.05 s, not at image onset"),
    ({"times": np.arange(-20, -10) / 100}, "times run from -0.2 to -0.11 s, so nothing is left after image onset"),
    ({"whole": True, "times": np.arange(10) / 100}, "has no samples before image onset"),
    ({"split": "test", "channels": list("CDEG")}, "test.npy: its channels are not those of the train data"),
    ({"split": "test", "times": np.arange(-2, 8) / 200}, "test.npy: its times are not those of the train data"),
    ({"scale": 1e-5}, "samples are about .*e-0[56], too small for float16; bring them to microvolts"),
    ({"scale": 1e6}, r"sub-01 train: condition 0 \(a\) has samples that are not finite in float16"),
    ({"scale": np.nan}, r"sub-01 train: condition 0 \(a\) has samples that are not finite in float16"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_errors_are_reported_and_nothing_is_made(changes, message, convert, tmp_path):
    with pytest.raises(UserError, match=message):
        convert(**changes)
    assert not (tmp_path / "store" / "sub-01").exists()


def test_anything_but_an_array_of_recordings_is_refused(tmp_path):
    for data, message in (
        ({"a": 1}, r"holds a dict where an array of \(conditions, repetitions, channels, time\) belongs"),
        (np.zeros((2, 2, 2, 2), int), "int64 of shape .* must be floats"),
        (np.zeros((2, 2, 2)), r"float64 of shape \(2, 2, 2\); it must be floats of shape \(conditions"),
        (np.zeros((2, 0, 2, 2)), ".* it must be floats of shape"),
    ):
        with pytest.raises(UserError, match=f"x.npy: {message}"):
            check_array(tmp_path / "x.npy", data)


def test_arrays_are_memory_mapped_and_other_files_refused(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.arange(30_000.0))
    (tmp_path / "y.npy").write_bytes(pickle.dumps({"data": np.arange(30_000.0)}))
    assert mmap_of(open_file(tmp_path / "y.npy")["data"]) is None
    monkeypatch.setattr(safe_pickle, "_MAX_COPY", 100_000)
    for data in (open_file(tmp_path / "x.npy"), open_file(tmp_path / "y.npy")["data"]):
        mmap_of(data.reshape(2, -1)).madvise(mmap.MADV_DONTNEED)
        np.testing.assert_array_equal(data, np.arange(30_000.0))
    whole = (tmp_path / "x.npy").read_bytes()
    for content in (whole[:-8], whole[:20], b"", b"PK\x03\x04", b"nonsense"):
        (tmp_path / "x.npy").write_bytes(content)
        with pytest.raises(UserError, match="x.npy: damaged or incomplete"):
            open_file(tmp_path / "x.npy")
    with pytest.raises(UserError, match="z.npy: no such file"):
        open_file(tmp_path / "z.npy")
