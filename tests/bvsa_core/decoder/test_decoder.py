"""The decoder: recordings and images in every form, the same scores as a run, scikit-learn's manners, and the Hub."""

import json
import pickle
import random
import shutil
import warnings
from functools import partial
from pathlib import Path

import huggingface_hub
import mne
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import sklearn.exceptions
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_score

from bvsa_core import Dataset, Decoder, RunConfig, RunData, RunFolder, UserError, from_arrays, run
from bvsa_core.data.dataset import DEMO_FOLDER
from bvsa_core.decoder.inputs import Images

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:target. tiny is a toy")]
CHANNELS, TIMES = ["P7", "Pz", "O1", "Oz"], np.arange(20) / 100
SETTINGS = {"method": "vanilla", "epochs": 30, "lr": 3e-3, "batch_size": 64, "device": "cpu"}
TRAIN, TEST = slice(0, 40), slice(40, 52)


class Toy:
    """Images of one colour a quarter, and recordings (52, 4, 20) that depend on the colours."""

    def __init__(self, folder: Path):
        rng = np.random.default_rng(0)
        colours = rng.integers(0, 256, (52, 2, 2, 3), dtype=np.uint8)
        self.pixels = colours.repeat(24, 1).repeat(24, 2)  # (52, 48, 48, 3)
        self.folder, self.names = folder, [f"{i:05d}_thing{i}/thing{i}_01.png" for i in range(52)]
        for name, pixels in zip(self.names, self.pixels):
            (folder / name).parent.mkdir(parents=True)
            Image.fromarray(pixels).save(folder / name)
        self.paths = [str(folder / name) for name in self.names]
        self.features = colours.reshape(52, 12) / 128.0 - 1
        signal = self.features @ rng.standard_normal((12, 80))
        self.trials = [(signal + rng.standard_normal(signal.shape)).reshape(52, 4, 20) for _ in range(2)]
        self.recordings = self.trials[0]

    def epochs(self, part: slice) -> mne.Epochs:
        """Return both trials of every image as epochs, named by their events."""
        data = np.concatenate([trials[part] for trials in self.trials]) * 1e-6
        names = self.names[part]
        codes = np.tile(np.arange(len(names)) + 1, 2)
        events = np.stack([np.arange(len(codes)), 0 * codes, codes], axis=1)
        info = mne.create_info(CHANNELS, 100.0, "eeg", verbose="ERROR")
        event_id = {name: code for code, name in enumerate(names, start=1)}
        return mne.EpochsArray(data, info, events, 0.0, event_id, verbose="ERROR")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Toy:
    return Toy(tmp_path_factory.mktemp("toy") / "images")


@pytest.fixture(scope="module")
def fitted(toy) -> Decoder:
    """A decoder of given features; tests leave it as it is."""
    return Decoder(**SETTINGS, target=toy.features).fit(toy.recordings[TRAIN], range(40))


def test_given_features_are_decoded_far_above_chance(toy, fitted):
    assert fitted.score(toy.recordings[TEST], range(40, 52)) >= 0.5  # chance is 1/12
    assert len(fitted.history_) == 30 and fitted.history_[-1]["loss"] < fitted.history_[0]["loss"]
    protocol = fitted.result_.protocol
    assert (protocol.encoder, protocol.gallery, protocol.leak) == ("given features", 12, None)
    found = fitted.retrieve(toy.recordings[TEST], range(40, 52), top=3)
    assert found.rows.shape == found.similarity.shape == (12, 3) and len(found) == 12
    right = [i for i, rank in enumerate(fitted.result_.ranks) if rank == 1]
    assert [i for i, names in enumerate(found.images) if names[0] == str(40 + i)] == right
    assert len(fitted.retrieve(toy.recordings[TEST]).gallery) == 52


def test_progress_is_shown_on_request(toy, capsys):
    decoder = Decoder(**{**SETTINGS, "epochs": 2}, target=toy.features, verbose=True)
    decoder.fit(toy.recordings[TRAIN], range(40))
    loss = decoder.history_[-1]["loss"]
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1].startswith(f"epochs 2/2, loss {loss:.4f}") and not shown.out
    decoder.set_params(verbose=False).fit(toy.recordings[TRAIN], range(40))
    assert capsys.readouterr() == ("", "")


