"""One run from configuration to figures, and the data that many runs share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from lightning_fabric import seed_everything
from torch import Tensor

from bvsa_core import encoders, methods
from bvsa_core.data.dataset import Dataset
from bvsa_core.data.split import Split, hold_out, load_split
from bvsa_core.distributed.processes import ProcessGroup, share_out, together
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Method
from bvsa_core.progress import Progress, no_progress
from bvsa_core.retrieval.scoring import Scoring, ranks, score, similarity
from bvsa_core.training.checkpoint import RunFolder
from bvsa_core.training.config import RunConfig, RunDataConfig
from bvsa_core.training.evaluation import Trained, evaluate
from bvsa_core.training.loop import fit, make_fabric
from bvsa_core.training.resume import Checkpointer
from bvsa_core.training.selection import compute_embeddings, one_sample_per_concept_batches, validation_top1
from bvsa_core.vision.bank import FeatureBank
from bvsa_core.vision.clip import Clip, load_clip
from bvsa_core.vision.images import read_images
from bvsa_core.vision.multilevel import Fusion, MultiLevelViews
from bvsa_core.vision.views import BankedViews, Falloff, Level, OnlineViews, Views


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
        raise UserError(
            f"device {name!r} is not there ({torch.cuda.device_count()} GPUs are visible); use --device cpu"
        )
    return device


class RunData:
    """Recordings, pictures and features, loaded once and shared by runs that use the same data and encoder.

    Args:
        team: processes that train together, each with materials of its own.

    Raises:
        UserError: data or weights that are missing or damaged.
    """

    def __init__(self, config: RunDataConfig, progress: Progress = no_progress, team: ProcessGroup = ProcessGroup()):
        self.config, self.progress, self.team = config, progress, team
        self.device = choose_device(config.device)
        self._split_of_one = functools.cache(self._split)
        self._split_of_several = functools.lru_cache(maxsize=1)(self._split)  # as large as all the others together
        self._sealed = False
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

    @contextmanager
    def sealed(self) -> Iterator[None]:
        """Inside, nobody can read the test set: what trains and chooses weights must not know it."""
        self._sealed = True
        try:
            yield
        finally:
            self._sealed = False

    def split(self, subjects: str | Sequence[str], split: str, repetitions: int | None = None) -> Split:
        """Recordings of one or several subjects, and of a picture the first so many repetitions; those of tests are averaged.

        Raises:
            RuntimeError: the test set is sealed.
        """
        if split == "test" and self._sealed:
            raise RuntimeError("the test set is read before training has ended; only selection 'oracle' may do that")
        subjects = (subjects,) if isinstance(subjects, str) else tuple(subjects)
        return (self._split_of_one if len(subjects) == 1 else self._split_of_several)(subjects, split, repetitions)

    def clear_cache(self) -> None:
        """Make room for other subjects; whoever holds a split keeps it."""
        self._split_of_one.cache_clear()
        self._split_of_several.cache_clear()

    def _split(self, subjects: tuple[str, ...], split: str, repetitions: int | None) -> Split:
        average = self.config.average or split == "test"
        chosen = self.config.channels, self.config.window, average, repetitions
        return load_split(self.dataset, list(subjects), split, *chosen).to(self.device)

    def training_subjects(self, config: RunConfig) -> list[str]:
        """The subjects whose recordings a run trains on.

        Raises:
            UserError: there is nobody else to train on.
        """
        return [config.subject] if config.setting == "intra" else self.dataset.others(config.subject)

    def views(self, pictures: Sequence[str], levels: Sequence[Level], fusion: Fusion | None = None) -> Views:
        """Features of pictures, at least at these levels; with a fusion, multi-level ones."""
        if fusion is not None:
            return MultiLevelViews(fusion, self.views(pictures, levels), self.views(pictures, fusion.levels or levels))
        if self.config.views == "online":
            online = self._online(tuple(pictures))
            return lambda *asked: share_out(online, *asked)
        bank = self.bank(pictures)
        bank.fill(levels, self.progress)  # together with the other processes
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
        return self.bank_for_paths([self.dataset.image_path(picture) for picture in pictures])

    def bank_for_paths(self, paths: Sequence[Path]) -> FeatureBank:
        """The feature bank of pictures that need not be the data set's."""
        return FeatureBank(self.config.bank or self.config.data / "Image_feature", self.clip, paths, self.falloff)

    def _make_online(self, pictures: tuple[str, ...]) -> OnlineViews:
        paths = [self.dataset.image_path(picture) for picture in pictures]
        images = read_images(paths, self.clip.image_size, self.progress)
        return OnlineViews(self.clip, images, self.falloff)


def run(
    config: RunConfig,
    run_data: RunData,
    folder: RunFolder,
    progress: Progress = no_progress,
    log: Callable[[dict], None] = lambda metrics: None,
) -> dict:
    """Train, embed the test set, score, and leave everything in the folder. A complete run is not repeated, a stopped one goes on.

    Processes of a team all call it; the first writes, and its `log` hears of the metrics of every epoch.

    Returns the content of result.json.

    Raises:
        UserError: data, options or the folder do not fit, or another process is at work in the folder.
        Stopped: Ctrl-C stopped the training; the same call goes on.
    """
    team = run_data.team
    if (known := team.ask_first(lambda: folder.known(config))) is not None:
        return known
    with folder.claimed(config) if team.rank == 0 else nullcontext(), together(team):
        return _run(config, run_data, folder, progress, log)


