"""Everything that is missing or wrong in a data set, for `bvsa data check`."""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bvsa_core.data import store, things_eeg, things_meg
from bvsa_core.data.dataset import Dataset, Recordings, read_recordings, read_stored
from bvsa_core.data.layouts import recognise
from bvsa_core.data.layouts.files import repeated
from bvsa_core.data.leaks import shared_concepts, shared_images
from bvsa_core.data.quality.bad_samples import count_bad_samples
from bvsa_core.data.quality.dry_run import dry_run
from bvsa_core.data.store import SPLITS, Header
from bvsa_core.errors import UserError, first_few
from bvsa_core.io.atomic import Locked, lock
from bvsa_core.io.image_file import read_image
from bvsa_core.io.text_files import read_json
from bvsa_core.progress import Progress, no_progress

_NAMED = 5  # of many files or images
_PUBLISHED = {"EEG": things_eeg, "MEG": things_meg}
_NAMES = {"EEG": "THINGS-EEG2", "MEG": "THINGS-MEG"}
_CONCEPTS = {"train": 1654, "test": 200}
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass
class CheckReport:
    """Lines about what is there, and one for each problem."""

    summary: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _SplitSummary:
    """The parts of a split that are compared between subjects, and with the images."""

    path: Path
    channels: list[str]
    times: list[float]
    images: list[str]
    concepts: list[str]
    sessions: set[int]


def check_dataset(folder: Path, progress: Progress = no_progress, images: Path | None = None) -> CheckReport:
    """Read every recordings file and open every image that one of them names.

    Args:
        folder: a store, the layout of UBP and BVSA, or any other published layout, whose conversion is tried.
        progress: receives the progress of each subject and of the images.
        images: stimuli or image_metadata.npy of a published layout; default: looked for beside the recordings.

    Raises:
        UserError: the folder is no data set at all.
    """
    report = CheckReport()
    _unfinished(folder, report)
    try:
        dataset = Dataset(folder)
    except UserError:
        if not _published(folder, images, progress, report) and not report.problems:
            raise
        return report
    about: dict[tuple[str, str], _SplitSummary] = {}
    for subject in dataset.subjects:
        for split in SPLITS:
            of_split = functools.partial(progress, f"{subject} {split}")
            if summary := _recordings(dataset, subject, split, report, of_split):
                about[subject, split] = summary
        splits = [summary for (of, _), summary in about.items() if of == subject]
        if len(splits) == len(SPLITS):
            report.problems += _gaps(dataset.recordings_folder / subject, splits)
    for split in SPLITS:
        report.problems += _differences([summary for (_, of), summary in about.items() if of == split])
    images_named = dict.fromkeys(image for summary in about.values() for image in summary.images)
    paths = _images(dataset, images_named, len(about) == len(dataset.subjects) * len(SPLITS), progress, report)
    report.problems += _leaks(folder, about, paths)
    return report


def _unfinished(folder: Path, report: CheckReport) -> None:
    """Report what killed conversions left."""
    for partial in sorted(folder.glob(".sub-*.partial")):
        subject, layout = partial.name.removeprefix(".").removesuffix(".partial"), ""
        try:
            with lock(folder, subject):
                pass
        except Locked:
            report.summary.append(f"{folder / subject}: being made by another process")
            continue
        except UserError:
            pass  # nobody can write to the folder
        with contextlib.suppress(UserError, KeyError):  # the layout is then unknown
            layout = f" (it reads {read_json(partial / store.RECIPE, 'delete it')['layout']})"
        again = f"the same 'bvsa data eeg' or 'meg' command{layout} resumes it"
        report.problems.append(f"{partial}: {subject} is half converted; {again}; or delete it")


def _published(folder: Path, images: Path | None, progress: Progress, report: CheckReport) -> bool:
    """Check a folder of a published layout by a dry run. Returns whether it is one."""
    sources, reason = [], None
    for modality in _PUBLISHED:
        try:
            sources += recognise(folder, modality)
        except UserError as error:
            reason = reason if "none of the published" in str(error) else error
    if not sources and reason is not None and folder.is_dir():
        raise reason
    for source in sources:
        splits, problems = dry_run(source, images, progress)
        report.summary += splits
        report.problems += problems
    return bool(sources)


