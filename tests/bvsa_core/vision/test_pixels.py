"""Images on the device, and batches of them that are copied ahead."""

import pytest
import torch
from trainings import train_run

from bvsa_core.distributed.processes import ProcessGroup
from bvsa_core.training.config import RunDataConfig
from bvsa_core.training.run_data import RunData
from bvsa_core.vision.images import read_images
from bvsa_core.vision.pixels import MARGIN, Pixels, fits
from bvsa_core.vision.views import OnlineViews

CPU = torch.device("cpu")


@pytest.mark.parametrize(("free", "expected"), [(MARGIN + 100, True), (MARGIN + 99, False)])
def test_images_fit_if_a_margin_is_left(monkeypatch, free, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * MARGIN))
    assert fits(100, torch.device("cuda")) == expected
    assert fits(100 * MARGIN, CPU)


def test_batches_are_the_same_wherever_images_are(clip, paths):
    images = read_images(paths[:6], clip.image_size)
    rows = torch.tensor([4, 0, 0, 5]), torch.tensor([0.1, 0.9, 0.5, 0.3]), torch.tensor([31, 51, 1, 57])
    stored = Pixels(images, CPU, resident=False)
    expected = OnlineViews(clip, images)(*rows)
    assert torch.equal(OnlineViews(clip, stored)(*rows), expected)  # not copied ahead
    stored.prefetch(rows[0])
    ahead = stored.rows(rows[0])[0]
    assert ahead.shape[0] == 4 and stored.rows(rows[0])[0] is ahead  # copied once for several views
    assert torch.equal(OnlineViews(clip, stored)(*rows), expected)
    stored.prefetch(torch.tensor([1, 1, 1, 1]))  # of another batch than is asked for next
    assert torch.equal(OnlineViews(clip, stored)(*rows), expected)
    assert Pixels(images, CPU).rows(rows[0])[0] is images


def test_training_copies_every_batch_but_an_epochs_first_ahead(tiny_data, tmp_path, monkeypatch):
    config = RunDataConfig(data=tiny_data, views="online")
    expected = train_run(tmp_path / "resident", RunData(config), method="vanilla", batch_size=12)
    calls: list[str] = []

    class Watched(Pixels):
        def __init__(self, images, device):
            super().__init__(images, device, resident=False)

        def rows(self, indices):
            calls.append("copied" if self._ahead and torch.equal(self._ahead[0], indices) else "waited")
            return super().rows(indices)

    monkeypatch.setattr("bvsa_core.training.run_data.Pixels", Watched)
    run_data = RunData(config)
    assert train_run(tmp_path / "ahead", run_data, method="vanilla", batch_size=12).ranks == expected.ranks
    assert calls[:6] == ["waited", "copied", "copied"] * 2  # 30 images
    assert (tmp_path / "ahead/metrics.jsonl").read_bytes() == (tmp_path / "resident/metrics.jsonl").read_bytes()
    (images, store), *_ = run_data._kept.items()
    for rank, rows in enumerate(([0, 1, 2], [3, 4])):
        run_data.processes = ProcessGroup(rank, 2)
        run_data.prefetch(images)(torch.arange(5))
        assert store._ahead[0].tolist() == rows