def test_similarities_are_products_of_embeddings_and_features(toy, fitted):
    embeddings = fitted.embed(toy.recordings[TEST])
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    unit = toy.features[TEST] / np.linalg.norm(toy.features[TEST], axis=1, keepdims=True)
    scores = embeddings @ unit.T
    ranks = (scores >= scores.diagonal()[:, None]).sum(1)
    assert ranks.tolist() == fitted.evaluate(toy.recordings[TEST], range(40, 52)).ranks
    found = fitted.retrieve(toy.recordings[TEST], range(40, 52), top=12)
    np.testing.assert_allclose(found.similarity, np.sort(scores)[:, ::-1], atol=1e-5)


def test_a_data_set_gives_the_result_of_a_run(small_data, tmp_path):
    settings = {"epochs": 1, "batch_size": 32, "validation": 10, "bank": small_data / "Image_feature", "device": "cpu"}
    config = RunConfig.of("ubp", data=small_data, **settings)
    result = run(config, RunData(config), RunFolder(tmp_path / "run"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        decoder = Decoder("ubp", "tiny", **settings).fit(Dataset(small_data))
    same = decoder.evaluate(Dataset(small_data))
    assert (same.ranks, same.images, same.protocol) == (result.ranks, result.images, result.protocol)
    assert same.samples == result.samples < decoder.training_.samples + result.held_out
    assert decoder.training_.dataset == "synthetic" and decoder.training_.axes.sampling_rate == 250
    loaded = Decoder.load(decoder.save(tmp_path / "saved"), bank=settings["bank"], device="cpu")
    assert loaded.evaluate(Dataset(small_data)).ranks == result.ranks
    frame = result.to_frame()
    assert frame["window"].unique().tolist() == ["0 to 0.396 s"] and frame["sampling_rate"].eq(250).all()
    best = loaded.retrieve(Dataset(small_data), top=1)
    assert best.gallery == result.images
    assert [names[0] == name for names, name in zip(best.images, result.images)] == [rank == 1 for rank in result.ranks]
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "**synthetic data: made on a machine" in card and "| sampling rate | 250 Hz |" in card
    assert "| channels | 17: P7, " in card and "settings, the released code's in brackets" in card
    others = Decoder("ubp", "tiny", **settings, setting="inter", subject="sub-02").fit(Dataset(small_data))
    assert others.training_.subjects == ["sub-01"]
    assert others.evaluate(Dataset(small_data)).protocol.setting == "inter-subject"


def test_paths_pixels_epochs_and_torch_data_sets_are_one_training(toy, tmp_path):
    decoder = partial(Decoder, **{**SETTINGS, "epochs": 2}, target="tiny")
    x = np.concatenate([trials[TRAIN] for trials in toy.trials]).astype(np.float32)
    ids = np.tile(np.arange(40), 2)
    pairs = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(ids))
    forms = {
        "paths": (x, [toy.paths[i] for i in ids]),
        "pixels": (x, toy.pixels[ids]),
        "channels first": (list(x), list(toy.pixels[ids].transpose(0, 3, 1, 2))),
        "tensors": (torch.tensor(x), torch.tensor(toy.pixels[ids])),
        "epochs": (toy.epochs(TRAIN), toy.folder),
        "epochs and a mapping": (toy.epochs(TRAIN), dict(zip(toy.names, toy.pixels))),
        "epochs, one each": (toy.epochs(TRAIN), [toy.paths[i] for i in ids]),
        "sessions": ({"sub-01": [toy.epochs(TRAIN)[:30], toy.epochs(TRAIN)[30:]]}, toy.folder),
        "torch": (pairs, toy.paths),
        "torch and a mapping": (pairs, {i: toy.pixels[i] for i in range(40)}),
        "recordings": (from_arrays(x, [toy.names[i] for i in ids], channels=CHANNELS, times=TIMES), toy.folder),
    }
    test = np.concatenate([trials[TEST] for trials in toy.trials]).astype(np.float32)
    losses = {}
    for name, given in forms.items():
        made = decoder().fit(*given)
        assert made.training_.samples == 40 and made.training_.repetitions == 2, name
        losses[name] = [metrics["loss"] for metrics in made.history_]
        if name in ("pixels", "epochs"):
            shown = toy.epochs(TEST) if name == "epochs" else test
            images = toy.folder if name == "epochs" else np.tile(toy.pixels[TEST], (2, 1, 1, 1))
            assert made.evaluate(shown, images).protocol.repetitions == 2
            assert made.embed(shown).shape[0] == 24
        if name == "torch":
            np.testing.assert_allclose(made.embed(pairs), made.embed(x), rtol=1e-5)
    for name, each in losses.items():
        np.testing.assert_allclose(each, losses["paths"], rtol=1e-5, err_msg=name)
    named = [toy.epochs(TRAIN)[:30], toy.epochs(TRAIN)[30:]]
    for session in named:
        session.info["subject_info"] = {"his_id": "anna"}
    joined = decoder().fit(named, toy.folder)
    assert joined.training_.subjects == ["anna"] and joined.training_.samples == 40
    about = decoder().fit(*forms["epochs"]).training_
    assert (about.axes.channels, about.units, about.axes.sampling_rate) == (tuple(CHANNELS), "µV", 100)
    assert "thing7" in about.concepts
    card = (decoder().fit(*forms["epochs"]).save(tmp_path) / "README.md").read_text()
    assert "| images by | tiny (a toy encoder for synthetic images" in card and "| EEG, µV |" in card
    assert "| window after image onset | 0 to 0.19 s |" in card and "Not evaluated before" in card


def test_subjects_are_a_list_or_a_dict(toy):
    two = [trials[TRAIN] for trials in toy.trials]
    decoder = Decoder(**SETTINGS, target=toy.features).fit(two, range(40))
    assert decoder.training_.subjects == ["sub-01", "sub-02"] and decoder.training_.samples == 80
    assert decoder.shape_.subjects == 2
    tests = {f"sub-0{number}": trials[TEST] for number, trials in enumerate(toy.trials, start=1)}
    each = [decoder.evaluate({name: part}, range(40, 52)).scores.top1 for name, part in tests.items()]
    assert min(each) > 1 / 12 and decoder.score(tests, range(40, 52)) == pytest.approx(np.mean(each))
    assert decoder.score(tests, {name: range(40, 52) for name in tests}) == pytest.approx(np.mean(each))
    assert decoder.result_.protocol.setting == "intra-subject"
    assert decoder.evaluate(toy.recordings[TEST], range(40, 52)).protocol.setting == "inter-subject"
    assert decoder.embed(two).shape == (80, 12)
    with pytest.raises(UserError, match="recordings: 2 subjects; evaluate one at a time"):
        decoder.evaluate(tests, range(40, 52))


def test_scikit_learn_clones_searches_and_validates(toy):
    decoder = Decoder(**SETTINGS, target=toy.features, method_options={"scale": "softplus"})
    copy = clone(decoder)
    assert copy.get_params().keys() == decoder.get_params().keys() and copy.get_params()["epochs"] == 30
    assert copy.set_params(epochs=3, method="nice") is copy and (copy.epochs, copy.method) == (3, "nice")
    assert decoder.epochs == 30 and "epochs=30" in repr(decoder)
    fast = Decoder(**{**SETTINGS, "epochs": 10}, target=toy.features)
    groups = np.arange(52)  # one image a group: no image is in training and test
    scores = cross_val_score(fast, toy.recordings, np.arange(52), groups=groups, cv=GroupKFold(3))
    assert scores.shape == (3,) and scores.mean() > 2 / 17
    with pytest.raises(sklearn.exceptions.NotFittedError, match="not fitted; call fit, or Decoder.load") as raised:
        decoder.embed(toy.recordings)
    assert isinstance(raised.value, UserError)
    assert np.array_equal(
        pickle.loads(pickle.dumps(fast.fit(toy.recordings, range(52)))).embed(toy.recordings),
        fast.embed(toy.recordings),
    )


def test_saved_and_loaded_it_is_the_same(toy, fitted, tmp_path):
    loaded = Decoder.from_pretrained(fitted.save(tmp_path / "saved"), device="cpu")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "config.json", "model.safetensors", "seen.json", "README.md"
    }  # fmt: skip
    np.testing.assert_array_equal(loaded.embed(toy.recordings), fitted.embed(toy.recordings))
    assert loaded.get_params() == {
        **SETTINGS, "target": None, "layers": None, "verbose": False, "channels": "all",
    }  # fmt: skip
    with pytest.raises(UserError, match="loaded without features; give some by set_params"):
        loaded.score(toy.recordings[TEST], range(40, 52))
    loaded.set_params(target=toy.features)
    assert loaded.score(toy.recordings[TEST], range(40, 52)) == fitted.score(toy.recordings[TEST], range(40, 52))
    with pytest.raises(UserError, match="the training data have 40 concept.s. .* and 40 image.s. .* of the test set"):
        loaded.score(toy.recordings, range(52))
    loaded.set_params(allow_leak=True)
    assert loaded.evaluate(toy.recordings, range(52)).protocol.leak == "test data are trained on"
    card = (loaded.save(tmp_path / "saved") / "README.md").read_text()
    assert "leak test data are trained on" in card and "library_name: fovblur" in card


