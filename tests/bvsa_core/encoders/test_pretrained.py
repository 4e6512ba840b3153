"""Pretrained models of braindecode, of random weights and tiny, saved and loaded without a network."""

import json
import shutil
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.signal import resample_poly
from trainings import train_run

from bvsa_core import encoders
from bvsa_core.data.dataset import RecordingAxes
from bvsa_core.data.things_eeg import OCCIPITAL_CHANNELS
from bvsa_core.encoders import InputSpec
from bvsa_core.encoders._braindecode import resampling_matrix
from bvsa_core.errors import UserError
from bvsa_core.report.comparison_table import ComparisonRow, notes
from bvsa_core.report.tables import method_results
from bvsa_core.training.config import RunDataConfig
from bvsa_core.training.run import load_method
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder

ARGUMENTS = {
    "Labram": {"num_layers": 1, "num_heads": 4},
    "REVE": {"embed_dim": 24, "depth": 1, "heads": 2, "head_dim": 8},
    "CBraMod": {"n_layer": 1},
    "BIOT": {"embed_dim": 16, "num_heads": 2, "num_layers": 1},
}
NAMES = OCCIPITAL_CHANNELS[:6]
FIRST_ROWS = {"Labram": ("temporal_embedding", 1), "BIOT": ("encoder.channel_tokens.weight", 0)}


@pytest.fixture(autouse=True)
def positions(tmp_path, monkeypatch) -> None:
    """Give REVE its positions of electrodes, which it would download."""
    content = {name: [0.1 * i, 0.2, -0.01 * i * i] for i, name in enumerate([*OCCIPITAL_CHANNELS, "Cz"])}
    (tmp_path / "reve_positions.json").write_text(json.dumps(content))
    monkeypatch.setenv("REVE_POSITIONS_PATH", str(tmp_path))


@cache
def axes(rate: float = 250.0, time: int = 250, names: tuple[str, ...] = tuple(NAMES)) -> RecordingAxes:
    return RecordingAxes(names, tuple(i / rate for i in range(time)))


