"""Trainings and searches by one process or several, which tests of distributed computing compare."""

import json
import random
import warnings
from dataclasses import fields, replace
from pathlib import Path

import torch
from lightning_fabric import seed_everything
from method_inputs import SMALLER
from torch import Tensor, nn
from torch.nn.functional import normalize

from bvsa_core import encoders, methods
from bvsa_core.data.split import Split
from bvsa_core.distributed.processes import ProcessGroup, init_processes
from bvsa_core.methods.base import Projector
from bvsa_core.retrieval.gallery import EmbeddingMatrix, Gallery
from bvsa_core.retrieval.gates import Reliability
from bvsa_core.retrieval.scoring import Scoring
from bvsa_core.retrieval.search import Queries, search
from bvsa_core.training.augmentation import Augmentation
from bvsa_core.training.checkpoint import Checkpointer
from bvsa_core.training.config import RunConfig
from bvsa_core.training.loop import fit, make_batch, make_fabric
from bvsa_core.vision.multilevel import Fusion, TargetViews
from bvsa_core.vision.views import Level

SAMPLES, BATCH = 35, 17  # the last batch has one sample, and the others do not divide evenly
CPU = torch.device("cpu")


class Problem:
    """A method and its data, for one process or several.

    Args:
        shards: with one process, encode the rows of a batch in as many parts as that many processes would.
    """

    def __init__(self, method: str, encoder: str, processes: ProcessGroup, seed: int, dropout: bool, shards: int = 1):
        torch.manual_seed(seed)
        features = normalize(torch.randn(SAMPLES, 16), dim=1)
        texts = normalize(features + 0.3 * torch.randn(SAMPLES, 16), dim=1)
        names, subject_of = [str(i) for i in range(SAMPLES)], torch.arange(SAMPLES) % 2
        recordings = (features @ torch.randn(16, 3 * 151)).unflatten(1, (3, 151)) + 0.3 * torch.randn(SAMPLES, 3, 151)
        image_of, subjects = torch.arange(SAMPLES), ["sub-01", "sub-02"]
        self.split = Split(recordings, image_of, names, names, ["a", "b", "c"], 1, subject_of, subjects)
        self.config = RunConfig(method=method, encoder=encoder, epochs=3, batch_size=BATCH)  # at the published rate
        if method == "samga":
            self.config.method_options = replace(self.config.method_options, **SMALLER[method])
        self.texts, self.processes = texts, processes
        self.fabric = make_fabric(CPU, processes, self.config.precision)
        seed_everything(seed, verbose=False)
        options = self.config.encoder_options
        if not dropout:
            options = replace(options, **{each.name: 0.0 for each in fields(options) if "dropout" in each.name})

        def build(shape: encoders.InputSpec) -> nn.Module:
            built = encoders.build(encoder, shape, options)
            return encode_in_parts(built, shards) if shards > 1 else processes.shard_encoder(built, CPU)

        shape = encoders.InputSpec(3, 151, 16, 2)
        self.method = methods.method_class(method)(self.config.method_options, build, SAMPLES, shape)
        self.method.encoder.spare = nn.Parameter(torch.ones(1))  # no loss depends on it
        self.views = lambda indices, gain, kernel_size: features[indices] * (1 + gain[:, None])
        if method == "vanilla":
            self.method.fusion = Fusion([16], [Level(51, 0.5)])
            self.method.image_map = Projector("linear", 16, 16)
            fixed = lambda indices, *_: texts[indices]  # noqa: E731
            self.views = TargetViews(self.method.image_targets, self.method.fusion.levels, self.views, fixed)

    def train(self) -> dict:
        lines: list[dict] = []
        data, checkpointer = (self.split, self.views), Checkpointer(processes=self.processes)
        common = self.texts, self.config, self.fabric, lines.append
        augment = Augmentation(self.split, ["shift", "smooth", "noise", "channel_dropout"], seed=0)
        fit(self.method, *data, *common, held_out=data, checkpointer=checkpointer, augment=augment)
        assert self.method.encoder.spare.item() == 1
        buffers = {key: value.tolist() for key, value in self.method.named_buffers() if "num_batches" not in key}
        fused = self.method.fusion.weights.tolist() if self.method.fusion else []
        losses = {name: [line[name] for line in lines] for name in ("loss", "validation_loss")}
        return {**losses, "fused": fused, **buffers}


