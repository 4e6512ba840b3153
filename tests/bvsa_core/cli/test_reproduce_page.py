"""The commands of docs/reproduce.md, read from the page, go from a download to the table for each published form."""

import io
import re
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fake_eeg
import numpy as np
import pytest
import raw_files
from PIL import Image
from publisher_server import HOSTS, Publishers, publishers

from bvsa_core.cli import main
from bvsa_core.data import stimulus_set
from bvsa_core.data.downloads.registry import published_datasets
from bvsa_core.data.quality import check
from bvsa_core.data.store import read_header
from bvsa_core.data.things_eeg import OCCIPITAL_CHANNELS

PAGE = (Path(__file__).parents[3] / "docs" / "reproduce.md").read_text()
BLOCKS = dict(re.findall(r"<!-- (\S+) -->\n```bash\n(.*?)```", PAGE, re.DOTALL))
SMALL = {  # the real job on files of this size: flags that a command gets beside those of the page
    "data download": ["--subjects", "1", "--mirror"],
    "data meg": ["--sensors", "4"],
    "data images": ["--size", "32"],
    "reproduce main": [
        *("--methods", "vanilla", "--seeds", "1", "--epochs", "1", "--batch_size", "8"),
        *("--vision", "tiny", "--resamples", "0", "--threads", "1"),
    ],
}  # fmt: skip