def _recordings(
    dataset: Dataset, subject: str, split: str, report: CheckReport, progress: Callable[[int, int], None]
) -> _SplitSummary | None:
    """Check one array and its description. Returns None if it cannot be read."""
    path, folder, header = dataset.path(subject, split), dataset.recordings_folder / subject, None
    try:
        if dataset.in_store(subject):
            header = store.read_header(folder)
            recordings = read_stored(folder, split)
        elif path.is_file():
            recordings = read_recordings(path, finite=False)
        else:
            missing = f"no such file, and no {store.HEADER} beside it"
            raise UserError(f"{path}: {missing}; fetch or convert it again, or delete the folder")
    except UserError as error:
        if str(error) not in report.problems:  # both splits share a header
            report.problems.append(str(error))
        return None
    problems = _header(folder / store.HEADER, header, dataset) if header and split == SPLITS[0] else []
    conditions, repetitions, channels, samples = recordings.data.shape
    shape = f"{conditions} conditions x {repetitions} repetitions x {channels} channels x {samples} samples"
    report.summary.append(f"{path}: {shape}, {recordings.times[0]:g} to {recordings.times[-1]:g} s")
    if twice := repeated(recordings.images):
        several = f"{len(twice)} image(s) in two conditions or more ({first_few(twice)})"
        problems.append(f"{path}: {several}; make the file again")
    if header is None and (problem := recordings.axes.problem()):
        problems.append(f"{path}: {problem}")
    problems += _as_published(path, recordings, split, dataset)
    problems += count_bad_samples(recordings.data, progress).messages(path, recordings.channels, recordings.images)
    if header:
        try:
            store.verify(folder, header, split)
        except UserError as error:
            problems.append(str(error))
    report.problems += problems
    sessions = {int(session) for row in recordings.sessions or () for session in row}
    times = recordings.times.tolist()
    return _SplitSummary(path, recordings.channels, times, recordings.images, recordings.concepts, sessions)


def _header(path: Path, header: Header, dataset: Dataset) -> list[str]:
    again = "; make the folder again by bvsa data"
    problems = []
    if not header.units:
        problems.append(f"{path}: has no units{again}")
    if (modality := dataset.description.get("modality", header.modality)) != header.modality:
        problems.append(f"{path}: {header.modality} recordings in a folder of {modality}{again}")
    steps, rate = np.diff(header.times), header.sampling_rate
    if not np.isfinite(rate) or rate <= 0:
        problems.append(f"{path}: the sampling rate is {rate}{again}")
    elif not np.isfinite(steps).all() or (steps <= 0).any():
        problems.append(f"{path}: times that do not increase{again}")
    elif len(steps) and abs(np.mean(steps) * rate - 1) > 0.01:
        problems.append(f"{path}: {rate:g} Hz, and times {np.mean(steps):g} s apart{again}")
    if twice := repeated(header.channels):
        problems.append(f"{path}: channels named twice: {first_few(twice)}{again}")
    return problems


def _as_published(path: Path, recordings: Recordings, split: str, dataset: Dataset) -> list[str]:
    """Compare with the published data if the data set has their name, or as many conditions."""
    facts, name = _PUBLISHED.get(recordings.modality), _NAMES.get(recordings.modality)
    if facts is None or dataset.synthetic:
        return []
    conditions, repetitions, channels = recordings.data.shape[0], recordings.data.shape[1], recordings.channels
    of_name = _CONCEPTS[split] * (facts.IMAGES_PER_CONCEPT if split == "train" else 1)
    if dataset.name != name and conditions != of_name:
        return []
    problems, remedy = [], "fetch what is missing, or give the data set another --name"
    shown = facts.TRAIN_REPETITIONS if split == "train" else facts.TEST_REPETITIONS
    for what, here, published in (("conditions", conditions, of_name), ("repetitions", repetitions, shown)):
        if here != published:
            problems.append(f"{path}: {here} {what}, and {name} has {published}; {remedy}")
    missing = [each for each in facts.CHANNELS if each not in channels] if recordings.modality == "EEG" else []
    if set(channels) == set(things_eeg.OCCIPITAL_CHANNELS):  # all that the authors' files at 100 Hz have
        return problems
    if missing:
        problems.append(f"{path}: {name}'s channel(s) {first_few(missing)} missing; {remedy}")
    elif len(channels) != len(facts.CHANNELS):
        problems.append(f"{path}: {len(channels)} channels, and {name} has {len(facts.CHANNELS)}; {remedy}")
    return problems


