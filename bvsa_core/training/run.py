"""One run, from its configuration to its result."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from bvsa_core import encoders, methods
from bvsa_core.data.dataset import RecordingAxes
from bvsa_core.data.split import Split, hold_out
from bvsa_core.errors import UserError
from bvsa_core.methods.base import Method, ProjectedEncoder, Projector
from bvsa_core.progress import Progress, no_progress
from bvsa_core.retrieval.result import RunResult
from bvsa_core.training.augmentation import Augmentation
from bvsa_core.training.checkpoint import Checkpointer
from bvsa_core.training.config import RunConfig, deviations, with_layer
from bvsa_core.training.evaluation import Evaluation, Trained, evaluate, oracle
from bvsa_core.training.layer_selection import select_layer
from bvsa_core.training.logs import Log, no_log
from bvsa_core.training.loop import fit, make_fabric
from bvsa_core.training.run_data import RunData
from bvsa_core.training.run_folder import RunFolder
from bvsa_core.training.selection import one_sample_per_concept_batches, validation_top1
from bvsa_core.vision.layers import OUTPUT, parse_target
from bvsa_core.vision.learnt_blur import LearntBlur

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def run(
    config: RunConfig, run_data: RunData, folder: RunFolder, progress: Progress = no_progress, log: Log = no_log
) -> RunResult:
    """Train, embed the test set and score it; return the result, which is also written to the folder.

    A complete run is not repeated, and a stopped one continues. Processes that train together all call it; the first
    writes, and calls `log` with the metrics of every epoch.

    Raises:
        UserError: data, options or the folder do not fit, or another process is at work in the folder.
        Stopped: a signal, such as Ctrl-C, stopped the training; the same call continues.
    """
    processes = run_data.processes
    if (finished := processes.broadcast(lambda: _finished(folder, config))) is not None:
        return finished

    def keep(metrics: dict) -> None:
        if processes.rank == 0:
            folder.add_metrics(metrics)
            log(metrics)

    report = with_progress(keep, config, progress)
    with folder.locked() if processes.rank == 0 else nullcontext():
        trained = train(config, run_data, report, Checkpointer(folder, processes, progress))
        evaluation = evaluate(trained, config, run_data)
        result = result_of(trained, evaluation, config)
        return processes.broadcast(lambda: folder.finish(trained.method, evaluation.embeddings, result))


def with_progress(log: Log, config: RunConfig, progress: Progress) -> Log:
    """Return a log of the metrics of every epoch that also reports epochs and losses."""

    def report(metrics: dict) -> None:
        log(metrics)
        losses = {"loss": metrics["loss"], "validation": metrics.get("validation_loss")}
        note = ", ".join(f"{name} {value:.4f}" for name, value in losses.items() if value is not None)
        progress("epochs", metrics["epoch"], config.epochs, note)

    return report


def result_of(trained: Trained, evaluation: Evaluation, config: RunConfig) -> RunResult:
    """Return the result of a trained method's evaluation."""
    learnt = trained.method.learnt_blur
    return RunResult(
        method=config.method,
        preset=config.preset,
        note=trained.method.TABLE_NOTE,
        deviations=deviations(config),
        alpha=trained.method.gate_alpha,
        subject=config.subject,
        seed=config.seed,
        epoch=trained.epoch,
        protocol=evaluation.protocol,
        reliability=evaluation.reliability,
        samples=len(trained.split),
        held_out=len(trained.held_out) if trained.held_out else 0,
        shape=trained.shape,
        axes=trained.split.axes,
        ranks=evaluation.ranks.tolist(),
        images=evaluation.images,
        features=config.feature_digests(),
        layers=trained.layers,
        learnt_blur=learnt.values(trained.split.subjects) if learnt else {},
    )


def train(
    config: RunConfig, run_data: RunData, report: Log = no_log, checkpointer: Checkpointer | None = None
) -> Trained:
    """Train a method, from a saved state if there is one, and keep the weights that config.selection chooses.

    Before training, the test set is compared with the training data, and a method that trains on test features gets its
    images and texts. After that, only the selection oracle reads it. `report` is called with every epoch's metrics.
    Nothing is written, not even a feature, before data, encoder and options have been checked.

    Raises:
        UserError: data or options do not fit.
    """
    checkpointer = checkpointer or Checkpointer()
    fabric = make_fabric(run_data.device, run_data.processes, config.precision)
    everything = run_data.split(run_data.training_subjects(config), "train")
    split, validation = split_off_validation(everything, config)
    test, _ = run_data.test_split(config, split, validation)  # which raises if it is no test
    if methods.method_class(config.method).uses_texts:
        run_data.check_texts()
    run_data.prompts(test.images, test.concepts)  # which raises if one has no caption, before the training
    begin = functools.partial(checkpointer.begin, config)
    trial = functools.partial(
        _train, fabric=fabric, begin=begin, checkpointer=Checkpointer(processes=run_data.processes)
    )
    choose = functools.partial(select_layer, config, run_data, everything, trial, run_data.progress)
    layers = checkpointer.select_layer(config, choose)
    if layers is not None:
        config, run_data = with_layer(config, layers.chosen), run_data.with_target(layers.chosen)
        begin = functools.partial(checkpointer.begin, config)
    trained = _train(config, run_data, split, fabric, begin, checkpointer, report, validation, test)
    return replace(trained, layers=layers)