def picture(number: int) -> bytes:
    """Return a JPEG that no other number has."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def files_in(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def publish_images(server: Publishers, names: list[str]) -> None:
    """Publish the images of THINGS-EEG2 as their authors do: two zip files and image_metadata.npy."""
    metadata = {}
    for split, part in fake_eeg.PARTS.items():
        own = [name for name in names if name.startswith(f"{part}_images/")]
        archive = zipped({name: picture(names.index(name)) for name in own})
        server.files["osf", "y63gw", f"{part}_images.zip"] = archive
        metadata |= {f"{split}_img_concepts": [name.split("/")[1] for name in own]}
        metadata |= {f"{split}_img_files": [name.split("/")[2] for name in own]}
    stream = io.BytesIO()
    np.save(stream, metadata)
    server.files["osf", "y63gw", "image_metadata.npy"] = stream.getvalue()
    server.files["osf", "y63gw", "LICENSE.txt"] = b"terms"


def publish_planted(server: Publishers) -> fake_eeg.Planted:
    planted = fake_eeg.plant(3)
    publish_images(server, [name for split in fake_eeg.PARTS for name in planted.images(split)])
    return planted


def things_eeg2_ubp(server: Publishers, folder: Path) -> None:
    fake_eeg.ubp(folder, publish_planted(server))
    server.add("huggingface", "Haitao999/things-eeg", folder)


def things_eeg2_atm(server: Publishers, folder: Path) -> None:
    fake_eeg.osf(folder, publish_planted(server), whole=False, pickled=True, folder="sub-01")
    server.add("huggingface", "LidongYang/EEG_Image_decode", folder, "Preprocessed_data_250Hz/")


def things_eeg2(server: Publishers, folder: Path) -> None:
    planted, recordings = publish_planted(server), {}
    for split, part in fake_eeg.PARTS.items():
        samples = planted.whole[split][:, :, -len(OCCIPITAL_CHANNELS) :, :100].astype(float)
        content = {"preprocessed_eeg_data": samples, "ch_names": list(OCCIPITAL_CHANNELS)}
        stream = io.BytesIO()
        np.save(stream, content | {"times": np.arange(-20, 80) / 100})
        recordings[f"sub-01/preprocessed_eeg_{part}.npy"] = stream.getvalue()
    server.files["osf", "anp5v", "sub-01.zip"] = zipped(recordings)


def things_eeg2_raw(server: Publishers, folder: Path) -> None:
    random = np.random.default_rng(4)
    numbers = raw_files.numbers_of
    raw_files.write_subject(folder / "sub-01", lambda *key: raw_files.recording(numbers(*key), 250.0, 1e-5, 0, random))
    server.files["figshare", "18470912", "sub-01.zip"] = zipped(files_in(folder))
    raw_files.write_images(folder / "names")
    publish_images(server, sorted(files_in(folder / "names")))


def things_meg(server: Publishers, folder: Path) -> None:
    import fake_meg

    random = np.random.default_rng(5)
    rows = fake_meg.attributes(random)
    samples = random.standard_normal((len(rows), fake_meg.SENSORS, len(fake_meg.TIMES)), np.float32)
    (folder / "derivatives" / "preprocessed").mkdir(parents=True)
    path = folder / "derivatives" / "preprocessed" / "preprocessed_P1-epo.fif"
    fake_meg.epochs_of(rows, samples).save(path, split_size=1_300_000, verbose="error")
    fake_meg.write_table(folder / "sourcedata" / "sample_attributes_P1.csv", rows)
    (folder / "CHANGES").write_text("not selected")
    server.add("openneuro", "ds004212", folder)
    for number, (concept, path) in enumerate(fake_meg.images()):
        split = "test" if "_13x" in path else "training"
        name = f"Image_set/{split}_images/{concept:05d}_{path.removeprefix('images/')}"
        server.files["huggingface", "Haitao999/things-meg", name] = picture(number)


FORMS = {
    "things-eeg2-ubp": things_eeg2_ubp,
    "things-eeg2-atm": things_eeg2_atm,
    "things-eeg2": things_eeg2,
    "things-eeg2-raw": things_eeg2_raw,
    "things-meg": things_meg,
}


@pytest.fixture
def server() -> Iterator[Publishers]:
    with publishers() as made:
        yield made


def test_the_page_has_every_form():
    assert BLOCKS.keys() == FORMS.keys() and all(f"`{name}`" in PAGE for name in published_datasets())


@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.set_index")  # of MNE's own call
@pytest.mark.parametrize("form", FORMS)
def test_from_a_download_to_the_table(form, server, tmp_path, monkeypatch, capsys, one_thread):
    FORMS[form](server, tmp_path / "published")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stimulus_set, "_EXPECTED", {"training_images": [6], "test_images": [3]})
    monkeypatch.setattr(check, "_NAMES", {})  # whose numbers of images the check knows
    addresses = [f"{host}={address}" for host, address in server.mirrors().items()]
    for line in BLOCKS[form].splitlines():
        words = shlex.split(line)[1:]
        flags = SMALL.get(" ".join(words[:2]), [])
        used = [each for each in addresses if each.split("=")[0] in hosts_of(form)]
        flags = [*flags, *used] if flags[-1:] == ["--mirror"] else flags
        assert main([*words, *flags]) == 0, (line, capsys.readouterr())
    printed = capsys.readouterr().out
    assert "1 of 10 subjects" in printed or "1 of 4 subjects" in printed
    assert "files have the publisher's checksums" in printed and "please cite" in printed
    table = (tmp_path / "RUNS" / "table.md").read_text()
    modality = "MEG" if form == "things-meg" else "EEG"
    assert f"{modality} intra-subject | vanilla" in table and "BVSA" in table
    rate = {"things-eeg2": "100 Hz, 0 to 0.79 s", "things-meg": "200 Hz, 0 to 1 s"}.get(form, "250 Hz, 0 to 0.996 s")
    assert f"our recordings: {rate}, source {published_datasets()[form].layout}" in " ".join(table.split())
    if "--plan" in BLOCKS[form]:
        assert "1 cells (1 EEG)" in printed and "missing: features of tiny for EEG" in printed
    if (tmp_path / "STORE").exists():
        assert read_header(tmp_path / "STORE" / "sub-01").layout == published_datasets()[form].layout


def hosts_of(form: str) -> set[str]:
    """Return the hosts that a form comes from."""
    of = {"osf": HOSTS[:2], "figshare": HOSTS[2:4], "huggingface": HOSTS[4:5], "openneuro": HOSTS[5:]}
    return {host for source in published_datasets()[form].sources for host in of[source.publisher]}
