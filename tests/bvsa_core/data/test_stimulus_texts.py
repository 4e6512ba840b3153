"""Captions and words of stimuli: every kind of file, names in every form, and what is missing or wrong."""

import json
from dataclasses import replace

import fake_eeg
import pytest

from bvsa_core.data.dataset import Dataset
from bvsa_core.data.layouts.convert import convert
from bvsa_core.data.layouts.source import ConversionOptions
from bvsa_core.data.stimulus_texts import read_texts, stored_texts
from bvsa_core.errors import UserError
from bvsa_core.training.config import RunDataConfig
from bvsa_core.training.run_data import RunData

IMAGES = ["training_images/00001_ice_cream/ice_cream_01b.jpg", "test_images/00002_bat1/bat1_07s.jpg"]
CONCEPTS = ["ice_cream", "bat1"]
CAPTIONS = ["a cone, with a scoop", "a bat hanging from a branch"]
ROWS = list(zip(IMAGES, CONCEPTS, CAPTIONS))
FILES = {
    "paths.csv": "image,text\n" + "".join(f'{image},"{text}"\n' for image, _, text in ROWS),
    "names.tsv": "Caption\tImage\n" + "".join(f"{text}\t{image.rpartition('/')[2]}\n" for image, _, text in ROWS),
    "stems.json": json.dumps({image.rpartition("/")[2][:-4]: text for image, _, text in ROWS}),
    "concepts.csv": "\ufeffconcept,text\n" + f'Ice cream,"{CAPTIONS[0]}"\nBAT1, {CAPTIONS[1]} \n',
    "both.csv": f'image,concept,text\n,ice_cream,"{CAPTIONS[0]}"\nbat1_07s.jpg,bat1,{CAPTIONS[1]}\n',
}
THINGS = "Word\tuniqueID\tDefinition\nice cream\tice_cream\tfrozen\nbat\tbat1\tan animal\nbat\tbat2\ta stick\n"


@pytest.mark.parametrize("name", FILES)
def test_captions_are_read_from_every_kind_of_file(name, tmp_path):
    (tmp_path / name).write_text(FILES[name], "utf-8")
    texts = read_texts(tmp_path / name, None)
    assert texts.source == name and texts.captions_of(IMAGES, CONCEPTS) == CAPTIONS
    assert RunData(RunDataConfig(data=tmp_path, texts=tmp_path / name)).prompts(IMAGES, CONCEPTS) == CAPTIONS


def test_an_images_own_caption_comes_before_its_concepts(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"bat1": "any bat", "bat1_07s.jpg": "this bat"}))
    texts = read_texts(tmp_path / "c.json", None)
    assert texts.captions_of([IMAGES[1], "bat1_08s.jpg"], ["bat1", "bat1"]) == ["this bat", "any bat"]
    with pytest.raises(
        UserError, match=r"c.json: 1 captions of image\(s\) are missing \(.*ice_cream_01b.jpg\); add them"
    ):
        texts.captions_of(IMAGES, CONCEPTS)


def test_prompts_take_the_words_of_the_list_of_objects(tmp_path):
    (tmp_path / "things_concepts.tsv").write_text(THINGS)
    config = RunDataConfig(data=tmp_path, concepts=tmp_path / "things_concepts.tsv", prompt="A photo of a {object}.")
    prompts = ["A photo of a ice cream.", "A photo of a bat."]
    assert RunData(config).prompts(IMAGES, CONCEPTS) == prompts
    assert RunData(replace(config, prompt="{concept}")).prompts(IMAGES, CONCEPTS) == ["ice_cream", "bat"]
    assert RunData(config).stimulus_texts.source == "words of things_concepts.tsv"
    with pytest.raises(UserError, match=r"1 words of concept\(s\) are missing \(zebra\); add them"):
        RunData(config).prompts(IMAGES, ["zebra", "bat1"])


def test_a_store_keeps_the_texts_of_its_images(tmp_path):
    planted = fake_eeg.plant(0)
    fake_eeg.ubp(tmp_path / "source", planted)
    names = {split: planted.concepts(split) for split in fake_eeg.PARTS}
    shown = sorted({*names["train"], *names["test"]})
    captions = tmp_path / "captions.csv"
    captions.write_text("concept,text\n" + "".join(f"{name},picture of {name}\n" for name in [*shown, "other"]))
    store = tmp_path / "store"
    (said,) = convert(tmp_path / "source", store, "EEG", ConversionOptions(texts=captions))[1:]
    assert said == f"texts of captions.csv, in {store / 'texts.json'}"
    assert "other" not in (store / "texts.json").read_text() and Dataset(store).name == "THINGS-EEG2"
    run_data = RunData(RunDataConfig(data=store))
    for split, concepts in names.items():
        assert run_data.prompts(planted.images(split), concepts) == [f"picture of {name}" for name in concepts]
    words = tmp_path / "words.tsv"
    words.write_text("uniqueID\tWord\n" + "".join(f"{name}\t{name[:-2]} thing\n" for name in shown))
    convert(tmp_path / "source", store, "EEG", ConversionOptions(concepts=words))  # the same subjects, other texts
    assert stored_texts(store).source == "words of words.tsv"
    assert RunData(RunDataConfig(data=store)).prompts(planted.images("test")[:1], ["new_0"]) == [
        "A photo of a new thing."
    ]
    words.write_text("uniqueID\tWord\nseen_0\tx\n")
    with pytest.raises(UserError, match=r"words of concept\(s\) are missing \(.*new_0"):
        convert(tmp_path / "source", store, "EEG", ConversionOptions(concepts=words))
    assert stored_texts(store).words["new 0"] == "new thing"
    (store / "texts.json").write_text('{"source": 1}')
    with pytest.raises(UserError, match="texts.json: source must be text; delete it, or convert the recordings again"):
        stored_texts(store)


WRONG = {
    "a.csv": ("name,text\nx,y\n", "a.csv: lacks a column; it needs image or concept, and text or caption"),
    "b.csv": ("", "b.csv: lacks a column"),
    "c.csv": ("image,text\nx.jpg,\n", "c.csv: 'x.jpg' has the text ''; neither may be empty"),
    "d.csv": ("image,text\n,y\n", "d.csv: '' has the text 'y'; neither may be empty"),
    "e.csv": ("image,text\nX_1,y\nx 1,z\n", "e.csv: 'x 1' has two texts; keep one of them"),
    "f.csv": ("image,text\n", "f.csv: names nothing; give another file"),
    "g.txt": ("x", "g.txt: unknown kind of file; give .csv, .tsv or, for captions, .json"),
    "h.json": ('{"x": 1}', "h.json: x must be text; give another file"),
    "i.json": ("[]", "i.json: holds list where an object is needed"),
    "j.csv": ("image,text\n\0,y\n" + "x" * 200_000, "j.csv: damaged"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused(name, tmp_path):
    (tmp_path / name).write_text(WRONG[name][0])
    with pytest.raises(UserError) as caught:
        read_texts(tmp_path / name, None)
    assert WRONG[name][1] in str(caught.value)


def test_words_need_their_columns_and_no_captions_beside_them(tmp_path):
    (tmp_path / "a.csv").write_text(FILES["paths.csv"])
    with pytest.raises(UserError, match="a.csv: lacks a column; it needs uniqueid or unique_id, and word"):
        read_texts(None, tmp_path / "a.csv")
    with pytest.raises(UserError, match="--texts and --concepts are both given; .* give one of them"):
        read_texts(tmp_path / "a.csv", tmp_path / "a.csv")
    with pytest.raises(UserError, match="none.csv: no such file"):
        read_texts(tmp_path / "none.csv", None)
