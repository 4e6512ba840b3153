"""A damaged file is read correctly or is a UserError of one line; never a crash, a hang, or code that the file names.

FOVBLUR_FUZZ is the number of damaged versions of each kind of file.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import fake_eeg
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from bvsa_core.data import store
from bvsa_core.data.dataset import Dataset, Recordings, read_recordings
from bvsa_core.data.from_arrays import write_subject
from bvsa_core.data.layouts import meg_trials, stimuli
from bvsa_core.data.layouts.files import read_description
from bvsa_core.data.quality.check import check_dataset
from bvsa_core.data.stimulus_set import import_images
from bvsa_core.data.stimulus_texts import read_texts, stored_texts
from bvsa_core.io.image_file import read_image
from bvsa_core.io.safe_readers import read_arrays
from bvsa_core.io.text_files import read_yaml
from bvsa_core.retrieval.gallery import EmbeddingMatrix

if not sys.platform.startswith("linux"):
    pytest.skip("needs fork and RLIMIT_AS", allow_module_level=True)
import fuzz
from fuzz import Kind

VERSIONS = int(os.environ.get("FOVBLUR_FUZZ", 80))
DATA = np.random.default_rng(0).standard_normal((3, 2, 4, 5))
IMAGES = [f"training_images/{i + 1:05d}_thing{i}/thing{i}_01b.jpg" for i in range(3)]
CHANNELS, TIMES = ["O1", "Oz", "O2", "Pz"], [0.0, 0.004, 0.008, 0.012, 0.016]
PROGRESSIVE = {"progressive": True, "exif": b"Exif\0\0II*\0" + bytes(30)}


def stored(folder: Path) -> Path:
    parts = []
    for split in store.SPLITS:
        names = [image.replace("thing", split) for image in IMAGES]
        parts.append(Recordings(DATA, names, [split] * 3, CHANNELS, np.array(TIMES), "EEG", [[1, 2]] * 3))
    (folder / "dataset.json").write_text('{"name": "planted", "modality": "EEG"}')
    return write_subject(folder, "sub-01", *parts)


def recordings(folder: Path) -> Path:
    images = np.array(IMAGES).reshape(-1, 1).repeat(2, 1)
    content = {"eeg": DATA.astype(np.float16), "img": images, "ch_names": CHANNELS, "times": np.array(TIMES)}
    torch.save({**content, "session": np.zeros((3, 2))}, folder / "train.pt", pickle_protocol=5)
    return folder / "train.pt"


def arrays_layout(folder: Path) -> Path:
    """Write plain arrays of four channels, and image_metadata.npy."""
    place = folder / "sub-01"
    place.mkdir(parents=True)
    names = {}
    for split in store.SPLITS:
        np.save(place / f"{split}.npy", DATA.astype(np.float32))
        names[f"{split}_img_concepts"] = [f"{i:05d}_{split}{i}" for i in range(3)]
        names[f"{split}_img_files"] = [f"{i}.jpg" for i in range(3)]
    np.save(folder / "image_metadata.npy", names)
    (folder / "info.json").write_text(json.dumps({"ch_names": CHANNELS, "times": TIMES, "normalization": "mvnn"}))
    return folder


def session_layout(folder: Path) -> Path:
    """Write two sessions like things_eeg2_dataset."""
    place = folder / "sub-01"
    place.mkdir(parents=True)
    (place / "meta_sub-01.json").write_text(json.dumps({"ch_names": CHANNELS, "times": TIMES}))
    for part in fake_eeg.PARTS.values():
        np.save(place / f"preprocessed_eeg_{part}_sub-01.npy", np.stack([DATA, DATA]).astype(np.float32))
        np.save(place / f"img_conditions_{part}_sub-01.npy", np.array([[1, 2, 3], [3, 1, 2]]))
        for i in range(3):
            image = folder / "Image_set" / f"{part}_images" / f"{i:05d}_{part}{i}" / f"{i}.jpg"
            image.parent.mkdir(parents=True)
            image.touch()
    return folder


def images(folder: Path) -> Path:
    content = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    for name, options in (("a.jpg", {}), ("b.png", {}), ("c.jpg", PROGRESSIVE)):
        Image.fromarray(content).save(folder / name, **options)
    with zipfile.ZipFile(folder / "training_images.zip", "w") as archive:
        for i, name in enumerate(IMAGES):
            archive.write(folder / "a.jpg", name, zipfile.ZIP_DEFLATED if i else zipfile.ZIP_STORED)
    return folder


def all_kinds(root: Path) -> list[Kind]:
    place = {name: root / name for name in ("store", "pt", "npy", "arrays", "sessions", "stills", "images", "tables")}
    for name in ("store", "pt", "npy", "stills", "tables"):
        place[name].mkdir()
    subject = stored(place["store"])
    train, npy = recordings(place["pt"]), place["npy"]
    tensors = {
        "weight": torch.from_numpy(DATA[0]).float(),
        "bias": torch.arange(7),
        "half": torch.ones(3, 2).half().t(),
    }
    torch.save(tensors, npy / "tensors.pt")
    raw = {"raw_eeg_data": DATA, "ch_names": CHANNELS, "sfreq": 1000, "times": TIMES}
    np.save(npy / "saved.npy", raw)
    (npy / "dumped.npy").write_bytes(pickle.dumps(raw, protocol=4))
    (npy / "old.npy").write_bytes(pickle.dumps(raw, protocol=2))
    np.save(npy / "plain.npy", DATA)
    np.savez(npy / "both.npz", one=DATA, two=np.arange(5))
    np.save(npy / "rows.npy", DATA.reshape(-1, 5).astype(np.float32))
    safetensors.torch.save_file({"image": torch.rand(4, 5)}, npy / "rows.safetensors")
    safetensors.torch.save_file({"one": torch.eye(3), "two": torch.arange(5)}, npy / "x.safetensors")
    arrays, sessions = arrays_layout(place["arrays"]), session_layout(place["sessions"])
    stills, tables = images(place["stills"]), place["tables"]
    (tables / "a.csv").write_text('trial_type,things_image_nr,image_path\nexp,1,a/b.jpg\ntest,2,"c, d.jpg"\n' * 3)
    (tables / "image_paths.csv").write_text("images/a/a_01b.jpg\nimages/b/b_01b.jpg\n")
    (tables / "image_concept_index.csv").write_text("1\n2\n")
    (tables / "settings.yaml").write_text("method: bvsa\ndata: {window: [0.0, 1.0], subjects: [sub-01]}\nepochs: 20\n")
    (tables / "captions.csv").write_text('image,concept,text\nthing0_01b.jpg,,"one, two"\n,thing1,three\n')
    (tables / "captions.json").write_text('{"thing0_01b": "one", "thing1": "two"}')
    (tables / "texts.json").write_text('{"source": "a.csv", "captions": {"thing0": "one"}, "words": {}}')
    conditions = sessions / "sub-01" / "img_conditions_test_sub-01.npy"
    lists = tables / "image_paths.csv", tables / "image_concept_index.csv"
    return [
        Kind("recordings .pt", train, read_arrays, exact=True),
        Kind("recordings", train, lambda path: _plain(read_recordings(path)), exact=True),
        Kind("tensors .pt", npy / "tensors.pt", read_arrays, exact=True),
        *(Kind(name, npy / name, read_arrays) for name in ("saved.npy", "dumped.npy", "old.npy", "plain.npy")),
        Kind("x.safetensors", npy / "x.safetensors", read_arrays),
        Kind("both.npz", npy / "both.npz", read_arrays, exact=True),
        Kind("header.json", subject / "header.json", lambda path: store.read_header(path.parent)),
        Kind("header.json, checked", subject / "header.json", lambda path: _check(path.parents[1])),
        Kind("store array", subject / "train.npy", lambda path: _samples(path.parent), exact=True),
        Kind("store array, checked", subject / "train.npy", lambda path: _check(path.parents[1])),
        Kind("dataset.json", place["store"] / "dataset.json", lambda path: Dataset(path.parent).description),
        Kind("arrays' train.npy", arrays / "sub-01" / "train.npy", lambda path: _check(arrays)),
        Kind("image_metadata.npy", arrays / "image_metadata.npy", lambda path: _check(arrays)),
        Kind("info.json", arrays / "info.json", lambda path: _check(arrays)),
        Kind("meta.json", sessions / "sub-01" / "meta_sub-01.json", lambda path: _check(sessions)),
        Kind("img_conditions", conditions, lambda path: _check(sessions)),
        *(Kind(name, stills / name, read_image) for name in ("a.jpg", "b.png", "c.jpg")),
        Kind("zip of images", stills / "training_images.zip", lambda path: _import(path, root / "images")),
        Kind("zip of names", stills / "training_images.zip", stimuli._in_zip),
        *(
            Kind(f"captions.{kind}", tables / f"captions.{kind}", lambda path: _captions(path))
            for kind in ("csv", "json")
        ),
        Kind("texts.json", tables / "texts.json", lambda path: stored_texts(path.parent)),
        Kind("attributes", tables / "a.csv", meg_trials.read_attributes),
        *(Kind(table.name, table, lambda path: meg_trials.read_images(*lists)) for table in lists),
        *(Kind(f"gallery {rows.suffix}", rows, _first_rows) for rows in sorted(npy.glob("rows.*"))),
        Kind("settings.yaml", tables / "settings.yaml", lambda path: read_yaml(path, "make it again")),
        Kind("description", arrays / "info.json", read_description),
    ]


def _samples(folder: Path) -> np.ndarray:
    header = store.read_header(folder)
    data = store.open_array(folder, header, "train")
    store.verify(folder, header, "train")
    return np.array(data)


def _plain(read: Recordings) -> dict:
    return {"data": np.array(read.data), "images": read.images, "times": read.times, "channels": read.channels}


def _check(folder: Path) -> None:
    problems = check_dataset(folder).problems
    assert all("\n" not in line for line in problems), problems


def _first_rows(path: Path) -> object:
    return EmbeddingMatrix(path).read(slice(0, 2))


def _captions(path: Path) -> object:
    texts = read_texts(path, None)
    return texts and texts.captions_of(IMAGES[:1], ["thing0"])


def _import(path: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    import_images(path, target, 8)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> list[Kind]:
    return all_kinds(tmp_path_factory.mktemp("fuzz"))


def test_damaged_files_are_read_correctly_or_refused(kinds, seed):
    donors = [kind.path.read_bytes() for kind in kinds]
    findings = [line for kind in kinds for line in fuzz.hunt(kind, range(VERSIONS), seed, donors)]
    assert not findings, "\n".join(findings[:50])


def _hang(path: Path) -> None:
    while True:
        pass


BAD = {
    "the process died of SIGPROF": _hang,
    "the process died of SIGSEGV": lambda path: os.kill(os.getpid(), 11),
    "did os.system": lambda path: os.system("true"),
    "did subprocess.Popen": lambda path: subprocess.Popen(["true"]).wait(),
    "did pickle.find_class": lambda path: pickle.loads(b"cos\ngetcwd\n."),
    "opened /dev/full for writing": lambda path: Path("/dev/full").open("wb").close(),
    "executed a string": lambda path: exec("1"),
    "MemoryError": lambda path: bytes(2**32),
    "IndexError": lambda path: [][1],
    "read as something else": Path.read_bytes,
}


@pytest.mark.parametrize("finding", BAD)
def test_forbidden_actions_of_a_reader_are_reported(tmp_path, monkeypatch, finding):
    monkeypatch.setattr(fuzz, "CPU_SECONDS", 0.2)
    (tmp_path / "x").write_bytes(bytes(100))
    exact = finding == "read as something else"

    def read(path: Path) -> object:
        return BAD[finding](path) if exact or path.read_bytes() != bytes(100) else None

    findings = fuzz.hunt(Kind("x", tmp_path / "x", read, exact), range(3), 1, [bytes(range(256))])
    assert 1 <= len(findings) <= 3 and all(finding in line for line in findings), findings
    assert fuzz.hunt(Kind("x", tmp_path / "x", lambda path: None), range(3), 1, [b"x"]) == []
