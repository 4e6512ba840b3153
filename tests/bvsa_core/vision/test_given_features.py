"""Features of a user's own in place of an image encoder, in the layouts of public code, without any image file."""

import json
import shutil
import signal

import numpy as np
import pytest
import safetensors.numpy
import torch
from command_output import error_of

from bvsa_core import Dataset, RunConfig, RunData, RunFolder, UserError, evaluate, run, train
from bvsa_core.cli import main
from bvsa_core.training.checkpoint import Checkpointer, Stopped
from bvsa_core.training.run import load_method
from bvsa_core.vision.given_features import read_given_features
from bvsa_core.vision.views import SHARP, Level

WIDTH = 6
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def data(small_data, tmp_path_factory):
    """The small data set without a picture."""
    folder = tmp_path_factory.mktemp("features") / "data"
    shutil.copytree(small_data, folder, ignore=shutil.ignore_patterns("*.jpg", "*.png", "Image_feature"))
    return folder


@pytest.fixture(scope="module")
def images(data):
    return tuple(list(Dataset(data).load("sub-01", split).images) for split in ("train", "test"))


@pytest.fixture(scope="module")
def arrays(images):
    return tuple(RANDOM.normal(size=(len(names), WIDTH)).astype(np.float32) for names in images)


def as_nice(folder, train, test, images):  # one layer, rows in the order of the file names
    np.save(folder / "train.npy", train[:, None])
    np.save(folder / "test.npy", test[:, None])
    return folder / "train.npy", folder / "test.npy"


def as_atm(folder, train, test, images):
    for name, part in (("train", train), ("test", test)):
        torch.save({"text_features": torch.ones(3, 2), "img_features": torch.tensor(part)}, folder / f"{name}.pt")
    return folder / "train.pt", folder / "test.pt"


def as_ubp(folder, train, test, images):  # by path
    for name, part, names in (("train", train, images[0]), ("test", test, images[1])):
        vectors = {each: torch.tensor(row) for each, row in reversed(list(zip(names, part)))}
        texts = {"dog": torch.ones(2)}
        torch.save({"text_features": texts, "img_features": vectors}, folder / f"{name}.pt")
    return folder / "train.pt", folder / "test.pt"


def by_concept(folder, train, test, images):  # (concepts, images of each, D), as NeuroBridge
    per_concept = len(train) // len({name.split("/")[1] for name in images[0]})
    np.save(folder / "train.npy", train.reshape(-1, per_concept, WIDTH))
    np.save(folder / "test.npy", test[:, None])
    return folder / "train.npy", folder / "test.npy"


def in_one_file(folder, train, test, images):
    safetensors.numpy.save_file({"features": np.concatenate([train, test])}, folder / "all.safetensors")
    return (folder / "all.safetensors",)


def with_names(folder, train, test, images):
    order = RANDOM.permutation(len(train) + len(test))
    names = np.array([f"/elsewhere/{name}" for name in [*images[0], *images[1]]])[order]
    np.savez(folder / "all.npz", features=np.concatenate([train, test])[order], images=names)
    return (folder / "all.npz",)


LAYOUTS = (as_nice, as_atm, as_ubp, by_concept, in_one_file, with_names)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_each_image_its_features(layout, images, arrays, tmp_path):
    given = read_given_features(layout(tmp_path, *arrays, images), None, *images)
    assert given.layer_count == 1 and given.widths() == [WIDTH] and not given.has_texts
    for names, array in zip(images, arrays):
        expected = array / np.linalg.norm(array, axis=1, keepdims=True)
        torch.testing.assert_close(given.of(names), torch.tensor(expected))
        raw = given.with_layers(["0"]).views(names[::-1], [SHARP], torch.device("cpu"))
        found = raw(torch.tensor([0]), torch.tensor([0.0]), torch.tensor([1]))
        torch.testing.assert_close(found, torch.tensor(array[-1:]))


@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_layers_and_a_list_of_names(suffix, images, arrays, tmp_path):
    names, order = [*images[0], *images[1]], RANDOM.permutation(sum(map(len, images)))
    layers = RANDOM.normal(size=(len(names), 3, WIDTH)).astype(np.float32)
    np.save(tmp_path / "layers.npy", layers[order])
    listed = [names[i] for i in order]
    (tmp_path / f"names{suffix}").write_text(json.dumps(listed) if suffix == ".json" else "\n".join(listed))
    given = read_given_features([tmp_path / "layers.npy"], tmp_path / f"names{suffix}", *images)
    found = given.with_layers(["-1", "0"]).of(names)
    torch.testing.assert_close(found, torch.tensor(np.concatenate([layers[:, 2], layers[:, 0]], axis=1)))
    for parts, message in ((["output"], "no output"), (["1.cls"], "no tokens"), (["3"], "no layer 3")):
        with pytest.raises(UserError, match=message):
            given.with_layers(parts)


