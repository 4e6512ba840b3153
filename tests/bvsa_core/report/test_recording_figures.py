"""Figures of recordings: every one is drawn and saved, and what cannot be drawn is told."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bvsa_core.cli import main
from bvsa_core.data import optional
from bvsa_core.data.quality.reliability import quality
from bvsa_core.data.things_eeg import OCCIPITAL_CHANNELS
from bvsa_core.report import recording_figures, style
from bvsa_core.report.recording_figures import RecordingQuality, drawings


def measured(channels=OCCIPITAL_CHANNELS, repetitions=4, modality="EEG", units="whitened") -> RecordingQuality:
    data = np.random.default_rng(0).standard_normal((6, repetitions, len(channels), 30))
    trials = {"train": {1: 12, 2: 12}, "test": {0: 6 * repetitions}}
    return RecordingQuality(quality(data), channels, np.arange(30) / 100, units, modality, trials)


def test_every_figure_is_drawn(tmp_path):
    pytest.importorskip("mne")
    found, told = drawings({"sub-01": measured(), "sub-02": measured()})
    kinds = ("evoked", "reliability", "covariance")
    expected = [f"{subject}-{kind}" for subject in ("sub-01", "sub-02") for kind in kinds] + ["noise-ceiling", "trials"]
    assert [drawing.name for drawing in found] == expected and told == []
    maps = found[0].draw()
    assert len(maps.axes) == 1 + 3 + 1  # lines, maps, colour bar
    (png, pdf) = style.save(found[1:2], tmp_path)
    assert Image.open(png).size[0] == 1000 and pdf.read_bytes().startswith(b"%PDF")
    assert all("test images" in drawing.caption or "trial" in drawing.caption.lower() for drawing in found)


def test_what_whitening_was_fitted_on_is_drawn_beside_what_it_left():
    about = replace(measured(), whitened_from=1e-12 * np.eye(len(OCCIPITAL_CHANNELS)))
    (drawing,) = (each for each in drawings({"sub-01": about})[0] if each.name == "sub-01-covariance")
    before, after, *bars = drawing.draw().axes
    assert (before.get_title(), after.get_title()) == (
        "before whitening",
        "as kept",
    ) and "not kept" not in drawing.caption
    np.testing.assert_allclose(before.images[0].get_array(), np.eye(len(OCCIPITAL_CHANNELS)))
    assert {bar.get_ylabel() for bar in bars} == {"covariance (µV²)", "covariance ((whitened)²)"}


def test_what_cannot_be_drawn_is_told(monkeypatch):
    _, (places, repetition) = drawings({"sub-01": measured(["a", "b", "c"], repetitions=1, modality="MEG")})
    assert "where MEG sensors are" in places and "one repetition" in repetition
    monkeypatch.setitem(sys.modules, "mne", None)
    found, (told,) = drawings({"sub-01": measured()})
    assert (
        "pip install 'fovblur[preprocess]'" in told
        and len(found) == 5
        and optional.import_mne is recording_figures.import_mne
    )
    assert len(found[0].draw().axes) == 1


def test_check_draws(small_data, tmp_path, capsys, monkeypatch):
    save = style.save
    monkeypatch.setattr(style, "save", lambda drawn, folder: save(drawn[4:5], folder))  # one of them, to be quick
    monkeypatch.setitem(sys.modules, "mne", None)
    assert main(["data", "check", str(small_data), "--figures", str(tmp_path / "out")]) == 0
    assert f"2 files of 8 figures in {tmp_path / 'out'}" in capsys.readouterr().out
    assert (tmp_path / "out" / "sub-02-reliability.pdf").exists()