def _train(
    config: RunConfig,
    run_data: RunData,
    split: Split,
    fabric: Fabric,
    begin: Callable[[], None],
    checkpointer: Checkpointer,
    report: Log = no_log,
    validation: Split | None = None,
    test: Split | None = None,
    every_layer: RunData | None = None,
) -> Trained:
    """Train a method on samples, see `train`.

    Args:
        begin: called when data and options have been checked, before anything else is written.
        validation: held-out samples of the same images.
        test: the test set, for methods that train on its features.
        every_layer: data whose features are computed along with those of `run_data`, by one pass over the images.
    """
    from lightning_fabric import seed_everything  # takes a second to import

    _, channels, time = split.recordings.shape
    parts = run_data.part_widths()
    widths = parts[0], len(split.subjects), run_data.text_width(), tuple(parts)
    shape = encoders.InputSpec(channels, time, *widths, run_data.part_layers())
    seed_everything(config.seed, verbose=False)  # after the image encoder, which draws random numbers
    method = build_method(config, shape, len(split), run_data, split.axes)
    left_out = encoders.load_pretrained(method)
    if note := encoders.pretrained_note(method):
        run_data.progress("brain encoder", 1, 1, "; ".join([note, *left_out]))
    if every_layer is not None and config.views == "banked" and config.features is None:
        levels = [*method.training_levels(), *method.gallery_feature_levels()]
        every_layer.bank(split.images).fill(levels, run_data.progress, processes=run_data.processes)
    texts = run_data.texts(split.images, split.concepts)
    views = run_data.views(split.images, method.training_levels(), method)
    held_out = extra_metrics = unpaired = None
    if config.trains_on_test_features and test is not None:
        test_views = run_data.views(test.images, method.training_levels(), method)
        unpaired = test, test_views, run_data.texts(test.images, test.concepts)
    if validation is not None:
        held_out = validation, run_data.views(split.images, method.retrieval_levels(), method)
    if config.shuffle_pairs:
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(config.seed)).to(run_data.device)
        split = replace(split, image_of=split.image_of[order])
    if config.selection == "validation":
        gallery = run_data.views(split.images, method.gallery_feature_levels(), vision=method.vision)
        assert validation is not None  # see split_off_validation
        common = method, validation, gallery, texts, split.subjects
        extra_metrics = lambda: {"validation_top1": validation_top1(*common)}  # noqa: E731
    elif config.selection == "oracle":
        extra_metrics = oracle(Trained(method, 0, shape, split, validation), run_data, config)
    seen, augment = split, make_augmentation(config, split)
    if augment is not None and config.augment_once:
        seen, augment = replace(split, recordings=augment.whole(config.batch_size)), None
    prefetch = run_data.prefetch(split.images)
    begin()
    seal = nullcontext() if config.selection == "oracle" else run_data.sealed()
    with seal, checkpointer.catch_signals():
        log = report, held_out, extra_metrics, checkpointer
        epoch = fit(method, seen, views, texts, config, fabric, *log, unpaired, augment, prefetch)
    return Trained(method, epoch, shape, split, validation)


def _finished(folder: RunFolder, config: RunConfig) -> RunResult | None:
    """Return the result of a complete run, whose features are still those of the files, as far as they are here."""
    finished = folder.finished_result(config)
    if finished is not None and (now := config.feature_digests()):
        _check_features(folder, config, finished, {**finished.features, **now})
    return finished


def _check_features(folder: RunFolder, config: RunConfig, result: RunResult, now: dict[str, str]) -> None:
    for name in {**result.features, **now}:
        if result.features.get(name) != now.get(name):
            problem = (
                f"{name} {getattr(config, name)} {'is not the file of the training' if name in now else 'is missing'}"
            )
            raise UserError(f"{folder.path}: {problem}; bring it back, or delete the folder and train again")


def split_off_validation(split: Split, config: RunConfig) -> tuple[Split, Split | None]:
    """Split the training data of a run into samples to train on and held-out ones, if any."""
    images = config.validation
    if config.selection == "validation":
        images = images or math.ceil(len(split.images) / 20)
    if not images:
        return split, None
    split, held_out = hold_out(split, images, config.seed)
    if config.selection == "validation" and not one_sample_per_concept_batches(held_out):
        problem = f"validation is {images}; that holds one concept out, and selection takes two"
        raise UserError(f"{problem}: hold out more images")
    return split, held_out


