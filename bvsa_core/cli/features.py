"""Fill the feature bank: features of every image at every blur level, so that runs only look them up.

Under torchrun the processes share the images out, each with the GPU of its LOCAL_RANK, and so do commands that are started
by themselves. What is finished stays: the same command continues after a stop.
"""

from __future__ import annotations

import re
from dataclasses import replace

import jsonargparse

from bvsa_core import methods
from bvsa_core.cli.arguments import Parser, to_dataclass
from bvsa_core.cli.progress import Display
from bvsa_core.distributed.processes import team
from bvsa_core.errors import UserError
from bvsa_core.experiments.cell import levels_of
from bvsa_core.training.config import RunDataConfig, method_options
from bvsa_core.training.run_data import RunData
from bvsa_core.vision.views import Level


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    parser.add_class_arguments(RunDataConfig, skip={"views", "channels", "window", "average"})
    levels = "blur levels as KERNEL:GAIN, such as 51:0.5 1:0; default: the levels of all methods"
    parser.add_argument("--levels", type=str, nargs="+", default=None, help=levels)


def run(parsed: jsonargparse.Namespace) -> None:
    config = to_dataclass(RunDataConfig, parsed)
    levels = levels_of_all_methods() if parsed.levels is None else [parse_level(text) for text in parsed.levels]
    with team() as processes, Display(quiet=processes.rank > 0) as display:
        if processes.device and config.device == "auto":
            config = replace(config, device=processes.device)
        run_data = RunData(config, display)
        for split in ("train", "test"):
            recordings = run_data.dataset.load(run_data.dataset.subjects[0], split)
            images = list(dict.fromkeys(recordings.images))
            bank = run_data.bank(images)
            bank.fill(levels, lambda task, *done: display(f"{task} of {split}", *done))  # noqa: B023
            run_data.texts(images, [dict(zip(recordings.images, recordings.concepts))[image] for image in images])
            if processes.rank == 0:
                bank.files(levels)  # tells of what was damaged before
                print(f"{split}: {len(images)} images at {len(levels)} levels in {bank.folder}")


def levels_of_all_methods() -> list[Level]:
    """Every level that some method asks for under its default options."""
    return list(
        dict.fromkeys(level for name in methods.names() for level in levels_of(name, method_options(name, "corrected")))
    )


def parse_level(text: str) -> Level:
    """A level written KERNEL:GAIN.

    Raises:
        UserError: it is written otherwise, or out of range.
    """
    match = re.fullmatch(r"(\d+):(\d*\.?\d+)", text)
    if not match or int(match[1]) % 2 == 0 or not 0 <= float(match[2]) <= 1:
        raise UserError(f"level {text!r}; write an odd kernel size and a gain in [0, 1], such as 51:0.5")
    return Level(int(match[1]), float(match[2]))