DAMAGE = {
    "config.json: damaged or incomplete": ("config.json", b"{"),
    "config.json: format 2, where this release reads 1": ("config.json", b'{"format": 2}'),
    "config.json: settings, features, .* missing": ("config.json", b'{"format": 1}'),
    "seen.json: no such file": ("seen.json", None),
    "training: concepts must be a list of names": ("seen.json", b'{"concepts": 3, "images": []}'),
    "model.safetensors: no such file": ("model.safetensors", None),
    "model.safetensors: damaged or incomplete": ("model.safetensors", pickle.dumps({"weight": 1})),
    "model.safetensors: not the weights of config.json": (
        "model.safetensors",
        safetensors.numpy.save({"weight": np.zeros(3, np.float32)}),
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_folders_are_one_line(fitted, tmp_path, message):
    name, content = DAMAGE[message]
    path = fitted.save(tmp_path) / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        Decoder.load(tmp_path)


def test_settings_of_a_folder_are_checked(fitted, tmp_path):
    path = fitted.save(tmp_path) / "config.json"
    content = json.loads(path.read_text())
    for part, value, message in (
        ("settings", {**content["settings"], "method": "os.system"}, "unknown method 'os.system'"),
        ("settings", {**content["settings"], "epochs": "many"}, "config.json: epochs must be a whole number"),
        ("training", {**content["training"], "samples": 0}, "shape, axes and samples contradict each other"),
        ("shape", {**content["shape"], "embedding": 2**62}, "model.safetensors: not the weights of config.json"),
        ("shape", {**content["shape"], "time": 10**9}, "shape, axes and samples contradict each other"),
    ):
        path.write_text(json.dumps({**content, part: value}))
        with pytest.raises(UserError, match=message):
            Decoder.load(tmp_path)
    places = {name: "/elsewhere" for name in ("data", "bank", "cache_dir")}
    path.write_text(json.dumps({**content, "settings": {**content["settings"], **places, "device": "cuda:7"}}))
    config = Decoder.load(tmp_path).config_
    assert (config.data, config.bank, config.cache_dir, config.device) == (DEMO_FOLDER, None, None, "auto")


def test_odd_values_in_a_folder_are_one_line_or_harmless(fitted, tmp_path, seed):
    rng = random.Random(seed)
    path = fitted.save(tmp_path) / "config.json"
    content = path.read_text()
    outcomes = set()
    for _ in range(80):
        changed = json.loads(content)
        inner, name = changed, rng.choice(list(changed))
        while isinstance(inner[name], dict) and rng.random() < 0.8:
            inner = inner[name]
            name = rng.choice(list(inner))
        inner[name] = rng.choice([None, -1, 0, 1e308, 2**62, True, "x", "\ud800", [], [1, 2], {}, {"a": 1}])
        path.write_text(json.dumps(changed))
        try:
            Decoder.load(tmp_path, device="cpu")
            outcomes.add("loaded")
        except UserError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes


def test_the_hub_gets_the_files_and_gives_them_back(toy, fitted, tmp_path, monkeypatch):
    class Api:
        """Keeps what is uploaded, as the Hub would."""

        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, repo_id, private, exist_ok):
            assert private and exist_ok
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, repo_id, folder_path, **options):
            shutil.copytree(folder_path, tmp_path / repo_id)
            return f"commit of {repo_id}"

    def download(repo_id, allow_patterns, **options):
        if not (tmp_path / repo_id).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("no network")
        assert set(allow_patterns) == {"config.json", "model.safetensors", "seen.json"} and options["revision"] == "v1"
        return str(tmp_path / repo_id)

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    monkeypatch.setattr("bvsa_core.decoder.estimator.snapshot_download", download)
    assert fitted.push_to_hub("someone/decoder", private=True, token="secret") == "commit of someone/decoder"
    again = Decoder.from_pretrained("someone/decoder", revision="v1", device="cpu")
    np.testing.assert_array_equal(again.embed(toy.recordings), fitted.embed(toy.recordings))
    with pytest.raises(UserError, match=r"some/else: neither a folder nor a repository .*\(no network\)"):
        Decoder.from_pretrained("some/else")