def make_augmentation(config: RunConfig, split: Split) -> Augmentation | None:
    """Return the augmentation of a run's training samples, if it has any."""
    if not config.augment:
        return None
    return Augmentation(split, list(config.augment), config.seed, config.mixup_alpha, config.setting == "inter")


def build_method(
    config: RunConfig, shape: encoders.InputSpec, samples: int, run_data: RunData, axes: RecordingAxes | None = None
) -> Method:
    """Build the method of a configuration for a number of training samples, on the device of the data.

    Args:
        config: of the run.
        shape: of the recordings, and widths of the features of images and texts.
        samples: to train on.
        run_data: the data.
        axes: channels and times of the recordings, which pretrained encoders need.

    Raises:
        UserError: method, target and projector do not fit together.
    """
    kind, own_space = methods.method_class(config.method), config.projector != "none"
    _check_target(config, kind, shape)
    to_space = functools.partial(Projector, config.projector, dim=config.projector_dim)
    image_map = to_space(shape.embedding) if own_space else None
    if not own_space and config.target != OUTPUT and not kind.takes_parts:
        image_map = to_space(shape.embedding)  # to unit norm

    def build_encoder(asked: encoders.InputSpec) -> torch.nn.Module:
        width = shape.embedding if own_space else asked.embedding
        encoder = encoders.build(config.encoder, replace(asked, embedding=width), config.encoder_options, axes)
        if config.initial_std is not None:
            encoders.initialise(encoder, config.initial_std)
        encoder = run_data.processes.shard_encoder(encoder, run_data.device)
        if not own_space:
            return encoder
        own = None if config.projector_shared else Projector(config.projector, width, asked.embedding).map
        return ProjectedEncoder(encoder, own, image_map and image_map.map)

    dim = config.projector_dim
    space = replace(shape, embedding=dim, texts=dim) if own_space else shape
    method = kind(config.method_options, build_encoder, samples, space)
    method.image_map = image_map
    if own_space and kind.uses_texts:
        method.texts_share_map = config.projector_shared
        method.text_map = None if config.projector_shared else to_space(shape.text_width)
    has_texts = shape.texts > 0 or not shape.parts  # which results of earlier releases do not have
    in_space_of_texts = not own_space and parse_target(config.target, lambda: 0)[0] == OUTPUT and not kind.takes_parts
    method.compares_texts = has_texts and (kind.uses_texts or in_space_of_texts)
    method.fusion = None if kind.takes_parts else run_data.fusion()
    if config.learn_blur != "off":
        own, gallery = method.training_levels(), method.gallery_levels()
        method.learnt_blur = LearntBlur(config.learn_blur, samples, shape.subjects, own, gallery[len(gallery) // 2])
    if config.vision_lora:
        method.vision = run_data.tuned_vision(config)
    return method.to(run_data.device)


def _check_target(config: RunConfig, kind: type[Method], shape: encoders.InputSpec) -> None:
    """Raise UserError if a method cannot have the target or the projector of a run."""
    if kind.takes_parts and config.target_levels:
        raise UserError(f"method {config.method} fuses layers itself, of one blur level; leave target_levels out")
    if kind.uses_texts and not kind.trains_texts(config.method_options):
        untrained = f"method {config.method} compares texts with embeddings that it trains on images alone"
        if parse_target(config.target, lambda: 0)[0] != OUTPUT:
            raise UserError(f"{untrained}, and target {config.target} is not in their space; put the output first")
        if config.projector != "none" and not config.projector_shared:
            raise UserError(f"{untrained}, so texts would have an untrained map; give --projector_shared true")
    if config.projector == "none":
        return
    if kind.takes_parts or not kind.takes_projectors:
        why = "has its own maps of images" if kind.takes_parts else "is generative: it compares no embeddings"
        raise UserError(f"method {config.method} {why}; leave projector out")
    if config.projector_shared and kind.uses_texts and shape.text_width != shape.embedding:
        widths = f"images have {shape.embedding} dimensions and texts {shape.text_width}"
        raise UserError(f"projector_shared: {widths}, which one map cannot take; leave it out")


def load_method(folder: RunFolder, run_data: RunData) -> Method:
    """Load the trained method of a complete run, on the device of `run_data`.

    Raises:
        UserError: the folder holds no complete run, a run of an earlier version, or weights that do not fit it.
    """
    result = folder.result()
    if result.shape is None:
        raise UserError(f"{folder.path}: a run of an earlier version; train it again")
    config = folder.config()
    _check_features(folder, config, result, config.feature_digests())
    method = build_method(config, result.shape, result.samples, run_data, result.axes)
    folder.load_weights(method)
    return method.eval()
