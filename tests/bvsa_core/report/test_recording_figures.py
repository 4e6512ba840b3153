"""Figures of recordings: every figure is drawn and saved, and missing parts are reported."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bvsa_core.cli import main
from bvsa_core.data.quality.reliability import quality
from bvsa_core.data.things_eeg import OCCIPITAL_CHANNELS
from bvsa_core.report import style
from bvsa_core.report.recording_figures import RecordingQuality, recording_figures


def fake_quality(channels=OCCIPITAL_CHANNELS, repetitions=4, modality="EEG", units="whitened") -> RecordingQuality:
    data = np.random.default_rng(0).standard_normal((6, repetitions, len(channels), 30))
    trials = {"train": {1: 12, 2: 12}, "test": {0: 6 * repetitions}}
    return RecordingQuality(quality(data), channels, np.arange(30) / 100, units, modality, trials)


def test_every_figure_is_drawn(tmp_path):
    pytest.importorskip("mne")
    figures, messages = recording_figures({"sub-01": fake_quality(), "sub-02": fake_quality()})
    kinds = ("evoked", "reliability", "covariance")
    expected = [f"{subject}-{kind}" for subject in ("sub-01", "sub-02") for kind in kinds] + ["noise-ceiling", "trials"]
    assert [figure.name for figure in figures] == expected and messages == []
    assert len(figures[0].draw().axes) == 1 + 3 + 1  # curves, maps, colour bar
    png, pdf = style.save(figures[1:2], tmp_path)
    assert Image.open(png).size[0] == 1000 and pdf.read_bytes().startswith(b"%PDF")
    assert all("test images" in figure.caption or "trial" in figure.caption.lower() for figure in figures)


def test_covariance_is_drawn_before_and_after_whitening():
    recording = replace(fake_quality(), whitened_from=1e-12 * np.eye(len(OCCIPITAL_CHANNELS)))
    (figure,) = (each for each in recording_figures({"sub-01": recording})[0] if each.name == "sub-01-covariance")
    before, after, *bars = figure.draw().axes
    assert (before.get_title(), after.get_title()) == ("before whitening", "stored")
    assert "not stored" not in figure.caption
    np.testing.assert_allclose(before.images[0].get_array(), np.eye(len(OCCIPITAL_CHANNELS)))
    assert {bar.get_ylabel() for bar in bars} == {"covariance (µV²)", "covariance ((whitened)²)"}


def test_missing_parts_are_reported(monkeypatch):
    recording = fake_quality(["a", "b", "c"], repetitions=1, modality="MEG")
    _, (positions, repetition) = recording_figures({"sub-01": recording})
    assert "positions of MEG sensors" in positions and "one repetition" in repetition
    monkeypatch.setitem(sys.modules, "mne", None)
    figures, (message,) = recording_figures({"sub-01": fake_quality()})
    assert "pip install 'fovblur[preprocess]'" in message and len(figures) == 5
    assert len(figures[0].draw().axes) == 1


def test_check_draws_figures(small_data, tmp_path, capsys, monkeypatch):
    save = style.save
    monkeypatch.setattr(style, "save", lambda figures, folder: save(figures[4:5], folder))  # one figure, to be quick
    monkeypatch.setitem(sys.modules, "mne", None)
    assert main(["data", "check", str(small_data), "--figures", str(tmp_path / "out")]) == 0
    assert f"2 files of 8 figures in {tmp_path / 'out'}" in capsys.readouterr().out
    assert (tmp_path / "out" / "sub-02-reliability.pdf").exists()