def test_frames(toy, fitted, monkeypatch):
    result = fitted.evaluate(toy.recordings[TEST], range(40, 52))
    frame = result.to_frame()
    assert len(frame) == 12 and frame["top1"].mean() == pytest.approx(result.scores.top1)
    assert {"image", "rank", "method", "subject", "seed", "gallery", "encoder"} <= set(frame)
    assert pd.concat([frame, frame.assign(seed=1)]).groupby(["method", "seed"])["rank"].mean().nunique() == 1
    found = fitted.retrieve(toy.recordings[TEST], range(40, 52), top=2)
    frame = found.to_frame()
    assert frame.loc[3].tolist()[:3] == [1, 2, found.images[1][1]] and len(frame) == 24
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    for each in (result, found):
        with pytest.raises(UserError, match="pandas cannot be imported .*; frames need: pip install pandas"):
            each.to_frame()


def test_mistakes_name_the_argument_and_the_remedy(toy, fitted, tmp_path):
    x, good = toy.recordings, {**SETTINGS, "epochs": 1}
    features, tiny = partial(Decoder, **good, target=toy.features), partial(Decoder, **good)
    oracle, bravl = {"selection": "oracle"}, {"method": "bravl", "preset": "code"}
    epochs = toy.epochs(TRAIN)
    flawed = x.copy()
    flawed[3, 1, 5] = np.nan
    mistakes = {
        "unknown setting 'epoch'; did you mean 'epochs'": lambda: Decoder(epoch=3),
        "unknown setting 'vision'; .*give it as target": lambda: Decoder(vision="RN50"),
        "unknown method 'nise'; did you mean 'nice'": lambda: Decoder(method="nise").fit(x, toy.paths),
        "target: torch.int64 of shape .*; give the name of an image": lambda: Decoder(target=np.arange(3)).fit(x, x),
        "method bvsa also reads texts, and the target": lambda: Decoder("bvsa", toy.features).fit(x, range(52)),
        "sees images at 3 blur level.s.; choose vanilla": lambda: Decoder("ubp", toy.features).fit(x, range(52)),
        "selection 'oracle' reads the test set": lambda: features(**oracle).fit(x, range(52)),
        "preset 'code' reads the test set": lambda: Decoder(**bravl).fit(x, toy.paths),
        "images: 3 for 52 trials; give one a trial": lambda: features().fit(x, range(3)),
        "images: '52'; target is an array of features, so images are its rows, 0 to 51": lambda: features().fit(
            x, range(1, 53)
        ),
        "images: 'thing7'; target is an array of features, so": lambda: features().fit(x, ["thing7"] * 52),
        "images: no file nowhere.png; give paths": lambda: tiny().fit(x, ["nowhere.png"] * 52),
        "images: float64 of shape .*; give paths, or uint8": lambda: tiny().fit(x, toy.pixels / 255),
        "images: arrays of recordings need one for each": lambda: tiny().fit(x, toy.folder),
        "images: given as arrays without names, and method bvsa": lambda: Decoder("bvsa").fit(x, toy.pixels),
        "images: none for '00000_thing0/thing0_01.png'; there are a": lambda: tiny().fit(epochs, {"a": "b.png"}),
        "concepts: recordings have ids": lambda: tiny().fit(epochs, toy.folder, ["a"] * 80),
        "concepts: none for '0'; there are a": lambda: features().fit(x, range(52), {"a": "b"}),
        r"recordings: float64 of shape \(52, 4\); give floats": lambda: features().fit(x[..., 0], range(52)),
        r"recordings: condition 3 \(3\) has NaN or infinite": lambda: features().fit(flawed, range(52)),
        r"recordings: condition 0 \(0\) has NaN or infinite": lambda: fitted.embed(flawed[3:]),
        "recordings: there are none": lambda: features().fit([], range(52)),
        "sub-01: 19 samples .* where the run was trained on 20 samples": lambda: fitted.embed(x[..., 1:]),
        "top is 13; the gallery has 12": lambda: fitted.retrieve(x, range(12), top=13),
        "gate 'always' reads texts": lambda: fitted.retrieve(x, gate="always"),
        "unknown gate of a search 'paper'; choose one of none, always": lambda: fitted.retrieve(x, gate="paper"),
        "epochs is a setting of the training": lambda: Decoder.load(tmp_path / "saved", epochs=3),
    }
    fitted.save(tmp_path / "saved")
    for message, mistake in mistakes.items():
        with pytest.raises(UserError, match=message):
            mistake()