def refused(folder, train, test, images):
    """Yield what is wrong, the files and the message."""
    names = [f"x/{i}" for i in range(len(train))]
    cases = {
        "short": (train[1:], "rows for .* images; say with --features_images"),
        "nan": (np.where(np.arange(len(train))[:, None] == 2, np.nan, train), "row 2 has NaN"),
        "table": (np.ones(5, np.float32), "is an array .5,.; give features"),
    }
    for name, (array, message) in cases.items():
        np.save(folder / f"{name}.npy", array)
        yield [folder / f"{name}.npy", folder / "test.npy"], message
    contents = {
        "levels": ({"img_features": {"low": {names[0]: torch.ones(2)}}}, "under each of low, such as blur levels"),
        "others": (dict(zip(names, torch.tensor(train))), "no features of .* its first name is 'x/0'"),
        "ragged": ({"a": torch.ones(2), "b": torch.ones(3)}, "has no features"),
        "twice": ({"features": torch.tensor(train), "images": [images[0][0]] * len(train)}, "several rows"),
        "text": ({"features": "none"}, "no array of real numbers"),
        "width": (torch.tensor(train[:, :2]), "have shapes .*must be the same"),
    }
    for name, (content, message) in contents.items():
        torch.save(content, folder / f"{name}.pt")
        yield [folder / f"{name}.pt", folder / "test.npy"], message


def test_files_that_do_not_fit_are_refused(images, arrays, tmp_path):
    np.save(tmp_path / "test.npy", arrays[1])
    for files, message in refused(tmp_path, *arrays, images):
        with pytest.raises(UserError, match=message):
            read_given_features(files, None, *images)
    np.save(tmp_path / "train.npy", arrays[0])
    with pytest.raises(UserError, match="order of their names; say with --features_images"):
        read_given_features([tmp_path / "train.npy", tmp_path / "test.npy"], None, images[0][::-1], images[1])
    given = read_given_features([tmp_path / "train.npy", tmp_path / "test.npy"], None, *images)
    for function in (lambda: given.of(["other"]), lambda: given.shared({images[0][0]}, {"other"})):
        with pytest.raises(UserError, match="none of 1 image.s. .other.; add them"):
            function()
    with pytest.raises(UserError, match="of no blur level, and the method sees images at 1 blur level"):
        given.views(images[0], [SHARP, Level(51, 0.0)], torch.device("cpu"))


def settings(data, files, **changes):
    features = dict(zip(("features", "features_test"), files))
    return RunConfig.of("vanilla", data=data, epochs=1, batch_size=64, device="cpu", **features, **changes)


def test_a_run_needs_no_image_and_says_whose_features_it_has(data, images, arrays, tmp_path, capsys):
    files = as_atm(tmp_path, *arrays, images)
    config, folder = settings(data, files), RunFolder(tmp_path / "run")
    result = run(config, RunData(config), folder)
    assert result.protocol.encoder == "features of train.pt and test.pt"
    assert set(result.features) == {"features", "features_test"}
    assert not (data / "Image_feature").exists()
    path = str(tmp_path / "run")
    main(["retrieve", path, "--top", "2"])
    main(["evaluate", path])
    main(["report", path, "--out", str(tmp_path / "page.html")])
    assert "features of train.pt and test.pt" in (tmp_path / "page.html").read_text()
    again = evaluate(train(config, RunData(config)), config, RunData(config))
    assert again.ranks.tolist() == result.ranks
    torch.save({"img_features": torch.tensor(arrays[0] + 1)}, files[0])
    for use in (lambda: load_method(folder, RunData(config)), lambda: run(config, RunData(config), folder)):
        with pytest.raises(UserError, match=r"run: features \S+train.pt is not the file of the train"):
            use()


def test_a_missing_file_is_named(data, images, arrays, tmp_path):
    config, folder = settings(data, as_atm(tmp_path, *arrays, images)), RunFolder(tmp_path / "run")
    result = run(config, RunData(config), folder)
    config.features_test.unlink()
    assert run(config, RunData(config), folder) == result  # which is complete without
    with pytest.raises(UserError, match=r"run: features_test \S+ is missing; bring it back"):
        load_method(folder, RunData(config))


def test_a_run_does_not_continue_with_other_features(data, images, arrays, tmp_path, monkeypatch):
    config, folder = settings(data, as_nice(tmp_path, *arrays, images)), RunFolder(tmp_path / "run")
    whole = Checkpointer.on_step_end

    def stop(self, *about) -> None:
        self.stopping = signal.SIGINT
        whole(self, *about)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Checkpointer, "on_step_end", stop)
        run(config, RunData(config), folder)
    kept = config.features.read_bytes()
    np.save(config.features, np.load(config.features) + 1)
    with pytest.raises(UserError, match=r"resume.pt: not the state of this run \(SHA-256 of features was"):
        run(config, RunData(config), folder)
    config.features.write_bytes(kept)
    run(config, RunData(config), folder)


