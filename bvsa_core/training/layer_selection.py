"""The layer of the image encoder that recordings are aligned with, chosen on concepts held out of the training data."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from bvsa_core.data.split import Split, hold_out
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress
from bvsa_core.retrieval.result import LayerSelection
from bvsa_core.training.config import RunConfig
from bvsa_core.training.evaluation import Trained
from bvsa_core.training.run_data import RunData
from bvsa_core.training.selection import one_sample_per_concept_batches, validation_top1
from bvsa_core.vision.layers import OUTPUT


def candidates(run_data: RunData) -> tuple[list[str], RunData]:
    """Return the targets to choose from, the layers and the output, and data with all of them."""
    encoder = run_data.encoder
    parts = [*map(str, range(encoder.layer_count)), *([OUTPUT] if encoder.has_output else [])]
    every_layer = run_data.with_target(f"layers:[{','.join(parts)}]")
    return [part if part == OUTPUT else f"layer:{part}" for part in parts], every_layer


def select_layer(
    config: RunConfig,
    run_data: RunData,
    split: Split,
    train: Callable[..., Trained],
    progress: Progress,
    tried: Mapping[str, float],
    keep: Callable[[dict[str, float]], None],
) -> LayerSelection:
    """Train once for every layer and the output on a part of the concepts, and choose by the Top-1 on the others.

    Args:
        config: of the run; its target is not read.
        run_data: the data, whose test set stays sealed.
        split: samples to train on, some of whose concepts are held out.
        train: trains a configuration on samples of some data; `every_layer` has all layers of the images.
        progress: reports the layers.
        tried: Top-1 of targets that an earlier process has tried.
        keep: called with the Top-1 of all targets so far, after each.

    Raises:
        UserError: a single concept would be held out.
    """
    images = config.validation or math.ceil(len(split.images) / 20)
    rest, held_out = hold_out(split, images, config.seed)
    if not one_sample_per_concept_batches(held_out):
        problem = f"select_layer holds {images} images out, which are of one concept, and the choice takes two"
        raise UserError(f"{problem}: hold out more with --validation")
    epochs = config.select_epochs or config.epochs
    trial = replace(config, select_layer=False, selection="last", validation=0, epochs=epochs)
    targets, every_layer = candidates(run_data)
    top1 = {target: tried[target] for target in targets if target in tried}
    for target in (each for each in targets if each not in tried):
        progress("layers", len(top1), len(targets), target)
        data = run_data.with_target(target)
        with run_data.sealed(), data.sealed():
            trained = train(replace(trial, target=target), data, rest, every_layer=every_layer)
            views = data.views(split.images, trained.method.gallery_feature_levels())
            texts = data.texts(split.images, split.concepts)
            top1[target] = validation_top1(trained.method, held_out, views, texts, split.subjects)
        keep(top1)
    progress("layers", len(targets), len(targets))
    concepts = len({concept for _, concept in held_out.shown()})
    return LayerSelection(max(top1, key=lambda target: top1[target]), top1, concepts, epochs)
