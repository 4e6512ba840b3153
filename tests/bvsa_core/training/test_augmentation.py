"""Augmentation of training recordings, by few-line oracles in NumPy; what is drawn is found from the result."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from bvsa_core.data.split import Split
from bvsa_core.errors import UserError
from bvsa_core.methods import method_class
from bvsa_core.synthetic.dataset import SyntheticConfig, make_dataset
from bvsa_core.training.augmentation import NAMES, Augmentation
from bvsa_core.training.config import RunConfig
from bvsa_core.training.evaluation import evaluate
from bvsa_core.training.run import make_augmentation, train
from bvsa_core.training.run_data import RunData

RECORDINGS, CHANNELS, TIME = 400, 6, 40


@pytest.fixture
def split(seed) -> Split:
    """Recordings of 100 images, two of each by each of two subjects, in random order."""
    order = torch.randperm(RECORDINGS)
    names = [f"{i}.jpg" for i in range(100)]
    return Split(
        torch.randn(RECORDINGS, CHANNELS, TIME), order % 100, names, names, list("ABCDEF"), 1, order // 200, ["a", "b"]
    )


def augmented(split: Split, *names: str, seed: int = 3, **options) -> tuple[np.ndarray, np.ndarray]:
    """Return the recordings before and after augmentation, in double precision."""
    after = Augmentation(split, list(names), seed, **options)(torch.arange(len(split)), 0, 0)
    return split.recordings.double().numpy(), after.double().numpy()


def assert_share(found: int, of: int, probability: float) -> None:
    assert abs(found - of * probability) < 6 * math.sqrt(of * probability * (1 - probability))


def test_smoothing_is_a_moving_average_of_some_channels(split):
    before, after = augmented(split, "smooth")
    smoothed = 0
    for old, new in zip(before.reshape(-1, TIME), after.reshape(-1, TIME)):
        if (old != new).any():
            average = np.convolve(np.pad(old, 2, mode="edge"), np.ones(5) / 5, mode="valid")
            np.testing.assert_allclose(new, average, atol=1e-6)
            smoothed += 1
    assert_share(smoothed, RECORDINGS * CHANNELS, 0.3)


def test_dropped_channels_are_zero_and_others_stay(split):
    before, after = augmented(split, "channel_dropout")
    dropped = (after == 0).all(-1)
    assert (before[~dropped] == after[~dropped]).all()
    assert_share(dropped.sum(), dropped.size, 0.1)


def test_noise_is_a_tenth_of_each_recordings_deviation(split):
    split.recordings.mul_(torch.logspace(-6, 3, RECORDINGS)[:, None, None])  # volts to whatever
    before, after = augmented(split, "noise")
    noise = (after - before) / before.std((1, 2), keepdims=True)
    noise = noise[20:]  # of the smallest, sums in float32 leave less
    assert abs(noise.mean()) < 6 * 0.1 / math.sqrt(noise.size)
    assert abs(noise.std() / 0.1 - 1) < 6 / math.sqrt(2 * noise.size)
    assert stats.kstest(noise[:, 0, 0] / 0.1, "norm").pvalue > 1e-6


def test_a_shift_rolls_all_channels_of_a_recording_alike(split):
    before, after = augmented(split, "shift")
    steps = range(-5, 6)
    found = [[step for step in steps if (np.roll(x, step, axis=1) == y).all()] for x, y in zip(before, after)]
    assert {len(each) for each in found} == {1}
    for step in steps:
        assert_share(sum(each == [step] for each in found), RECORDINGS, 1 / 11)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("other_subjects", [False, True])
def test_mixup_mixes_with_another_recording_of_the_same_image(split, alpha, other_subjects):
    before, after = augmented(split, "mixup", mixup_alpha=alpha, other_subjects=other_subjects)
    images, subjects = split.image_of.numpy(), split.subject_of.numpy()
    shares, partners = [], []
    for sample, (own, mixed) in enumerate(zip(before, after)):
        others = (images == images[sample]) & (np.arange(RECORDINGS) != sample)
        if other_subjects:
            others &= subjects != subjects[sample]
        fits = []
        for other in np.flatnonzero(others):
            difference = (own - before[other]).ravel()
            share = difference @ (mixed - before[other]).ravel() / (difference @ difference)
            fits.append((np.abs(share * own + (1 - share) * before[other] - mixed).max(), share, other))
        error, share, other = min(fits)
        assert error < 1e-5
        shares.append(share)
        partners.append(list(np.flatnonzero(others)).index(other))
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-6
    for partner in range(count := 2 if other_subjects else 3):
        # one that is hardly mixed in may be taken for another
        assert abs(partners.count(partner) / RECORDINGS - 1 / count) < 0.2


def test_a_recording_without_partner_stays(split):
    alone = split.take(torch.cat([torch.arange(RECORDINGS), torch.tensor([0])]))
    alone.image_of[-1] = 100
    alone.images.append("alone.jpg")
    before, after = augmented(alone, "mixup")
    np.testing.assert_allclose(after[-1], before[-1], atol=1e-6)
    assert (np.abs(after - before).max((1, 2)) > 0).mean() > 0.9


def test_draws_depend_on_seed_epoch_and_batch_alone(split):
    augment, samples = Augmentation(split, list(NAMES), 3), torch.arange(0, RECORDINGS, 3)
    state = torch.get_rng_state()
    expected = augment(samples, 2, 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(11)
    assert torch.equal(Augmentation(split, list(NAMES), 3)(samples, 2, 5), expected)
    different = [augment(samples, 3, 5), augment(samples, 2, 6), Augmentation(split, list(NAMES), 4)(samples, 2, 5)]
    assert not any(torch.equal(each, expected) for each in different)
    assert torch.equal(split.recordings[samples], split.recordings.clone()[samples])


def test_the_whole_set_is_augmented_once_in_the_order_of_its_samples(split):
    before = split.recordings.clone()
    after = Augmentation(split, ["channel_dropout"], 3).whole(batch_size=64)
    dropped = (after == 0).all(-1)
    assert torch.equal(after[~dropped], before[~dropped]) and torch.equal(split.recordings, before)
    assert 0 < dropped[:64].sum() != dropped[64:128].sum() or not torch.equal(dropped[:64], dropped[64:128])


@pytest.mark.parametrize("once", [False, True])
def test_only_recordings_that_are_trained_on_are_augmented(run_data, monkeypatch, once):
    """Pairs stay, recordings of held-out concepts and of the test set are as in the files."""
    seen: dict[bool, list] = {True: [], False: []}
    kind = method_class("vanilla")
    forward, embed = kind.forward, kind.embed

    def spy(method, batch):
        seen[method.training].append(batch)
        return forward(method, batch)

    monkeypatch.setattr(kind, "forward", spy)
    settings = dict(method="vanilla", epochs=2, batch_size=32, validation=6, data=run_data.config.data)
    plain = train(RunConfig(**settings), run_data)
    before, seen[True], seen[False] = dict(seen), [], []
    config = RunConfig(**settings, augment="shift,smooth,noise,channel_dropout", augment_once=once)
    trained = train(config, run_data)
    assert torch.equal(trained.split.recordings, plain.split.recordings)  # which gates learn from
    for old, new in zip(before[True], seen[True], strict=True):
        for name in ("samples", "images", "texts", "subjects"):
            assert torch.equal(getattr(old, name), getattr(new, name)), name
        assert (old.recordings != new.recordings).flatten(1).any(1).all()
    for old, new in zip(before[False], seen[False], strict=True):
        assert torch.equal(old.recordings, new.recordings)
    batches = len(seen[True]) // 2
    first, second = (
        {int(sample): recording for batch in epoch for sample, recording in zip(batch.samples, batch.recordings)}
        for epoch in (seen[True][:batches], seen[True][batches:])
    )
    assert all(torch.equal(first[sample], second[sample]) == once for sample in first)
    embedded = []
    monkeypatch.setattr(kind, "embed", lambda method, *given: embedded.append(given[0]) or embed(method, *given))
    evaluate(trained, config, run_data)
    assert torch.equal(embedded[0], run_data.split("sub-01", "test").recordings)


def test_the_recipe_between_subjects_mixes_them(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "methods.md").read_text()
    recipe = yaml.safe_load(re.search(r"between_subjects.*?```yaml\n(.*?)```", page, re.DOTALL)[1])
    sizes = {"subjects": 3, "train_concepts": 6, "images_per_concept": 2, "train_repetitions": 1, "test_concepts": 3}
    make_dataset(tmp_path / "data", SyntheticConfig(**sizes, test_repetitions=1, samples=100))
    here = {"data": tmp_path / "data", "vision": "tiny", "epochs": 1, "batch_size": 16}
    config = RunConfig(**{**recipe, **here})
    data = RunData(config)
    trained = train(config, data)
    assert trained.split.subjects == ["sub-02", "sub-03"]
    augment = make_augmentation(config, trained.split)
    partners = augment.partners.draw(samples := torch.arange(len(trained.split)))
    assert (trained.split.image_of[partners] == trained.split.image_of).all()
    assert (trained.split.subject_of[partners] != trained.split.subject_of).all()
    assert (augment(samples, 0, 0) != trained.split.recordings).flatten(1).any(1).all()


def test_settings_that_cannot_augment_are_refused(run_data: RunData, split):
    with pytest.raises(UserError, match="unknown augmentation 'mix_up'; did you mean 'mixup'"):
        RunConfig(augment="noise, mix_up")
    with pytest.raises(UserError, match="mixup_alpha is 0; it must be positive and finite"):
        RunConfig(mixup_alpha=0)
    averaged = RunConfig(method="vanilla", augment="mixup", data=run_data.config.data)
    with pytest.raises(UserError, match="no training image has several recordings to mix; .* --average false"):
        train(averaged, run_data)
    one = split.take(split.subject_of == 0)
    with pytest.raises(UserError, match="no training image has recordings of several subjects to mix; leave it out$"):
        Augmentation(one, ["mixup"], 0, other_subjects=True)