def encode_in_parts(encoder: nn.Module, shards: int) -> nn.Module:
    """Make an encoder normalise parts of a batch by themselves, keeping the running statistics of the first."""
    forward = encoder.forward

    def in_parts(*inputs: Tensor) -> Tensor:
        if not encoder.training or len(inputs[0]) < shards:
            return forward(*inputs)
        first, *others = zip(*(each.tensor_split(shards) for each in inputs))
        rows = [forward(*first)]
        buffers = [buffer.clone() for buffer in encoder.buffers()]
        rows += [forward(*part) for part in others]
        for buffer, before in zip(encoder.buffers(), buffers):
            buffer.data.copy_(before)  # unseen by autograd
        return torch.cat(rows)

    encoder.forward = in_parts
    return encoder


def losses(path: str, cases: list[dict], seed: int) -> None:
    """Write losses, per-sample state and running statistics of each case."""
    warnings.simplefilter("ignore")
    with init_processes() as processes:
        results = [Problem(**case, processes=processes, seed=seed).train() for case in cases]
    if processes.rank == 0:
        Path(path).write_text(json.dumps(results))


def gradients(path: str, method: str, seed: int) -> None:
    """Write the gradients of one batch without dropout, in float64: of float32, the order of sums would show."""
    torch.set_default_dtype(torch.float64)
    with init_processes() as processes:
        problem = Problem(method, "eeg_project", processes, seed, dropout=False)
        module = problem.fabric.setup(problem.method)
        batch = make_batch(problem.method, problem.split, torch.arange(7), problem.views, problem.texts)
        problem.fabric.backward(module(batch))
        values = [value.grad.tolist() for value in problem.method.parameters() if value.grad is not None]
        assert all(each == values for each in processes.gather(values))
    if processes.rank == 0:
        Path(path).write_text(json.dumps(values))


def random_rows(path: str, seed: int) -> None:
    """Write what dropout leaves of ones in a batch, and a number drawn after it."""
    with init_processes() as processes:
        torch.manual_seed(seed)
        random.seed(seed)
        dropout = processes.shard_encoder(nn.Dropout(0.5), CPU)
        result = [dropout(torch.ones(6, 50)).tolist(), dropout(torch.ones(6, 50)).tolist(), torch.rand(()).item()]
        assert all(each == result for each in processes.gather(result))
    if processes.rank == 0:
        Path(path).write_text(json.dumps(result))


def searches(folder: str) -> None:
    """Search the gallery of test_search.py, and write what this process gets."""
    queries = Queries(*torch.load(f"{folder}/queries.pt", weights_only=True))
    gallery = Gallery([EmbeddingMatrix(f"{folder}/image.npy")], EmbeddingMatrix(f"{folder}/text.safetensors:text"))
    with init_processes() as processes:
        results = [
            tuple(search(queries, gallery, k, scoring, chunk_rows, processes=processes))
            for scoring in (Scoring(), Scoring("label_free", Reliability("margin", 0.05)))
            for k, chunk_rows in ((10, 64), (10, 300), (500, 300))  # fewer chunks than processes, and than k rows
        ]
    torch.save(results, f"{folder}/{processes.rank}_of_{processes.size}.pt")


def second_fails(path: str) -> None:
    """Fail in the second process, for which the first waits."""
    with init_processes() as processes:
        if processes.rank == 1:
            raise ValueError("process 1 has failed")
        processes.barrier()
