"""Linear decoding finds planted information where and when it was planted, and nowhere else."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn.functional import normalize

from bvsa_core.data.channel_positions import REGIONS, positions, region
from bvsa_core.data.split import Split
from bvsa_core.experiments import linear_decoding
from bvsa_core.experiments.linear_decoding import PENALTIES, accuracy, averaged, ridge
from bvsa_core.training.config import RunConfig

CHANNELS = ["Fp1", "F3", "Fz", "F4", "Fp2", "O1", "Oz", "O2", "PO3", "PO4"]
TIMES = (np.arange(50) / 100).tolist()  # 0 to 490 ms at 100 Hz
TRAIN, TEST, WIDTH = 300, 40, 12


@pytest.fixture
def planted(monkeypatch) -> SimpleNamespace:
    """Noise, with the features of images in occipital channels from 100 to 200 ms, and in the first layer only."""
    generator = torch.Generator().manual_seed(0)
    features = {n: normalize(torch.randn(n, WIDTH, generator=generator), dim=-1) for n in (TRAIN, TEST)}
    mixing = torch.randn(WIDTH, 3, 5, generator=generator)

    def split(subjects, name, repetitions=None, axes=None):
        n = TRAIN if name == "train" else TEST
        recordings = torch.randn(n, len(CHANNELS), len(TIMES), generator=generator) * 0.1
        signal = torch.einsum("nd,dct->nct", features[n], mixing).repeat_interleave(2, dim=2)
        recordings[:, 5:8, 10:20] += signal
        images = [f"{name}_images/{i}/a.jpg" for i in range(n)]
        index, subject = torch.arange(n), torch.zeros(n, dtype=torch.int64)
        return Split(recordings, index, images, images, CHANNELS, 1, subject, ["sub-01"], times=TIMES)

    def views(images, levels):
        noise = torch.randn(len(images), WIDTH, generator=generator)
        both = torch.cat([noise, features[len(images)]], dim=1)  # output, then the layer
        return lambda index, gain, kernel_size: both[index]

    about = {"clip": SimpleNamespace(layers=("output", "4")), "part_widths": lambda: [WIDTH, WIDTH]}
    about |= {"encoder_name": "fake", "training_subjects": lambda config: [config.subject]}
    return SimpleNamespace(split=split, views=views, **about)


def test_information_is_found_where_and_when_it_was_planted(planted):
    config = RunConfig.of("vanilla", subject="sub-01")
    with_layers = linear_decoding.linear_decoding(config, planted, "fake data")
    assert with_layers.layers["layer 4"].top1 > 0.8 and with_layers.layers["output"].top1 < 0.15

    planted.clip.layers, planted.part_widths = ("4",), lambda: [WIDTH]
    views = planted.views
    planted.views = lambda images, levels: lambda *level: views(images, levels)(*level)[:, WIDTH:]
    found = linear_decoding.linear_decoding(config, planted, "fake data")
    assert found.images == TEST and found.window == pytest.approx(0.08) and not found.layers
    inside = [each.top1 for middle, each in found.windows.items() if 0.12 < middle < 0.18]
    outside = [each.top1 for middle, each in found.windows.items() if middle < 0.05 or middle > 0.25]
    assert min(inside) > 0.8 > 0.15 > max(outside)
    assert list(found.regions) == ["frontal", "occipital"]
    assert found.regions["occipital"].top1 > 0.8 and found.regions["frontal"].top1 < 0.15
    assert set(found.channels) == set(CHANNELS)  # each with the four nearest
    assert found.channels["Oz"].top1 > 0.8 and found.channels["Fz"].top1 < 0.15
    assert all(each.low <= each.top1 <= each.high for each in found.windows.values())


def test_ridge_is_that_of_scikit_learn_at_the_penalty_of_cross_validation():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 20, generator=generator, dtype=torch.float64)
    y = x[:, :3] @ torch.randn(3, 4, generator=generator, dtype=torch.float64)
    y += torch.randn(60, 4, generator=generator, dtype=torch.float64)
    x, y = x - x.mean(0), y - y.mean(0)
    mean_square = float(torch.linalg.eigvalsh(x.T @ x).mean())

    def criterion(penalty: float) -> float:
        hat = x @ torch.linalg.solve(x.T @ x + penalty * torch.eye(20, dtype=torch.float64), x.T)
        residual = y - hat @ y
        return float(residual.square().sum() / (60 - hat.trace()) ** 2)

    best = min((mean_square * float(penalty) for penalty in PENALTIES), key=criterion)
    expected = Ridge(alpha=best, fit_intercept=False).fit(x.numpy(), y.numpy()).coef_.T
    np.testing.assert_allclose(ridge(x, y).numpy(), expected, rtol=1e-8, atol=1e-10)


def test_constant_recordings_score_nothing():
    targets = torch.eye(5)
    assert accuracy(torch.ones(5, 3), targets, torch.ones(5, 3), targets).top1 == 0


def test_averages_over_bins():
    means, times = averaged(torch.arange(14.0).reshape(1, 2, 7), [0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    assert means.tolist() == [[[0.5, 2.5, 4.5], [7.5, 9.5, 11.5]]] and times.tolist() == pytest.approx(
        [0.005, 0.025, 0.045]
    )


def test_one_sample_is_one_bin():
    means, times = averaged(torch.ones(2, 3, 1), [0.0])
    assert means.shape == (2, 3, 1) and times.tolist() == [0.0]


def test_every_name_of_the_10_10_system_has_a_place_and_all_but_mastoids_and_ears_a_region():
    import mne

    names = mne.channels.make_standard_montage("easycap-M1").ch_names
    assert set(positions(names, "EEG")) == set(names)
    assert {name for name in names if region(name) == "other"} <= {name for name in names if "A" == name[0]} | {"N1"}
    assert {region(name) for name in names} <= {*REGIONS} and positions(["MLO11"], "MEG") == {}