def test_a_gallery_is_a_folder_or_a_list(toy):
    with pytest.warns(UserWarning, match="target: tiny is a toy encoder for synthetic images, and own recordings are"):
        decoder = Decoder(**{**SETTINGS, "epochs": 1}).fit(toy.recordings[TRAIN], toy.paths[TRAIN])
    folder, listed = decoder.retrieve(toy.recordings[:2], toy.folder), decoder.retrieve(toy.recordings[:2], toy.paths)
    assert folder.gallery == sorted(toy.paths) and folder.images == listed.images
    gated = decoder.retrieve(toy.recordings[:2], toy.paths, gate="always")
    assert not np.allclose(gated.similarity, listed.similarity)
    with pytest.raises(UserError, match="images: give the images to search"):
        decoder.retrieve(toy.recordings)
    with pytest.raises(UserError, match="images: no image in .*empty"):
        (toy.folder / "empty").mkdir()
        decoder.retrieve(toy.recordings, toy.folder / "empty")


@pytest.mark.parametrize(("method", "encoder"), [("bravl", "eeg_project"), ("atm", "atm"), ("bvsa", "tsconv")])
def test_methods_that_read_texts_learn_from_names_or_given_concepts(toy, method, encoder):
    times = np.arange(160) / 250  # which the encoders need
    x = np.repeat(toy.recordings, 8, axis=2)
    train, test = (from_arrays(x[part], toy.names[part], channels=CHANNELS, times=times) for part in (TRAIN, TEST))
    decoder = Decoder(method, encoder=encoder, epochs=1, batch_size=20, device="cpu").fit(train, toy.folder)
    result = decoder.evaluate(test, toy.folder)
    assert sorted(result.images) == sorted(toy.names[TEST]) and max(result.ranks) <= 12
    named = Decoder(method, encoder=encoder, epochs=1, batch_size=20, device="cpu")
    named.fit(train, toy.pixels[TRAIN], [f"thing{i}" for i in range(40)])
    np.testing.assert_allclose(named.history_[0]["loss"], decoder.history_[0]["loss"], rtol=1e-5)
    if method == "bravl":
        with pytest.raises(UserError, match="bravl classifies test images; it has no embeddings"):
            decoder.embed(test)
        with pytest.raises(UserError, match="without times, and the training takes a window of 0.07 to 0.39 s; make"):
            named.fit(x[TRAIN], toy.paths[TRAIN])


def test_one_id_for_two_files_is_refused(toy, tmp_path):
    (tmp_path / toy.names[0]).parent.mkdir(parents=True)
    shutil.copy(toy.paths[1], tmp_path / toy.names[0])
    parts = {name: from_arrays(toy.recordings[:1], toy.names[:1]) for name in ("anna", "ben")}
    with pytest.raises(UserError, match="images: .* have one id; give paths in place of ids"):
        Decoder(**SETTINGS).fit(parts, {"anna": toy.folder, "ben": tmp_path})


def test_equal_pixels_are_one_image(tmp_path):
    images = Images(0, tmp_path)
    black = np.zeros((4, 6, 3), np.uint8)
    assert images.add(black) == images.add(black.transpose(2, 0, 1)) != images.add(black.reshape(6, 4, 3))
    assert len(list(tmp_path.iterdir())) == 2
