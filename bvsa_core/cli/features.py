"""Fill the feature bank: features of every image at every blur level, so that runs only look them up.

Shards of the images are shared by --workers of this machine, or by the workers of a Dask --scheduler, each with a GPU
of its own. What is finished stays: the same command continues after a stop.
"""

import re

import jsonargparse

from bvsa_core import methods
from bvsa_core.cli.arguments import Parser, to_dataclass
from bvsa_core.cli.output import say
from bvsa_core.distributed.tasks import TaskPool, Workers
from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import RunDataCache, levels_of
from bvsa_core.experiments.runner import fill_bank
from bvsa_core.progress import Display
from bvsa_core.training.config import GIVEN, RunDataConfig, method_options
from bvsa_core.vision.loading import check_weights
from bvsa_core.vision.views import Level


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    """Add the command's flags."""
    parser.add_class_arguments(RunDataConfig, skip={"views", "chunk", "channels", "window", "average", *GIVEN})
    parser.add_class_arguments(Workers)
    levels = "blur levels as KERNEL:GAIN, such as 51:0.5 1:0; default: the levels of all methods"
    parser.add_argument("--levels", type=str, nargs="+", default=None, help=levels)


def run(parsed: jsonargparse.Namespace) -> None:
    """Fill the banks of the training and the test images."""
    config = to_dataclass(RunDataConfig, parsed)
    levels = levels_of_all_methods() if parsed.levels is None else [parse_level(text) for text in parsed.levels]
    workers = to_dataclass(Workers, parsed)
    check_weights(config.vision, config.weights, config.cache_dir)  # before anything is read that takes long
    with Display() as display, TaskPool(workers, RunDataCache(None, display), RunDataCache) as pool:
        run_data = pool.context.run_data(config)
        shown: dict[str, dict[str, str]] = {}  # concept by image
        for split in ("train", "test"):
            recordings = run_data.dataset.load(run_data.dataset.subjects[0], split)
            shown[split] = dict(zip(recordings.images, recordings.concepts))
            for image in recordings.images:
                run_data.dataset.image_path(image)  # raises, before anything is written, if it is missing
            run_data.prompts(recordings.images, recordings.concepts)  # so does this for texts
        for split, concepts in shown.items():
            fill_bank(run_data, list(concepts), levels, pool, lambda task, *done: display(f"{task} of {split}", *done))  # noqa: B023
            run_data.texts(list(concepts), list(concepts.values()))
            bank = run_data.bank(list(concepts))
            bank.files(levels)  # reports files that were damaged before
            say(f"{split}: {len(concepts)} images at {len(levels)} levels in {bank.folder}")


def levels_of_all_methods() -> list[Level]:
    """Return every level that some method asks for under its default options."""
    options = {name: method_options(name, "corrected") for name in methods.names()}
    return list(dict.fromkeys(level for name in options for level in levels_of(name, options[name])))


def parse_level(text: str) -> Level:
    """Read a level written as KERNEL:GAIN, an odd kernel size and a gain in [0, 1]."""
    match = re.fullmatch(r"(\d+):(\d*\.?\d+)", text)
    if not match or int(match[1]) % 2 == 0 or not 0 <= float(match[2]) <= 1:
        raise UserError(f"level {text!r}; write an odd kernel size and a gain in [0, 1], such as 51:0.5")
    return Level(int(match[1]), float(match[2]))