def _gaps(folder: Path, splits: list[_SplitSummary]) -> list[str]:
    """Report sessions that no split has, below the last one."""
    sessions = set().union(*(summary.sessions for summary in splits))
    if missing := [str(number) for number in range(1, max(sessions, default=0)) if number not in sessions]:
        return [f"{folder}: no recordings of session {first_few(missing)}; fetch them and convert again"]
    return []


def _differences(subjects: list[_SplitSummary]) -> list[str]:
    """Report in what a subject differs from most, in one split."""
    problems = []
    for name in ("channels", "times"):
        values = [getattr(summary, name) for summary in subjects]
        usual = Counter(map(tuple, values)).most_common(1)
        for summary, value in zip(subjects, values):
            if tuple(value) != usual[0][0]:
                differs = f"its {name} ({len(value)}) differ from most subjects' ({len(usual[0][0])})"
                problems.append(f"{summary.path}: {differs}; convert all alike")
    everything = dict.fromkeys(image for summary in subjects for image in summary.images)
    for summary in subjects:
        own = set(summary.images)
        if missing := [image for image in everything if image not in own]:
            absent = f"no recordings of {len(missing)} image(s) that others have ({first_few(missing)})"
            problems.append(f"{summary.path}: {absent}; fetch all sessions")
    sessions = set().union(*(summary.sessions for summary in subjects))
    for summary in subjects:
        if summary.sessions and (missing := [str(number) for number in sorted(sessions - summary.sessions)]):
            absent = f"no recordings of session {first_few(missing)}, which others have"
            problems.append(f"{summary.path}: {absent}; fetch them and convert again")
    return problems


def _leaks(folder: Path, about: dict[tuple[str, str], _SplitSummary], paths: dict[str, Path]) -> list[str]:
    """Report test concepts and images that are trained on; `paths` are those of images that can be read."""
    train, test = ([summary for (_, split), summary in about.items() if split == name] for name in SPLITS)
    concepts = shared_concepts(*({name for each in part for name in each.concepts} for part in (train, test)))
    named = ({name for each in part for name in each.images} for part in (train, test))
    images = shared_images(*({paths[name] for name in names & paths.keys()} for names in named))
    shared = {"concept(s)": concepts, "image(s)": [path.name for path in images]}
    leaks = [
        f"{len(names)} test {kind} are trained on too ({first_few(names)})" for kind, names in shared.items() if names
    ]
    return [f"{folder}: {leak}; retrieval is not zero-shot" for leak in leaks]


def _images(
    dataset: Dataset, named: Iterable[str], all_named: bool, progress: Progress, report: CheckReport
) -> dict[str, Path]:
    """Open the images that recordings name. Returns the paths of those read.

    Other images in the folders are reported if all recordings could be read, which may name them.
    """
    named, used, read = list(named), set(), dict[str, Path]()
    wrong: dict[str, list[str]] = {"missing": [], "damaged": []}
    for done, image in enumerate(named):
        progress("images", done, len(named))
        kind = "missing"
        try:
            used.add(path := dataset.image_path(image))
            kind = "damaged"
            read_image(path)
            read[image] = path
        except UserError as error:
            wrong[kind].append(str(error))
    progress("images", len(named), len(named))
    report.summary.append(f"{len(named)} images named")
    for kind, problems in wrong.items():
        report.problems += problems[:_NAMED]
        if (count := len(problems)) > _NAMED:
            total = f"{count} images {kind} in all, of {len(named)}"
            report.problems.append(f"{dataset.root}: {total}; the first {_NAMED} are above")
    if not all_named:
        return read
    files = (path for folder in dataset.image_folders for path in sorted(folder.rglob("*")) if path not in used)
    if spare := [str(path) for path in files if path.suffix.lower() in _SUFFIXES and path.name[0] != "."]:
        report.summary.append(f"{len(spare)} images that no recording names: {first_few(spare)}")
    return read
