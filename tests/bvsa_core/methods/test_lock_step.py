"""Trainings under the preset `code` in lock step with the rules of the released code of UBP and BVSA, in a few lines.

Both start from the same weights and see the same batches. What a blur does to a feature is a random table here. The
inputs are fixed: a similarity that happens to lie on the end of an interval would make the comparison of levels a draw.
"""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from scipy.stats import norm
from torch.nn.functional import cross_entropy, normalize, softplus

from bvsa_core import encoders, methods
from bvsa_core.data.split import Split
from bvsa_core.encoders.eeg_project import Options
from bvsa_core.retrieval.scoring import Scoring, similarity
from bvsa_core.training.config import RunConfig
from bvsa_core.training.loop import batches, fit
from bvsa_core.vision.views import BankedViews, Level

EPOCHS, SAMPLES, TEST, BATCH, CHANNELS, TIME, WIDTH = 12, 192, 40, 64, 4, 20, 32
SHIFTS = (-6, 0, 6)  # of the kernel size: low, medium, high


class Released:
    """The released training; `heads` are the brain encoders for images and, in BVSA, for texts."""

    def __init__(self, heads, lr: float):
        self.heads, self.scale = heads, torch.nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        parameters = [self.scale, *(parameter for head in heads for parameter in head.parameters())]
        self.optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-4)
        self.similarities = np.ones((2, SAMPLES))  # smoothed, to images and to texts
        self.labels = np.ones((2, SAMPLES), dtype=int)  # 0 above the interval, 1 within, 2 below
        self.alpha = 0.05 if len(heads) == 1 else 0.1

    def epoch(self, split, order, image_features, texts, labelled: bool) -> float:
        used, total = self.labels.copy(), 0.0
        for samples in order:
            losses = []
            for number, head in enumerate(self.heads):
                features = texts[samples] if number else image_features(samples, *used[:, samples])
                logits = softplus(self.scale) * head(split.recordings[samples]) @ features.T
                to = torch.arange(len(samples))
                losses += [cross_entropy(logits, to), cross_entropy(logits.T, to)]
                if labelled:
                    self.label(number, samples.numpy(), logits.diagonal().detach().numpy())
            loss = sum(losses) / len(losses)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            total += loss.item() * len(samples)
        return total / SAMPLES

    def label(self, number: int, samples: np.ndarray, diagonal: np.ndarray) -> None:
        smoothed = 0.3 * diagonal + 0.7 * self.similarities[number, samples]
        reach = norm.ppf(1 - self.alpha / 2) * np.std(smoothed, ddof=1)
        self.similarities[number, samples] = smoothed
        label = np.where(diagonal > smoothed.mean() + reach, 0, np.where(diagonal < smoothed.mean() - reach, 2, 1))
        self.labels[number, samples] = label


def levels_of(name: str, to_image: np.ndarray, to_text: np.ndarray) -> list[Level]:
    """Return the blur that labels stand for."""
    if name == "vanilla":
        return [Level(1, 0.0)] * len(to_image)
    if name == "ubp":
        sizes = np.cumsum([51 + SHIFTS[0], *SHIFTS[1:]])  # every shift starts from the size before
        return [Level(int(sizes[label]), 0.5) for label in to_image]
    return [Level(51 + SHIFTS[label], 1 - (0.0, 0.5, 1.0)[text]) for label, text in zip(to_image, to_text)]


@pytest.fixture
def problem(one_thread):
    torch.manual_seed(5)
    count = SAMPLES + TEST
    sharp = normalize(torch.randn(count, WIDTH), dim=1)
    recordings = (sharp @ torch.randn(WIDTH, CHANNELS * TIME) + torch.randn(count, CHANNELS * TIME)).unflatten(
        1, (CHANNELS, TIME)
    )
    texts = normalize(sharp + 0.2 * torch.randn(count, WIDTH), dim=1)
    names, zeros = [str(i) for i in range(count)], torch.zeros(count, dtype=torch.int64)
    channels = [f"c{i}" for i in range(CHANNELS)]
    return Split(recordings, torch.arange(count), names, names, channels, 1, zeros, ["sub-01"]), sharp, texts


@pytest.mark.parametrize("name", ["vanilla", "ubp", "bvsa"])
def test_losses_levels_and_scores_are_those_of_the_released_code(problem, name):
    everything, sharp, texts = problem
    split, test = everything.take(torch.arange(SAMPLES)), everything.take(torch.arange(SAMPLES, SAMPLES + TEST))
    config = RunConfig.of(name, preset="code", epochs=EPOCHS, batch_size=BATCH, lr=1e-3)
    shape = encoders.InputSpec(CHANNELS, TIME, WIDTH)
    build = partial(encoders.build, "eeg_project", options=Options(dropout=0.0))
    method = methods.method_class(name)(config.method_options, build, SAMPLES, shape)
    levels = list(dict.fromkeys([*method.training_levels(), *method.gallery_levels()]))
    table = {level: normalize(sharp + 0.15 * torch.randn_like(sharp), dim=1) for level in levels}
    views = BankedViews(torch.stack(list(table.values())), levels)
    heads = [method.encoder] if name != "bvsa" else [method.encoder, method.text_encoder]
    released = Released(copy.deepcopy(heads), config.lr)

    def image_features(samples, to_image, to_text):
        return torch.stack([table[level][i] for i, level in zip(samples, levels_of(name, to_image, to_text))])

    seen = set()

    def compare(metrics: dict) -> None:
        order = batches(SAMPLES, BATCH, config.seed, metrics["epoch"] - 1, torch.device("cpu"))
        loss = released.epoch(split, order, image_features, texts, labelled=name != "vanilla")
        assert metrics["loss"] == pytest.approx(loss, rel=1e-5), f"epoch {metrics['epoch']}"
        gain, kernel_size = method.blur(torch.arange(SAMPLES))
        ours = [Level(k, g) for k, g in zip(kernel_size.tolist(), gain.tolist())]
        assert ours == levels_of(name, *released.labels), f"epoch {metrics['epoch']}"
        seen.update(ours)

    losses: list[float] = []
    fit(
        method,
        split,
        views,
        texts,
        config,
        Fabric(accelerator="cpu"),
        lambda metrics: losses.append(metrics["loss"]) or compare(metrics),
    )
    assert losses[-1] < losses[0] / 2
    assert seen == set(method.training_levels())

    with torch.no_grad():
        gallery = torch.stack([table[level][SAMPLES:] for level in method.gallery_levels()])
        ours = similarity(
            method.retrieval_embeddings(test.recordings, gallery, texts[SAMPLES:]), Scoring(method.default_gate)
        )
        brain = [normalize(head(test.recordings).repeat(1, len(gallery)), dim=1) for head in released.heads]
        expected = brain[0] @ normalize(torch.cat(list(gallery), dim=1), dim=1).T
        if name == "bvsa":
            to_text = brain[1] @ normalize(texts[SAMPLES:].repeat(1, 3), dim=1).T
            pairs = to_text.diagonal().numpy()
            threshold = pairs.mean() - norm.ppf(0.975) * np.std(pairs, ddof=1) / np.sqrt(TEST)
            opened = torch.tensor(pairs > threshold)[:, None]
            assert 0 < opened.sum() < TEST
            expected = expected + opened * expected * to_text
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.argmax(1), expected.argmax(1))
