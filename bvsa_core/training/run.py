"""One run from configuration to figures, and the data that many runs share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor

from bvsa_core import encoders, methods
from bvsa_core.data.layout import Dataset
from bvsa_core.data.split import Split, hold_out, load_split
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Method
from bvsa_core.retrieval.evaluate import Embeddings, Protocol, Scoring, ranks, score, similarity
from bvsa_core.retrieval.gates import Reliability, learn_reliability, reliabilities
from bvsa_core.training.checkpoint import RunFolder
from bvsa_core.training.config import MaterialsConfig, RunConfig
from bvsa_core.training.loop import fit
from bvsa_core.vision.bank import FeatureBank
from bvsa_core.vision.clip import Clip, load_clip
from bvsa_core.vision.images import read_images
from bvsa_core.vision.multilevel import Fusion, MultiLevelViews
from bvsa_core.vision.views import BankedViews, Falloff, Level, OnlineViews, Views

Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


def choose_device(name: str) -> torch.device:
    """The device a run goes to.

    Raises:
        UserError: an unknown device, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device {name!r} is not there ({torch.cuda.device_count()} GPUs are visible); use --device cpu")
    return device


class Materials:
    """Recordings, pictures and features, loaded once and shared by runs that use the same data and encoder.

    Raises:
        UserError: data or weights that are missing or damaged.
    """

    def __init__(self, config: MaterialsConfig, progress: Progress = lambda *_: None):
        self.config, self.progress = config, progress
        self.device = choose_device(config.device)
        self.split = functools.cache(self._split)
        self._bank_of = functools.cache(self._make_bank)
        self._online = functools.cache(self._make_online)

    @functools.cached_property
    def dataset(self) -> Dataset:
        return Dataset(self.config.data)

    @functools.cached_property
    def clip(self) -> Clip:
        clip = load_clip(self.config.vision, self.config.weights, self.config.cache_dir, self.device)
        return clip.with_layers(self.config.target_layers)

    def fusion(self) -> Fusion | None:
        """Learnt weights of multi-level targets, where the configuration asks for them."""
        if not self.config.target_levels and not self.config.target_layers:
            return None
        return Fusion(self.clip.widths(), [Level(*level) for level in self.config.target_levels]).to(self.device)

    @property
    def falloff(self) -> Falloff:
        return Falloff(self.config.decay, self.config.falloff)

    def _split(self, subject: str, split: str) -> Split:
        average = self.config.average or split == "test"
        return load_split(self.dataset, [subject], split, self.config.channels, self.config.window, average).to(self.device)

    def views(self, pictures: Sequence[str], levels: Sequence[Level], fusion: Fusion | None = None) -> Views:
        """Features of pictures, at least at these levels; with a fusion, multi-level ones."""
        if fusion is not None:
            return MultiLevelViews(fusion, self.views(pictures, levels), self.views(pictures, fusion.levels or levels))
        if self.config.views == "online":
            return self._online(tuple(pictures))
        bank = self.bank(pictures)
        bank.fill(levels, lambda done, total: self.progress("features", done, total))
        return BankedViews(bank.load(levels).to(self.device), levels)

    def texts(self, pictures: Sequence[str], concepts: Sequence[str]) -> Tensor:
        """Features (pictures, D) of the prompts that name what pictures show."""
        return self.bank(pictures).texts(self.prompts(concepts)).to(self.device)

    def prompts(self, concepts: Sequence[str]) -> list[str]:
        """The texts that name concepts."""
        return [self.config.prompt.format(object=name.replace("_", " ")) for name in concepts]

    def bank(self, pictures: Sequence[str]) -> FeatureBank:
        """The feature bank of pictures."""
        return self._bank_of(tuple(pictures))

    def _make_bank(self, pictures: tuple[str, ...]) -> FeatureBank:
        return self.bank_of_files([self.dataset.image_path(picture) for picture in pictures])

    def bank_of_files(self, paths: Sequence[Path]) -> FeatureBank:
        """The feature bank of pictures that need not be the data set's."""
        return FeatureBank(self.config.bank or self.config.data / "Image_feature", self.clip, paths, self.falloff)

    def _make_online(self, pictures: tuple[str, ...]) -> OnlineViews:
        paths = [self.dataset.image_path(picture) for picture in pictures]
        images = read_images(paths, self.clip.image_size, lambda done: self.progress("pictures", done, len(paths)))
        return OnlineViews(self.clip, images, self.falloff)


