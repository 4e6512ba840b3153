"""A small problem with a known answer: recordings are a noisy linear map of image features."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from lightning_fabric import Fabric
from torch.nn.functional import normalize

from bvsa_core import encoders, methods
from bvsa_core.data.split import Split
from bvsa_core.methods.base import Method
from bvsa_core.retrieval.scoring import Scores, Scoring, ranks, score, similarity
from bvsa_core.training.config import RunConfig
from bvsa_core.training.loop import fit

WIDTH, TRAINING, TEST = 16, 256, 40


@dataclass(frozen=True)
class LinearProblem:
    """Samples and features; the first TRAINING images are for training, the others for testing."""

    split: Split
    features: torch.Tensor  # (images, WIDTH)
    texts: torch.Tensor  # (images, WIDTH)

    def make(self, config: RunConfig) -> Method:
        _, channels, time = self.split.recordings.shape
        shape = encoders.InputSpec(channels, time, WIDTH)
        build = partial(encoders.build, config.encoder, options=config.encoder_options)
        return methods.method_class(config.method)(config.method_options, build, TRAINING, shape)

    def train(self, method: Method, config: RunConfig, samples: int = TRAINING) -> list[dict]:
        """Train a method, and return the metrics of the epochs."""
        views = lambda indices, gain, kernel_size: self.features[indices]  # noqa: E731
        lines: list[dict] = []
        split = self.split.take(torch.arange(samples))
        fit(method, split, views, self.texts, config, Fabric(accelerator="cpu"), lines.append)
        return lines

    @torch.no_grad()
    def test(self, method: Method) -> Scores:
        method.eval()
        views = len(method.gallery_levels())
        gallery = self.features[None, TRAINING:].expand(views, -1, -1)
        embeddings = method.retrieval_embeddings(self.split.recordings[TRAINING:], gallery, self.texts[TRAINING:])
        return score(ranks(similarity(embeddings, Scoring())))


@pytest.fixture
def linear_problem(seed, one_thread) -> Callable[[int, int], LinearProblem]:
    """Return a function that makes the problem with a number of channels and time points."""

    def make(channels: int, time: int) -> LinearProblem:
        count = TRAINING + TEST
        features = normalize(torch.randn(count, WIDTH), dim=1)
        texts = normalize(features + 0.3 * normalize(torch.randn(count, WIDTH), dim=1), dim=1)
        response = features @ torch.randn(WIDTH, channels * time)  # of unit variance
        recordings = (response + 0.3 * torch.randn_like(response)).unflatten(1, (channels, time))
        names, channel_names = [str(i) for i in range(count)], [f"c{i}" for i in range(channels)]
        image_of, subject_of = torch.arange(count), torch.zeros(count, dtype=torch.int64)
        split = Split(recordings, image_of, names, names, channel_names, 1, subject_of, ["sub-01"])
        return LinearProblem(split, features, texts)

    return make
