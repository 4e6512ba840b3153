"""The two layouts of THINGS-MEG convert into the same store if they hold the same recordings."""

import numpy as np
import pytest
import torch

from bvsa_core.data import things_meg
from bvsa_core.data.layouts.convert import convert
from bvsa_core.data.layouts.source import ConversionOptions
from bvsa_core.data.store import read_header

mne = pytest.importorskip("mne")


def test_epochs_and_ubps_files_of_them_convert_into_the_same_store(tmp_path):
    """At the published 271 sensors: UBP's files have no channels and times, and are recognised by that number."""
    shown = [(concept, image) for concept in (1, 2) for image in range(1, 14)] + [(2, 13)] * 11
    number = [(concept - 1) * 13 + image for concept, image in shown]
    order = np.random.default_rng(3).permutation(len(shown))
    samples = np.random.default_rng(4).standard_normal((len(shown), things_meg.SENSORS, 281), np.float32)
    events = np.stack([np.arange(len(shown)), np.zeros(len(shown), int), np.array(number)[order]], axis=1)
    keep = events[:, 2] != 13  # the first concept has no test image
    info = mne.create_info(things_meg.SENSORS, 200.0, "mag")
    (tmp_path / "epochs").mkdir()
    epochs = mne.EpochsArray(samples[keep], info, events[keep], tmin=-0.1, verbose="error")
    epochs.save(tmp_path / "epochs" / "preprocessed_P1-epo.fif", verbose="error")
    named = [(concept, name, k) for concept, name in ((1, "ant"), (2, "bee")) for k in range(1, 14)]
    stimuli = [(concept, f"images/{name}/{name}_{k:02d}b.jpg") for concept, name, k in named]
    (tmp_path / "epochs" / "image_concept_index.csv").write_text("".join(f"{concept}\n" for concept, _ in stimuli))
    (tmp_path / "epochs" / "image_paths.csv").write_text("".join(f"{path}\n" for _, path in stimuli))
    ubp = tmp_path / "ubp" / "sub-01"
    ubp.mkdir(parents=True)
    for split, folder, numbers in (("train", "training_images", range(1, 13)), ("test", "test_images", [26])):
        data = np.stack([samples[events[:, 2] == number] for number in numbers])[..., 20:221].astype(np.float16)
        images = [f"{folder}/{stimuli[n - 1][0]:05d}_{stimuli[n - 1][1].removeprefix('images/')}" for n in numbers]
        torch.save({"eeg": data, "img": images}, ubp / f"{split}.pt", pickle_protocol=5)
    headers = []
    for source in ("epochs", "ubp"):
        convert(tmp_path / source, tmp_path / f"of_{source}", "MEG", ConversionOptions())
        headers.append(read_header(tmp_path / f"of_{source}" / "sub-01"))
    one, two = headers
    assert one.times == pytest.approx(two.times) and one.sampling_rate == two.sampling_rate
    for split in ("train", "test"):
        first, second = one.splits[split], two.splits[split]
        assert (first.shape, first.images, first.concepts) == (second.shape, second.images, second.concepts)
        assert first.sha256 == second.sha256