def save(kind: str, folder: Path, n_chans: int = 9, n_times: int = 600, **arguments) -> dict[str, torch.Tensor]:
    """Save a random model as braindecode publishes its own: of other channels, a longer window and ten classes."""
    import braindecode.models

    sizes = {"n_chans": n_chans, "n_times": n_times, "n_outputs": 10, "sfreq": 200, **ARGUMENTS[kind], **arguments}
    model = getattr(braindecode.models, kind)(**sizes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    folder.mkdir(exist_ok=True)
    model._save_pretrained(folder)
    return model.state_dict()


def build(kind: str, pretrained: str | Path, on: RecordingAxes | None = None, **options) -> torch.nn.Module:
    on = on or axes()
    chosen = {"pretrained": str(pretrained), "arguments": ARGUMENTS.get(kind, {}), **options}
    settings = encoders.options_class(f"braindecode:{kind}")(**chosen)
    return encoders.build(f"braindecode:{kind}", InputSpec(len(on.channels), len(on.times), 8), settings, on)


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_pretrained_weights_are_loaded_but_for_the_last_layer(kind, tmp_path, seed):
    saved = save(kind, tmp_path / "saved")
    for file in ("folder", "weights.safetensors", "weights.pth"):
        path = tmp_path / (file if file != "folder" else "saved")
        if file == "weights.safetensors":
            safetensors.torch.save_file({name: value.contiguous() for name, value in saved.items()}, path)
        elif file == "weights.pth":
            torch.save({"model": dict(saved), "epoch": 3}, path)
        encoder = build(kind, path)
        before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
        assert encoders.load_pretrained(torch.nn.ModuleList([encoder])) == []
        for name, value in encoder.model.state_dict().items():
            if name.startswith("final_layer"):
                assert torch.equal(value, before[name])
                continue
            expected = saved[name]
            if name == FIRST_ROWS.get(kind, ("",))[0]:
                expected = expected.narrow(FIRST_ROWS[kind][1], 0, len(NAMES) if kind == "BIOT" else 2)
            assert torch.equal(value, expected), name
        embedding = encoder(torch.randn(3, len(NAMES), 250))
        assert embedding.shape == (3, 8) and embedding.isfinite().all()


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_recordings_are_resampled_padded_and_mapped_as_the_model_alone_would_take_them(kind, tmp_path, seed):
    """The oracle resamples by scipy, pads by NumPy, and calls braindecode's own class."""
    names = (NAMES[0].lower(), "EOG", *NAMES[1:4])
    encoder = build(kind, "random", axes(250.0, 300, names)).eval()
    recordings = torch.randn(2, 5, 300)
    known = [0, 2, 3, 4] if kind in ("Labram", "REVE") else [0, 1, 2, 3, 4]
    resampled = resample_poly(recordings.numpy()[:, known].astype(float), 4, 5, axis=-1, padtype="line")
    time = 240 if kind == "BIOT" else 400
    given = torch.from_numpy(np.pad(resampled, [(0, 0), (0, 0), (0, time - 240)])).float()
    inputs = {"ch_names": NAMES[:4]} if kind == "Labram" else {}
    if kind == "REVE":
        positions = json.loads((tmp_path / "reve_positions.json").read_text())
        inputs["pos"] = torch.tensor([positions[name] for name in NAMES[:4]]).expand(2, -1, -1)
    torch.testing.assert_close(encoder(recordings), encoder.model(given, **inputs), rtol=1e-4, atol=1e-5)
    dropped = ", without EOG" if len(known) == 4 else ""
    padded = "240 time points" if kind == "BIOT" else "padded from 240 to 400 time points"
    expected = f"resampled from 250 to 200 Hz; {padded}; {len(known)} of 5 channels{dropped}"
    assert encoder.note == f"braindecode's {kind} with random weights; tuned, with a new last layer; {expected}"


@pytest.mark.parametrize("time, rate, new_rate", [(250, 250.0, 200.0), (120, 200.0, 200.0), (141, 100.0, 256.0)])
def test_resampling_is_that_of_scipy_and_keeps_lines(time, rate, new_rate, seed):
    matrix = resampling_matrix(time, rate, new_rate)
    recordings = np.random.default_rng(seed).standard_normal((3, time))
    expected = resample_poly(recordings, round(new_rate), round(rate), axis=1, padtype="line")
    np.testing.assert_allclose(torch.from_numpy(recordings).float() @ matrix, expected, atol=2e-5)
    rising = 5 + torch.arange(time) / rate
    np.testing.assert_allclose(rising @ matrix, 5 + np.arange(matrix.shape[1]) / new_rate, rtol=0.003)


@pytest.mark.parametrize("kind", ["CBraMod", "BIOT"])
def test_a_frozen_model_trains_its_last_layer_alone(kind, seed):
    encoder = build(kind, "random", frozen=True).train()
    assert "frozen but for a new last layer" in encoder.note
    recordings = torch.randn(4, len(NAMES), 250)
    assert torch.equal(encoder(recordings), encoder(recordings))  # no dropout where nothing is trained
    encoder(recordings).square().sum().backward()
    with_gradient = {name for name, each in encoder.model.named_parameters() if each.grad is not None}
    assert with_gradient == {name for name, _ in encoder.model.named_parameters() if name.startswith("final_layer")}
    tuned = build(kind, "random").train()
    assert not torch.equal(tuned(recordings), tuned(recordings))
    tuned(recordings).square().sum().backward()
    assert any(each.grad is not None for name, each in tuned.model.named_parameters() if name.startswith("encoder"))


def message(kind: str, pretrained: str | Path, on: RecordingAxes | None = None, **options) -> str:
    with pytest.raises(UserError) as caught:
        encoders.load_pretrained(build(kind, pretrained, on, **options))
    return str(caught.value)


def test_weights_that_do_not_fit_are_refused_and_unknown_tensors_said(tmp_path, seed):
    saved = save("CBraMod", tmp_path / "saved")
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"something": torch.ones(2)}, file)
    problem = message("CBraMod", file)
    assert f"pretrained {file}: not the weights of this CBraMod: tensors are" in problem
    assert "missing (" in problem and "1 unknown (something); give weights of this class" in problem
    body = {name: value for name, value in saved.items() if not name.startswith("final_layer")}
    safetensors.torch.save_file({**body, "decoder.weight": torch.ones(2)}, file)
    assert encoders.load_pretrained(build("CBraMod", file)) == ["1 unknown tensors left out (decoder.weight)"]
    first = next(iter(body))
    safetensors.torch.save_file({**body, first: torch.ones(3)}, file)
    assert f"1 of another shape ({first} [3] where the model has" in message("CBraMod", file)
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    assert "no tensors by name inside; give the state_dict" in message("CBraMod", tmp_path / "tensor.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "code.pt")
    assert "which is not data; it was not run" in message("CBraMod", tmp_path / "code.pt")
    assert "no such file or folder, and no repository" in message("CBraMod", tmp_path / "none.pt")


def test_a_saved_model_of_other_arguments_rate_or_channels_is_refused_with_the_flag(tmp_path, seed):
    save("BIOT", tmp_path / "biot", num_heads=4, drop_prob=0.1)
    flag = '--encoder_options.arguments \'{"embed_dim": 16, "num_heads": 4, "num_layers": 1}\''
    assert message("BIOT", tmp_path / "biot").endswith(flag)
    save("CBraMod", tmp_path / "fast", sfreq=256)
    assert message("CBraMod", tmp_path / "fast").endswith("at 256 Hz; give --encoder_options.model_rate 256")
    few = tuple(f"E{i}" for i in range(17))
    save("BIOT", tmp_path / "few")  # of nine channels
    assert "encoder.channel_tokens.weight [9, 16] where the model has [17, 16]" in message(
        "BIOT", tmp_path / "few", axes(250.0, 250, few)
    )
    infos = [{"ch_name": name} for name in ("O1", "O2")]
    ARGUMENTS["EEGNet"] = {}
    try:
        save("EEGNet", tmp_path / "eegnet", n_chans=2, n_times=200, chs_info=infos)
        assert 'is of other channels; give --channels \'["O1", "O2"]\'' in message("EEGNet", tmp_path / "eegnet")
        same = build("EEGNet", tmp_path / "eegnet", axes(200.0, 200, ("O1", "O2")))
        assert encoders.load_pretrained(same) == []
    finally:
        del ARGUMENTS["EEGNet"]


def test_recordings_that_a_pretrained_model_cannot_take_are_refused(tmp_path, monkeypatch):
    meg = axes(250.0, 250, ("MLC11", "MLC12"))
    with pytest.raises(UserError, match="encoder braindecode:Labram: Labram knows none of the channels MLC11, MLC12"):
        build("Labram", "random", meg)
    numbered = RecordingAxes(tuple(NAMES), tuple(map(float, range(250))))
    with pytest.raises(UserError, match=r"with a sampling rate; give --encoder_options.sampling_rate"):
        build("CBraMod", "random", numbered)
    assert build("CBraMod", "random", numbered, sampling_rate=250.0).resampling.shape == (250, 200)
    options = encoders.options_class("braindecode:CBraMod")
    with pytest.raises(UserError, match="frozen is true, and there are no pretrained weights"):
        options(frozen=True)
    with pytest.raises(UserError, match="model_rate is 0; it must be positive"):
        options(model_rate=0)
    (tmp_path / "reve_positions.json").unlink()
    import braindecode.models.reve as reve

    monkeypatch.setattr(reve.pooch, "retrieve", lambda *args, **keys: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(UserError, match="Failed to download the position bank.* prefetch it to .*reve_positions.json"):
        build("REVE", "random")


def test_a_repository_that_cannot_be_reached_names_the_remedy(monkeypatch):
    import huggingface_hub

    def refuse(*args, **keys):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    problem = message("CBraMod", "braindecode/cbramod-pretrained")
    assert "neither a file nor a repository that can be downloaded (no network); run 'hf download" in problem
    assert problem.endswith("--local-dir FOLDER' on a machine with network, copy FOLDER here, and give it")


def test_a_run_says_what_its_pretrained_encoder_did_and_needs_its_weights_no_more(small_data, tmp_path, seed):
    saved = save("BIOT", tmp_path / "biot", n_chans=18)
    options = {"pretrained": str(tmp_path / "biot"), "arguments": ARGUMENTS["BIOT"], "frozen": True}
    said = []
    data = RunData(
        RunDataConfig(data=small_data), lambda task, *of: said.append(of[-1]) if task == "brain encoder" else None
    )
    result = train_run(tmp_path / "run", data, method="vanilla", encoder="braindecode:BIOT", encoder_options=options)
    note = (
        "braindecode's BIOT with biot weights; frozen but for a new last layer; resampled from 250 to 200 Hz; "
        "padded from 80 to 200 time points; 17 of 17 channels"
    )
    assert said == [note] and result.protocol.brain == note
    assert f"recordings by {note}" in notes(
        ComparisonRow("eeg", "intra", "vanilla", result=method_results([result])[0])
    )
    shutil.rmtree(tmp_path / "biot")
    folder = RunFolder(tmp_path / "run")
    method = load_method(folder, RunData(RunDataConfig(data=small_data)))
    body = {
        name: each for name, each in method.encoder.model.state_dict().items() if not name.startswith("final_layer")
    }
    for name, value in body.items():
        assert torch.equal(value, saved[name][:17] if name == FIRST_ROWS["BIOT"][0] else saved[name])
    test = data.split("sub-01", "test")
    torch.testing.assert_close(method.query_embeddings(test.recordings)[0], folder.embeddings().brain_image)


def test_without_pretrained_weights_a_class_is_built_as_it_is():
    options = encoders.options_class("braindecode:EEGNet")()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = encoders.build("braindecode:EEGNet", InputSpec(6, 250, 8), options)
        slow = encoders.build("braindecode:EEGNet", InputSpec(6, 250, 8), options, axes(125.0))
    assert type(plain).__name__ == "EEGNet" and plain.sfreq == 250.0 and slow.sfreq == 125.0