def _run(
    config: RunConfig, run_data: RunData, folder: RunFolder, progress: Progress, log: Callable[[dict], None]
) -> dict:
    team = run_data.team

    def report(metrics: dict) -> None:
        if team.rank == 0:
            folder.add_metrics(metrics)
            log(metrics)
        progress("epochs", metrics["epoch"], config.epochs)

    keeper = Checkpointer(folder, team, progress)
    with nullcontext() if config.selection == "oracle" else run_data.sealed():
        trained = train(config, run_data, report, keeper)
    method, known = trained.method, trained.split
    found = evaluate(trained, config, run_data)
    result = {
        "method": config.method,
        "preset": config.preset,
        "note": method.TABLE_NOTE,
        "subject": config.subject,
        "seed": config.seed,
        "epoch": trained.epoch,
        **found.scores.to_json(found.protocol),
        "reliability": asdict(found.reliability) if found.reliability else None,
        "samples": len(known),
        "held_out": len(trained.held_out) if trained.held_out else 0,
        "shape": asdict(trained.shape),
        "ranks": found.ranks.tolist(),
        "images": found.images,
    }
    if team.rank == 0:
        folder.finish(method, found.embeddings, result)
    team.wait()
    return result


def train(
    config: RunConfig,
    run_data: RunData,
    report: Callable[[dict], None] = lambda metrics: None,
    keeper: Checkpointer | None = None,
) -> Trained:
    """Train a method from scratch, or from where its keeper left it, and keep the weights that the selection chooses.

    Reads the test set for an oracle alone.

    Raises:
        UserError: data or options do not fit.
    """
    keeper = keeper or Checkpointer()
    fabric = make_fabric(run_data.device, run_data.team, config.precision)
    split, validation = split_off_validation(run_data.split(run_data.training_subjects(config), "train"), config)
    texts = run_data.texts(split.images, split.concepts)
    shape = shape_of(split, texts.shape[1])
    seed_everything(config.seed, verbose=False)  # not before the picture encoder is loaded, which draws random numbers
    method = build_method(config, shape, len(split), run_data)
    views = run_data.views(split.images, method.training_levels(), method.fusion)
    held_out = examine = None
    if validation is not None:
        held_out = validation, run_data.views(split.images, method.gallery_levels(), method.fusion)
    if config.shuffle_pairs:
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(config.seed)).to(run_data.device)
        split = replace(split, image_of=split.image_of[order])
    if config.selection == "validation":
        gallery = run_data.views(split.images, method.gallery_feature_levels())
        assert validation is not None  # as divide made sure
        held = validation
        examine = lambda: {"validation_top1": validation_top1(method, held, gallery, texts, split.subjects)}  # noqa: E731
    elif config.selection == "oracle":
        examine = oracle(Trained(method, 0, shape, split, validation), run_data, config)
    with keeper.catch_sigint():
        epoch = fit(method, split, views, texts, config, fabric, report, held_out, examine, keeper)
    return Trained(method, epoch, shape, split, validation)


def split_off_validation(split: Split, config: RunConfig) -> tuple[Split, Split | None]:
    """The training data of a run, and what of them is held out.

    Raises:
        UserError: too little is left to train on, or held out to choose by.
    """
    pictures = config.validation
    if config.selection == "validation":
        pictures = pictures or math.ceil(len(split.images) / 20)
    if not pictures:
        return split, None
    split, held_out = hold_out(split, pictures, config.seed)
    if config.selection == "validation" and not one_sample_per_concept_batches(held_out):
        raise UserError(
            f"validation is {pictures}; that holds one concept out, and choosing takes two: hold out more pictures"
        )
    return split, held_out


def oracle(trained: Trained, run_data: RunData, config: RunConfig) -> Callable[[], dict[str, float]]:
    """What tells the figures of the test set after an epoch, as they would be reported."""
    method, test = trained.method, run_data.split(config.subject, "test", config.repetitions)
    views = run_data.views(test.images, method.gallery_feature_levels())
    texts = run_data.texts(test.images, test.concepts)

    def examine() -> dict[str, float]:
        embeddings = compute_embeddings(method, test, views, texts, trained.split.subjects)
        learnt = trained.learn_gate(run_data, test, config) if method.default_gate == "label_free" else None
        found = score(ranks(similarity(embeddings, Scoring(method.default_gate, learnt))))
        return {"test_top1": found.top1, "test_map": found.map}

    return examine


def shape_of(train: Split, embedding: int) -> encoders.InputSpec:
    """What a brain encoder takes and gives."""
    _, channels, time = train.recordings.shape
    return encoders.InputSpec(channels, time, embedding, len(train.subjects))


def build_method(config: RunConfig, shape: encoders.InputSpec, samples: int, run_data: RunData) -> Method:
    """The method of a configuration, for the shape and number of its training data, on their device."""

    def build_encoder(shape: encoders.InputSpec) -> torch.nn.Module:
        encoder = encoders.build(config.encoder, shape, config.encoder_options)
        if config.initial_std is not None:
            encoders.initialise(encoder, config.initial_std)
        return encoder

    method = methods.method_class(config.method)(config.method_options, build_encoder, samples, shape)
    method.fusion = run_data.fusion()
    return method.to(run_data.device)


def load_method(folder: RunFolder, run_data: RunData) -> Method:
    """The method of a complete run, as it was trained, on the device of the materials.

    Raises:
        UserError: the folder holds no complete run, one of an earlier version, or weights that do not fit its configuration.
    """
    result = folder.result()
    if "shape" not in result:
        raise UserError(f"{folder.path}: a run of an earlier version; train it again")
    method = build_method(folder.config(), encoders.InputSpec(**result["shape"]), result["samples"], run_data)
    folder.load_weights(method)
    return method.eval()