def run(config: RunConfig, materials: Materials, folder: RunFolder, progress: Progress = lambda *_: None) -> dict:
    """Train, embed the test set, score, and leave everything in the folder. A complete run is not repeated.

    Returns the content of result.json.

    Raises:
        UserError: data, options or the folder do not fit.
    """
    if folder.start(config):
        return folder.result()
    devices = [materials.device.index or 0] if materials.device.type == "cuda" else 1
    fabric = Fabric(accelerator=materials.device.type, devices=devices, precision=config.precision)
    train = materials.split(config.subject, "train")
    train, validation = hold_out(train, config.validation, config.seed) if config.validation else (train, None)
    texts = materials.texts(train.images, train.concepts)
    seed_everything(config.seed, verbose=False)  # not before the picture encoder is loaded, which draws random numbers
    method = build_method(config, shape_of(train, texts.shape[1]), len(train), materials)
    views = materials.views(train.images, method.levels(), method.fusion)
    held_out = None
    if validation is not None:
        held_out = validation, materials.views(train.images, method.gallery_levels(), method.fusion)
    if config.shuffle_pairs:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed)).to(materials.device)
        train = replace(train, image_of=train.image_of[order])

    def report(metrics: dict) -> None:
        folder.add_metrics(metrics)
        progress("epochs", metrics["epoch"], config.epochs)

    fit(method, train, views, texts, config, fabric, report, held_out)
    test = materials.split(config.subject, "test")
    embeddings = embed(method, test, materials, train.subjects)
    reliability = None
    if not method.classifies:
        known = train if validation is None else validation
        reliability = learn_gate(method, known, materials, train.subjects, gallery=len(test.images), seed=config.seed)
    scoring = Scoring(method.default_gate, reliability)
    protocol = protocol_of(materials, test, scoring)
    rank = ranks(similarity(embeddings, scoring))
    result = {
        "method": config.method,
        "preset": config.preset,
        "note": method.NOTE,
        "subject": config.subject,
        "seed": config.seed,
        **score(rank).to_json(protocol),
        "reliability": asdict(reliability) if reliability else None,
        "samples": len(train),
        "shape": asdict(shape_of(train, texts.shape[1])),
        "ranks": rank.tolist(),
        "images": test.images,
    }
    folder.finish(method, embeddings, result)
    return result


def shape_of(train: Split, embedding: int) -> encoders.Shape:
    """What a brain encoder takes and gives."""
    _, channels, time = train.recordings.shape
    return encoders.Shape(channels, time, embedding, len(train.subjects))


def build_method(config: RunConfig, shape: encoders.Shape, samples: int, materials: Materials) -> Method:
    """The method of a configuration, for the shape and number of its training data, on their device."""

    def build_encoder(shape: encoders.Shape) -> torch.nn.Module:
        encoder = encoders.build(config.encoder, shape, config.encoder_options)
        if config.initial_std is not None:
            encoders.initialise(encoder, config.initial_std)
        return encoder

    method = methods.method_class(config.method)(config.method_options, build_encoder, samples, shape)
    method.fusion = materials.fusion()
    return method.to(materials.device)


def load_method(folder: RunFolder, materials: Materials) -> Method:
    """The method of a complete run, as it was trained, on the device of the materials.

    Raises:
        UserError: the folder holds no complete run, one of an earlier version, or weights that do not fit its configuration.
    """
    result = folder.result()
    if "shape" not in result:
        raise UserError(f"{folder.path}: a run of an earlier version; train it again")
    method = build_method(folder.config(), encoders.Shape(**result["shape"]), result["samples"], materials)
    folder.load_weights(method)
    return method.eval()


@torch.no_grad()
def embed(method: Method, split: Split, materials: Materials, trained: list[str]) -> Embeddings:
    """What retrieval compares, after training on some subjects: row i of everything belongs to sample i of a split."""
    levels = method.views_of_gallery()
    views = materials.views(split.images, levels)
    gallery = []
    for level in levels:
        gain = torch.full(split.image_of.shape, level.gain, device=materials.device)
        gallery.append(views(split.image_of, gain, torch.full_like(split.image_of, level.kernel_size)))
    texts = materials.texts(split.images, split.concepts)[split.image_of]
    method.eval()
    whose = split.numbers_among(trained)
    return method.retrieval_embeddings(split.recordings, torch.stack(gallery), texts, whose)


def learn_gate(method: Method, known: Split, materials: Materials, trained: list[str], gallery: int, seed: int) -> Reliability:
    """When the gate label_free opens: learnt on recordings whose pictures are known, in galleries as large as the test one.

    A gallery has one picture a concept, as the test set has; every known concept is in one of them.
    """
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    of_concept = {known.concepts[known.image_of[sample]]: sample for sample in order.tolist()}
    samples = torch.tensor(list(of_concept.values()), device=materials.device)
    examples = []
    for part in samples.tensor_split(max(1, len(samples) // gallery)):
        embeddings = embed(method, known.take(part), materials, trained)
        closed, opened = (ranks(similarity(embeddings, Scoring(gate))) for gate in ("none", "always"))
        examples.append((closed, opened, reliabilities(embeddings.brain_text, embeddings.text)))
    return learn_reliability(examples)


def protocol_of(materials: Materials, test: Split, scoring: Scoring) -> Protocol:
    """The conditions of a run's figures."""
    return Protocol(
        dataset=materials.dataset.name,
        selection="last",
        gallery=len(test.images),
        channels=len(test.channels),
        repetitions=test.repetitions,
        encoder=materials.clip.name,
        **scoring.protocol(),
    )
