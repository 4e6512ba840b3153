"""What `bvsa data check` finds: everything that is missing or wrong, not only the first of it."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bvsa_core.data import store, things_eeg, things_meg
from bvsa_core.data.dataset import Dataset, Recordings, read_recordings, read_stored
from bvsa_core.data.layouts import recognise
from bvsa_core.data.quality import dry_run
from bvsa_core.data.quality.bad_samples import first_few, scan
from bvsa_core.data.store import SPLITS, Header
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import Locked, lock
from bvsa_core.io.image_file import read_image
from bvsa_core.progress import Progress, no_progress

_NAMED = 5  # of many files or images
_PUBLISHED = {"EEG": things_eeg, "MEG": things_meg}
_NAMES = {"EEG": "THINGS-EEG2", "MEG": "THINGS-MEG"}
_CONCEPTS = {"train": 1654, "test": 200}
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass
class CheckReport:
    """Lines about what is there, and one for each problem."""

    found: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _SplitSummary:
    """What is compared between subjects, and with the images."""

    path: Path
    channels: list[str]
    times: list[float]
    images: list[str]
    concepts: list[str]
    sessions: set[int]


def check_dataset(folder: Path, progress: Progress = no_progress, images: Path | None = None) -> CheckReport:
    """Read every recordings file and open every image that one of them names.

    Args:
        folder: a store, the layout of UBP and BVSA, or any other published one, of which the conversion is rehearsed.
        images: the stimuli of the latter, or image_metadata.npy, unless they are beside it.

    Raises:
        UserError: the folder is no data set at all.
    """
    report = CheckReport()
    report.problems += _unfinished(folder, report)
    try:
        dataset = Dataset(folder)
    except UserError:
        if not _rehearse(folder, images, progress, report) and not report.problems:
            raise
        return report
    about: dict[tuple[str, str], _SplitSummary] = {}
    for subject in dataset.subjects:
        for split in SPLITS:
            if looked := _recordings(
                dataset, subject, split, report, functools.partial(progress, f"{subject} {split}")
            ):
                about[subject, split] = looked
        splits = [looked for (of, _), looked in about.items() if of == subject]
        if len(splits) == len(SPLITS):
            report.problems += _gaps(dataset.recordings_folder / subject, splits)
    for split in SPLITS:
        report.problems += _differences([looked for (_, of), looked in about.items() if of == split], split)
    report.problems += _leaks(folder, about)
    _images(dataset, dict.fromkeys(image for looked in about.values() for image in looked.images), progress, report)
    return report


def _unfinished(folder: Path, report: CheckReport) -> list[str]:
    """What killed conversions left."""
    problems = []
    for partial in sorted(folder.glob(".sub-*.partial")):
        subject = partial.name.removeprefix(".").removesuffix(".partial")
        try:
            with lock(folder, subject):
                pass
        except Locked:
            report.found.append(f"{folder / subject}: being made by another process")
            continue
        except UserError:
            pass  # nobody can write to the folder
        try:
            layout = json.loads((partial / "plan.json").read_text())["layout"]
        except (OSError, ValueError, KeyError, TypeError):
            layout = ""
        again = f"the same 'bvsa data eeg' or 'meg' command{f' (it reads {layout})' if layout else ''} goes on with it"
        problems.append(f"{partial}: {subject} is half converted; {again}; or delete it")
    return problems


def _rehearse(folder: Path, images: Path | None, progress: Progress, report: CheckReport) -> bool:
    """Check a folder that is to be converted; whether it is one."""
    sources, reason = [], None
    for modality in _PUBLISHED:
        try:
            sources += recognise(folder, modality)
        except UserError as error:
            reason = reason if "none of the published" in str(error) else error
    if not sources and reason is not None and folder.is_dir():
        raise reason
    for source in sources:
        of = lambda what, done, total, name=source.subject: progress(f"{name} {what}", done, total)  # noqa: E731
        found, problems = dry_run.rehearse(source, images, of)
        report.found += found
        report.problems += problems
    return bool(sources)


def _recordings(
    dataset: Dataset, subject: str, split: str, report: CheckReport, progress: Callable[[int, int], None]
) -> _SplitSummary | None:
    """Look at one array and what is told of it; None where it cannot be read."""
    path, folder, header = dataset.path(subject, split), dataset.recordings_folder / subject, None
    try:
        if dataset.in_store(subject):
            header = store.read_header(folder)
            recordings = read_stored(folder, split)
        elif path.is_file():
            recordings = read_recordings(path, finite=False)
        else:
            raise UserError(
                f"{path}: no such file, and no {store.HEADER} beside it; fetch or convert it again, or delete the folder"
            )
    except UserError as error:
        if str(error) not in report.problems:  # as the header that both splits share
            report.problems.append(str(error))
        return None
    problems = _of_header(folder / store.HEADER, header, dataset) if header and split == SPLITS[0] else []
    conditions, repetitions, channels, samples = recordings.data.shape
    shape = f"{conditions} conditions x {repetitions} repetitions x {channels} channels x {samples} samples"
    report.found.append(f"{path}: {shape}, {recordings.times[0]:g} to {recordings.times[-1]:g} s")
    problems += _of_conditions(path, recordings)
    problems += _of_published(path, recordings, split, dataset)
    problems += scan(recordings.data, progress).problems(path, recordings.channels, recordings.images)
    if header:
        try:
            store.verify(folder, header, split)
        except UserError as error:
            problems.append(str(error))
    report.problems += problems
    sessions = {int(session) for row in recordings.sessions or () for session in row}
    return _SplitSummary(
        path, recordings.channels, recordings.times.tolist(), recordings.images, recordings.concepts, sessions
    )


def _of_header(path: Path, header: Header, dataset: Dataset) -> list[str]:
    again = "; make the folder again by bvsa data"
    problems = []
    if not header.units:
        problems.append(f"{path}: does not tell the units{again}")
    if (told := dataset.description.get("modality", header.modality)) != header.modality:
        problems.append(f"{path}: {header.modality} recordings in a folder of {told}{again}")
    steps, rate = np.diff(header.times), header.sampling_rate
    if not np.isfinite(rate) or rate <= 0:
        problems.append(f"{path}: the sampling rate is {rate}{again}")
    elif not np.isfinite(steps).all() or (steps <= 0).any():
        problems.append(f"{path}: times that do not rise{again}")
    elif len(steps) and abs(np.mean(steps) * rate - 1) > 0.01:
        problems.append(f"{path}: {rate:g} Hz, and times {np.mean(steps):g} s apart{again}")
    if twice := _twice(header.channels):
        problems.append(f"{path}: channels named twice: {first_few(twice)}{again}")
    return problems


def _of_conditions(path: Path, recordings: Recordings) -> list[str]:
    if twice := _twice(recordings.images):
        return [f"{path}: {len(twice)} image(s) in two conditions or more ({first_few(twice)}); make the file again"]
    return []


def _of_published(path: Path, recordings: Recordings, split: str, dataset: Dataset) -> list[str]:
    """Compare with what was published where the data set goes by that name, or has as many conditions."""
    facts, name = _PUBLISHED.get(recordings.modality), _NAMES.get(recordings.modality)
    if facts is None or "config" in dataset.description:  # synthetic
        return []
    conditions, repetitions = recordings.data.shape[:2]
    many = _CONCEPTS[split] * (facts.IMAGES_PER_CONCEPT if split == "train" else 1)
    if dataset.name != name and conditions != many:
        return []
    problems, instead = [], "fetch what is missing, or give the data set another --name"
    times = facts.TRAIN_REPETITIONS if split == "train" else facts.TEST_REPETITIONS
    for what, here, published in (("conditions", conditions, many), ("repetitions", repetitions, times)):
        if here != published:
            problems.append(f"{path}: {here} {what}, and {name} has {published}; {instead}")
    if recordings.modality == "EEG" and (
        missing := [each for each in facts.CHANNELS if each not in recordings.channels]
    ):
        problems.append(f"{path}: {name}'s channel(s) {first_few(missing)} missing; {instead}")
    elif len(recordings.channels) != len(facts.CHANNELS):
        problems.append(f"{path}: {len(recordings.channels)} channels, and {name} has {len(facts.CHANNELS)}; {instead}")
    return problems


def _gaps(folder: Path, splits: list[_SplitSummary]) -> list[str]:
    sessions = set().union(*(about.sessions for about in splits))
    if missing := [str(number) for number in range(1, max(sessions, default=0)) if number not in sessions]:
        return [f"{folder}: no recordings of session {first_few(missing)}; fetch them and convert again"]
    return []


def _differences(subjects: list[_SplitSummary], split: str) -> list[str]:
    """What one subject has otherwise than most."""
    problems = []
    for what, get in (("channels", lambda about: tuple(about.channels)), ("times", lambda about: tuple(about.times))):
        usual = Counter(map(get, subjects)).most_common(1)
        problems += [
            f"{about.path}: its {what} ({len(get(about))}) differ from most subjects' ({len(usual[0][0])}); convert all alike"
            for about in subjects
            if get(about) != usual[0][0]
        ]
    everything = dict.fromkeys(image for about in subjects for image in about.images)
    for about in subjects:
        own = set(about.images)
        if missing := [image for image in everything if image not in own]:
            told = f"no recordings of {len(missing)} image(s) that others have ({first_few(missing)})"
            problems.append(f"{about.path}: {told}; fetch all sessions")
    sessions = set().union(*(about.sessions for about in subjects))
    for about in subjects:
        if about.sessions and (lacking := [str(number) for number in sorted(sessions - about.sessions)]):
            problems.append(
                f"{about.path}: no recordings of session {first_few(lacking)}, which others have; fetch them and convert again"
            )
    return problems


def _leaks(folder: Path, about: dict[tuple[str, str], _SplitSummary]) -> list[str]:
    """Test concepts that are trained on."""
    concepts = {
        split: {name for (_, of), looked in about.items() if of == split for name in looked.concepts}
        for split in SPLITS
    }
    if shared := sorted(concepts["train"] & concepts["test"]):
        return [
            f"{folder}: {len(shared)} test concept(s) are trained on too ({first_few(shared)}); retrieval is not zero-shot"
        ]
    return []


def _images(dataset: Dataset, named: Iterable[str], progress: Progress, report: CheckReport) -> None:
    """Open those that recordings name, and tell of others."""
    named, used = list(named), set()
    wrong: dict[str, list[str]] = {"missing": [], "damaged": []}
    for done, image in enumerate(named):
        progress("images", done, len(named))
        kind = "missing"
        try:
            used.add(path := dataset.image_path(image))
            kind = "damaged"
            read_image(path)
        except UserError as error:
            wrong[kind].append(str(error))
    progress("images", len(named), len(named))
    report.found.append(f"{len(named)} images named")
    for kind, problems in wrong.items():
        report.problems += problems[:_NAMED]
        if len(problems) > _NAMED:
            report.problems.append(
                f"{dataset.root}: {len(problems)} images {kind} in all, of {len(named)}; the first {_NAMED} are above"
            )
    there = (
        path
        for folder in dataset.image_folders
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
    )
    if spare := [str(path) for path in there if path not in used and not path.name.startswith(".")]:
        report.found.append(f"{len(spare)} images that no recording names: {first_few(spare)}")


def _twice(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
