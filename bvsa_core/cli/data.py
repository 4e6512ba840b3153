"""Make or check a data set: bvsa data synthetic FOLDER, bvsa data check FOLDER."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from bvsa_core.cli.arguments import Parser, make
from bvsa_core.cli.progress import Display
from bvsa_core.data.check import check_dataset
from bvsa_core.data.image_set import bring_images
from bvsa_core.data.synthetic import SyntheticConfig, make_dataset
from bvsa_core.errors import UserError


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    commands = parser.add_subcommands(dest="what", required=True)
    synthetic = Parser(description="Make the synthetic data set, in the layout of UBP and BVSA.")
    synthetic.add_argument("folder", type=Path, help="where it goes")
    synthetic.add_class_arguments(SyntheticConfig)
    commands.add_subcommand("synthetic", synthetic, help="make the synthetic data set")
    check = Parser(description="Say what is missing or wrong in a data set, file by file.")
    check.add_argument("folder", type=Path, help="data set in the layout of UBP and BVSA")
    commands.add_subcommand("check", check, help="say what is missing or wrong, file by file")
    images = Parser(description="Check, resize and index the stimuli that a folder of recordings needs.")
    images.add_argument("source", type=Path, help="training_images and test_images as folders or zip files, or the pictures of THINGS")
    images.add_argument("folder", type=Path, help="recordings made by 'bvsa data eeg' or 'meg'; pictures go into its Image_set_Resize")
    images.add_argument("--size", type=int, default=224, help="width and height in pixels; 0 leaves the files as they are")
    images.add_argument("--quality", type=int, default=95, help="of the JPEG files that are made, 1 to 100")
    commands.add_subcommand("images", images, help="check, resize and index the stimuli")


def run(parsed: jsonargparse.Namespace) -> None:
    chosen = parsed[parsed.what]
    if parsed.what == "synthetic":
        config = make(SyntheticConfig, chosen)
        with Display() as display:
            make_dataset(chosen.folder, config, display)
        print(f"synthetic {config.modality.upper()} data of {config.subjects} subject(s) in {chosen.folder}")
        return
    with Display() as display:
        if parsed.what == "images":
            report = bring_images(chosen.source, chosen.folder, chosen.size, chosen.quality, display)
        else:
            report = check_dataset(chosen.folder, display)
    for line in report.found:
        print(line)
    if report.problems:
        for problem in report.problems:
            print(f"wrong: {problem}")
        raise UserError(f"{chosen.folder}: {len(report.problems)} problem(s), listed above")
    print("nothing wrong")