def test_files_of_one_name_and_lists_of_names_have_checksums_of_their_own(data, images, arrays, tmp_path):
    for name, array in zip(("train", "test"), arrays):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "f.npy", array)
    names = tmp_path / "names.txt"
    names.write_text("\n".join([*images[0], *images[1]]))
    config = settings(data, [tmp_path / "train" / "f.npy", tmp_path / "test" / "f.npy"], features_images=names)
    folder = RunFolder(tmp_path / "run")
    result = run(config, RunData(config), folder)
    assert run(config, RunData(config), folder) == result  # it is complete
    for path, change in {
        tmp_path / "train" / "f.npy": lambda path: np.save(path, arrays[0] + 1),
        names: lambda path: path.write_text("\n".join([*images[0][::-1], *images[1]])),
    }.items():
        kept = path.read_bytes()
        change(path)
        setting = "features_images" if path == names else "features"
        with pytest.raises(UserError, match=rf"run: {setting} \S+ is not the file of the training"):
            run(config, RunData(config), folder)
        path.write_bytes(kept)


def test_numbers_of_any_real_kind_are_read(images, arrays, tmp_path):
    rows = torch.cat([*map(torch.tensor, arrays)])
    names = [*images[0], *images[1]]
    for number, content in enumerate(({"features": rows.bfloat16()}, dict(zip(names, rows.bfloat16())))):
        torch.save(content, path := tmp_path / f"{number}.pt")
        given = read_given_features([path], None, *images)
        assert torch.equal(given.features[[given.rows[name] for name in names], 0], rows.bfloat16().float())
    for number, content in enumerate(({"features": rows + 0j}, dict.fromkeys(names, "text"), rows.numpy() + 0j)):
        torch.save(content, path := tmp_path / f"wrong{number}.pt")
        with pytest.raises(UserError, match="no array of real numbers|not data"):
            read_given_features([path], None, *images)


@pytest.mark.parametrize("changes", [{"target": "layer:0"}, {"target": "layer:0", "projector": "linear"}])
def test_targets_and_projectors_take_given_features(changes, data, images, arrays, tmp_path):
    config = settings(data, as_nice(tmp_path, *arrays, images), **changes)
    trained = train(config, RunData(config))
    assert trained.shape.embedding == WIDTH


@pytest.mark.parametrize("target", ["learned", "layers:[2,0]"])
def test_samga_takes_several_layers(target, data, images, arrays, tmp_path):
    layers = [np.stack([each, each + 1, each - 1], axis=1) for each in arrays]
    files = as_nice(tmp_path, *(each[:, 0] for each in layers), images)
    for file, array in zip(files, layers):
        np.save(file, array)
    changes = {"features": files[0], "features_test": files[1], "target": target, "epochs": 1, "batch_size": 64}
    config = RunConfig.of("samga", data=data, device="cpu", **changes)
    trained = train(config, RunData(config))
    assert trained.shape.parts == (WIDTH,) * (3 if target == "learned" else 2)
    assert len(evaluate(trained, config, RunData(config)).ranks) == len(images[1])


def test_equal_features_are_a_leak(data, images, arrays, tmp_path):
    test = np.concatenate([arrays[0][:1], arrays[1][1:]])
    config = settings(data, as_nice(tmp_path, arrays[0], test, images))
    with pytest.raises(UserError, match=rf"1 image.s. \({images[1][0]}\) of the test set"):
        train(config, RunData(config))


@pytest.mark.parametrize("method", ["ubp", "atm"])
def test_methods_that_need_more_are_refused(method, data, images, arrays, tmp_path):
    files = as_nice(tmp_path, *arrays, images)
    config = RunConfig.of(method, data=data, features=files[0], features_test=files[1], device="cpu")
    message = {
        "ubp": "of no blur level, and the method sees",
        "atm": "the method reads texts, and features of train.npy",
    }
    with pytest.raises(UserError, match=message[method]):
        train(config, RunData(config))


FLAGS = {
    "leave --vision, --views": ["--features", "a.npy", "--vision", "RN50"],
    "views are online; leave --vision": ["--features", "a.npy", "--views", "online"],
    "features_test and features_images belong to features": ["--features_test", "a.npy"],
    "a.npy: no such file": ["--features", "a.npy"],
}


@pytest.mark.parametrize("message", FLAGS)
def test_settings_that_contradict_each_other_are_refused(message, data, tmp_path, capsys):
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *FLAGS[message]]) == 2
    assert message in error_of(capsys.readouterr().err)
