"""Methods with a linear brain encoder, and batches of random samples for them."""

import torch
from torch import nn
from torch.nn.functional import normalize

from bvsa_core import methods
from bvsa_core.encoders import InputSpec
from bvsa_core.methods.base import Batch, Method
from bvsa_core.training.config import method_options

SAMPLES, BATCH, CHANNELS, TIME, WIDTH = 40, 24, 3, 10, 16
SMALLER = {"bravl": {"hidden": 64, "draws": 2}, "samga": {"hidden": 64, "width": 32}}  # options of quick trainings


def make_method(name: str, preset: str = "corrected", **changes: object) -> Method:
    def build(shape: InputSpec) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * TIME, shape.embedding))

    options = method_options(name, preset, **changes)
    return methods.method_class(name)(options, build, SAMPLES, InputSpec(CHANNELS, TIME, WIDTH))


def random_batch(dtype: torch.dtype = torch.float32) -> Batch:
    images, texts = normalize(torch.randn(2, BATCH, WIDTH, dtype=dtype), dim=-1)
    return Batch(torch.randperm(SAMPLES)[:BATCH], torch.randn(BATCH, CHANNELS, TIME, dtype=dtype), images, texts)
