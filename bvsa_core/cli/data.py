"""Fetch, make, convert or check a data set."""

import functools
import sys
from collections import Counter
from pathlib import Path

import jsonargparse
import numpy as np

from bvsa_core.cli.arguments import Parser, add_no_lock, to_dataclass
from bvsa_core.cli.output import say
from bvsa_core.data.dataset import Dataset, Recordings
from bvsa_core.data.downloads.registry import published_datasets
from bvsa_core.data.layouts import layouts, ubp
from bvsa_core.data.layouts.convert import convert
from bvsa_core.data.layouts.source import ConversionOptions
from bvsa_core.data.quality.check import check_dataset
from bvsa_core.data.quality.reliability import quality
from bvsa_core.data.stimulus_set import import_images
from bvsa_core.data.store import SPLITS, read_header
from bvsa_core.errors import CheckFailed, UserError
from bvsa_core.progress import Display
from bvsa_core.synthetic.dataset import SyntheticConfig, make_dataset

_ONLY_RAW_EEG, _ONLY_MEG = {"sampling_rate", "whitening"}, {"sensors"}


def add_arguments(parser: Parser, arguments: list[str]) -> None:
    """Add the subcommands and their flags."""
    commands = parser.add_subcommands(dest="what", required=True)
    download = Parser(description=_downloads())
    download.add_argument("name", help=", ".join(published_datasets()))
    download.add_argument("folder", type=Path, help="destination; the same command continues a stopped download")
    download.add_argument("--subjects", type=str, default="", help="numbers, such as 1-10 or 1,3; default: all")
    mirror = "HOST=URL: fetch what is at a host from another address, such as huggingface.co=https://hf-mirror.com"
    download.add_argument("--mirror", type=str, nargs="+", default=[], help=mirror)
    add_no_lock(download)
    commands.add_subcommand("download", download, help="fetch a published data set")
    synthetic = Parser(description="Make the synthetic data set, in the layout of UBP and BVSA.")
    synthetic.add_argument("folder", type=Path, help="folder to write")
    synthetic.add_class_arguments(SyntheticConfig)
    add_no_lock(synthetic)
    commands.add_subcommand("synthetic", synthetic, help="make the synthetic data set")
    for modality, name, skip in (("eeg", "THINGS-EEG2", _ONLY_MEG), ("meg", "THINGS-MEG", _ONLY_RAW_EEG)):
        conversion = _conversion(modality, name, skip)
        commands.add_subcommand(modality, conversion, help=f"convert published {name} recordings")
    export = Parser(description="Write recordings in the layout of UBP and BVSA: sub-XX/train.pt and test.pt.")
    export.add_argument("source", type=Path, help="data set, such as a folder made by 'bvsa data eeg'")
    export.add_argument("folder", type=Path, help="folder to write sub-XX into; existing files stay")
    add_no_lock(export)
    commands.add_subcommand("export", export, help="write recordings in the layout of UBP and BVSA")
    check = Parser(
        description="Report what is missing or wrong in a data set, file by file. Exit code 1 if there are problems."
    )
    folder = "folder made by 'bvsa data', in the layout of UBP and BVSA, or to be converted"
    check.add_argument("folder", type=Path, help=folder)
    stimuli = "stimuli or image_metadata.npy of a folder to be converted; default: looked for beside it"
    check.add_argument("--images", type=Path, help=stimuli)
    check.add_argument("--figures", type=Path, help="folder for figures: evoked responses, reliability, noise, trials")
    add_no_lock(check)
    commands.add_subcommand("check", check, help="report what is missing or wrong, file by file")
    images = Parser(description="Check, resize and index the stimuli that a folder of recordings needs.")
    source = "training_images and test_images as folders or zip files, or the images of THINGS"
    images.add_argument("source", type=Path, help=source)
    folder = "recordings made by 'bvsa data eeg' or 'meg'; the images go into its Image_set_Resize"
    images.add_argument("folder", type=Path, help=folder)
    images.add_argument("--size", type=int, default=224, help="width and height in pixels; 0 keeps the files unchanged")
    images.add_argument("--quality", type=int, default=95, help="quality of the JPEG files that are written, 1 to 100")
    commands.add_subcommand("images", images, help="check, resize and index the stimuli")


def _downloads() -> str:
    """Return the description of `bvsa data download`."""
    known = "; ".join(f"{name}: {each.title}" for name, each in published_datasets().items())
    return f"Fetch a published data set, with its images, and check it by the publisher's checksums. {known}."


def _conversion(modality: str, name: str, skip: set[str]) -> Parser:
    """Return the parser of `bvsa data eeg` or `meg`."""
    known = {key: layout for key, layout in layouts().items() if modality.upper() in layout.MODALITIES}
    looks = "; ".join(f"{layout.LOOKS_LIKE} ({key})" for key, layout in known.items())
    text = f"Convert published {name} recordings into a folder for --data of other commands. The layout is recognised: "
    parser = Parser(description=f"{text}{looks}. The same command continues a stopped conversion.")
    parser.add_argument("source", type=Path, help="published folder; it is only read")
    parser.add_argument("folder", type=Path, help="folder for the recordings; finished subjects in it stay")
    parser.add_argument("--subjects", type=str, nargs="+", default=[], help="such as sub-01 sub-02; default: all")
    parser.add_class_arguments(ConversionOptions, skip={"subjects", *skip})
    add_no_lock(parser)
    return parser


def run(parsed: jsonargparse.Namespace) -> None:
    """Run the subcommand and print what it did."""
    chosen = parsed[parsed.what]
    if parsed.what == "download":
        _download(chosen)
    elif parsed.what == "synthetic":
        config = to_dataclass(SyntheticConfig, chosen)
        with Display() as display:
            make_dataset(chosen.folder, config, display)
        say(f"synthetic {config.modality.upper()} data of {config.subjects} subject(s) in {chosen.folder}")
    elif parsed.what in ("check", "images"):
        _report(parsed.what, chosen)
    else:
        with Display() as display:
            if parsed.what == "export":
                messages = ubp.export(Dataset(chosen.source), chosen.folder, display)
            else:
                options = to_dataclass(ConversionOptions, chosen)
                messages = convert(chosen.source, chosen.folder, parsed.what.upper(), options, display)
        say("\n".join(messages))


def _download(chosen: jsonargparse.Namespace) -> None:
    """Print what is to be fetched, fetch it, and print what to do with it."""
    from bvsa_core.data.downloads.fetch import Download  # needs the extra `download`

    mirrors = dict(each.split("=", 1) if "=" in each else (each, "") for each in chosen.mirror)
    for host, address in mirrors.items():
        if not address.startswith(("http://", "https://")):
            raise UserError(f"--mirror {host}: give HOST=URL, such as huggingface.co=https://hf-mirror.com")
    tell = functools.partial(say, file=sys.stderr)
    download = Download(chosen.name, chosen.folder, chosen.subjects, mirrors, tell)
    say("\n".join(download.describe()))
    with Display() as display:
        messages = download.run(display)
    say("\n".join(messages))


def _report(what: str, chosen: jsonargparse.Namespace) -> None:
    """Check a data set or its images, and print what is there and what is wrong."""
    with Display() as display:
        if what == "images":
            report = import_images(chosen.source, chosen.folder, chosen.size, chosen.quality, display)
        else:
            dataset = Dataset(chosen.folder) if chosen.figures else None  # fails before the check, which takes long
            report = check_dataset(chosen.folder, display, chosen.images)
            report.summary += _draw(dataset, chosen.figures, display) if dataset else []
    for line in report.summary:
        say(line)
    if report.problems:
        for problem in report.problems:
            say(f"wrong: {problem}")
        kind = CheckFailed if what == "check" else UserError
        raise kind(f"{chosen.folder}: {len(report.problems)} problem(s), listed above")
    say("nothing wrong")


def _draw(dataset: Dataset, folder: Path, display: Display) -> list[str]:
    """Save figures of every subject whose recordings can be read. Returns lines about them."""
    from bvsa_core.report import recording_figures, style  # matplotlib is slow to import

    recordings = {}
    for subject in dataset.subjects:
        try:
            test = dataset.load(subject, "test")
            trials = {split: _trials(test if split == "test" else dataset.load(subject, split)) for split in SPLITS}
        except UserError:
            continue  # the check has reported it
        header = read_header(dataset.recordings_folder / subject) if dataset.in_store(subject) else None
        statistics = quality(test.data, progress=functools.partial(display, f"{subject} statistics"))
        before = np.array(header.whitened_from) if header and header.whitened_from else None
        units = header.units if header else ""
        recordings[subject] = recording_figures.RecordingQuality(
            statistics, test.channels, test.times, units, test.modality, trials, before
        )
    figures, messages = recording_figures.recording_figures(recordings)
    written = style.save(figures, folder)
    return [*messages, f"{len(written)} files of {len(figures)} figures in {folder}"]


def _trials(recordings: Recordings) -> dict[int, int]:
    """Count the trials of each session; all are of session 0 if sessions are unknown."""
    conditions, repetitions = recordings.data.shape[:2]
    if recordings.sessions is None:
        return {0: conditions * repetitions}
    return dict(sorted(Counter(session for row in recordings.sessions for session in row).items()))
