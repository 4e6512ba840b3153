"""The epochs of THINGS-MEG (OpenNeuro ds004212): derivatives/preprocessed/preprocessed_P1-epo.fif and its parts.

Hebart et al. (eLife 2023) dropped a broken sensor, filtered to 0.1-40 Hz, cut epochs of -100 to 1300 ms, z-scored each trial's
sensors by their baseline and decimated to 200 Hz. UBP and ATM take the first second of that as it is, in float16: no further
scaling, no whitening. So does this.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bvsa_core.data import things_meg
from bvsa_core.data.layouts import meg_trials
from bvsa_core.data.layouts.source import ConversionOptions, SubjectSource
from bvsa_core.data.optional import import_mne
from bvsa_core.data.store import SPLITS, Header, SplitHeader, SubjectWriter
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress

LAYOUT = "meg_epochs"
MODALITIES = ("MEG",)
LOOKS_LIKE = "preprocessed_P1-epo.fif, below derivatives/preprocessed or not"

_PLACES = ("", "*/", "derivatives/preprocessed/")
_TABLE_PLACES = ("", "sourcedata/", "Metadata/*-specific/", "*/Metadata/*-specific/")
_BLOCK = 128  # epochs in memory at once; 78 MB at 271 sensors and 281 samples
_TESLA_BELOW = 1e-6  # median size of a sample; no field of a brain is near it, and z-scores are far above it
_FEMTO = 1e15
_TAG = struct.Struct(">4i")  # kind, type, bytes that follow, where the next one is: 0 next to it, _LAST nowhere
_LAST = -1
_Z_SCORES = "standard deviations of the baseline"
_DONE_BEFORE = [
    "Before us (Hebart et al. 2023): a broken sensor dropped, filtered to 0.1-40 Hz, cut at the onsets an optical sensor saw,"
    " z-scored for each trial and sensor by the 100 ms before the image, decimated to 200 Hz."
]


def find(folder: Path) -> list[SubjectSource]:
    """Its subjects; none where this is another layout.

    Raises:
        UserError: a subject is there twice.
    """
    sources: dict[str, SubjectSource] = {}
    for first in sorted({path for place in _PLACES for path in folder.glob(f"{place}preprocessed_P*-epo.fif")}):
        person = re.fullmatch(r"preprocessed_P(\d+)-epo\.fif", first.name)
        if not person:
            continue
        subject = f"sub-{int(person[1]):02d}"
        if subject in sources:
            raise UserError(f"{first}: {subject} is in {sources[subject].files[0]} too; keep one of them")
        parts = sorted(first.parent.glob(f"{first.stem}-*.fif"))
        tables = _tables(folder, f"sample_attributes_P{person[1]}.csv") or _tables(
            first.parent, f"sample_attributes_P{person[1]}.csv"
        )
        images = [*_tables(folder, "image_paths.csv"), *_tables(folder, "image_concept_index.csv")]
        settled = ("sampling_rate", "whitening")
        sources[subject] = SubjectSource(LAYOUT, subject, folder, [first, *parts, *tables, *images], _read, settled)
    return [sources[subject] for subject in sorted(sources)]


def _read(source: SubjectSource, writer: SubjectWriter, options: ConversionOptions, progress: Progress) -> None:
    path = source.files[0]
    for part in source.files:
        if part.suffix == ".fif":
            _check_whole(part)
    epochs = _open(path)
    picks = _sensors(epochs, path, options.sensors)
    kept, times = _window(epochs, path, options.whole_epoch)
    found = meg_trials.arrange(_trials(source, epochs), path)
    arrays: dict[str, np.ndarray] = {}
    places: dict[int, tuple[str, int, int]] = {}
    for split in SPLITS:
        shown = found[split].epochs
        arrays[split] = writer.array(split, (*shown.shape, len(picks), len(times)))
        places |= {
            int(epoch): (split, condition, repetition) for (condition, repetition), epoch in np.ndenumerate(shown)
        }
    units = _copy(epochs, picks, kept, places, arrays, path, progress)
    window = "The whole epoch kept" if options.whole_epoch else "The second from image onset kept"
    steps = [
        *(_DONE_BEFORE if units == _Z_SCORES else ["Before us: as in the file."]),
        "Trials without an object dropped, and from training the concepts of the test images.",
        f"{window}; {'Tesla times 1e15, ' if units == 'fT' else ''}rounded to float16.",
    ]
    channels = [epochs.ch_names[pick] for pick in picks]
    header = Header(source.subject, "MEG", units, epochs.info["sfreq"], channels, times, LAYOUT, steps)
    header.splits.update(
        {split: SplitHeader([], about.images, about.concepts, about.sessions) for split, about in found.items()}
    )
    writer.finish(header)


def _copy(
    epochs: Any,
    picks: list[int],
    kept: slice,
    places: Mapping[int, tuple[str, int, int]],
    arrays: Mapping[str, np.ndarray],
    path: Path,
    progress: Progress,
) -> str:
    """Bring every epoch to its place, block by block in the order of the file. Returns the units.

    Raises:
        UserError: the file is cut off, or its parts are in different units.
    """
    order, units = sorted(places), ""
    for start in range(0, len(order), _BLOCK):
        progress("epochs", start, len(order))
        numbers = order[start : start + _BLOCK]
        try:
            block = epochs.get_data(picks=picks, item=np.array(numbers), verbose="error")
        except Exception as error:  # MNE has no class of its own for damage; numpy, struct and assertions speak up
            raise UserError(
                f"{path}: cannot be read from epoch {numbers[0] + 1} on ({error}); fetch it and its parts again"
            ) from error
        here = _units(block, epochs.times < -1e-6)
        units = units or here
        if (here == "fT") != (units == "fT"):
            raise UserError(
                f"{path}: {units} at first, but {here} from epoch {numbers[0] + 1} on; fetch parts of one version"
            )
        if units == "fT":
            block *= _FEMTO
        with np.errstate(over="ignore"):  # what becomes infinite is named when the subject is finished
            block = block[..., kept].astype(np.float16)
        for number, samples in zip(numbers, block):
            split, condition, repetition = places[number]
            arrays[split][condition, repetition] = samples
    progress("epochs", len(order), len(order))
    return units


def _units(block: np.ndarray, baseline: np.ndarray) -> str:
    """What samples are stored in, by their size; MNE calls all of them Tesla."""
    if np.median(np.abs(block)) < _TESLA_BELOW:
        return "fT"
    spread = np.median(block[..., baseline].std(axis=-1))
    return _Z_SCORES if 0.5 < spread < 2 else "as in the source"


def _check_whole(path: Path) -> None:
    """Go from tag to tag to the last one. MNE takes a file that is cut off for one without its last tags, such as the name of the
    next part.

    Raises:
        UserError: the file is cut off, or none of this kind.
    """
    size, position = path.stat().st_size, 0
    with path.open("rb") as stream:
        while position + _TAG.size <= size:
            stream.seek(position)
            kind, _, length, following = _TAG.unpack(stream.read(_TAG.size))
            end = position + _TAG.size + length
            if following == _LAST and end <= size:
                return
            if (
                kind <= 0 or length < 0 or following < 0 or 0 < following <= position
            ):  # zeros are what a download leaves for later
                break
            position = following or end
    raise UserError(f"{path}: damaged or cut off ({size} bytes, and no end of a .fif file); fetch it again")


def _open(path: Path) -> Any:
    """The epochs of a file and its parts; samples stay on disk.

    Raises:
        UserError: MNE is not installed, or the file is damaged, or a part is missing.
    """
    mne = import_mne(".fif files")
    try:
        return mne.read_epochs(path, proj=False, preload=False, verbose="error")
    except FileNotFoundError as error:
        raise UserError(f"{path}: a part is missing ({error}); fetch it into the same folder") from error
    except Exception as error:  # MNE has no class of its own for damage
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: it or a part of it is damaged or cut off ({detail}); fetch it again") from error


def _sensors(epochs: Any, path: Path, expected: int) -> list[int]:
    picks = [number for number, kind in enumerate(epochs.get_channel_types()) if kind in ("mag", "grad")]
    if len(picks) != expected:
        raise UserError(
            f"{path}: {len(picks)} MEG sensors, not {expected}; if that is right, say so by --sensors {len(picks)}"
        )
    return picks


def _window(epochs: Any, path: Path, whole: bool) -> tuple[slice, list[float]]:
    """The samples to keep, and their times in seconds."""
    rate, times = epochs.info["sfreq"], epochs.times
    inside = np.flatnonzero((times > -0.5 / rate) & (times < (things_meg.SAMPLES - 0.5) / things_meg.SAMPLING_RATE))
    if rate != things_meg.SAMPLING_RATE or len(inside) != things_meg.SAMPLES:
        runs = f"{times[0]:g} to {times[-1]:g} s at {rate:g} Hz"
        raise UserError(
            f"{path}: epochs run {runs}; they must hold 0 to 1 s at {things_meg.SAMPLING_RATE} Hz, as the published ones do"
        )
    kept = slice(None) if whole else slice(int(inside[0]), int(inside[-1]) + 1)
    return kept, [round(float(time), 6) for time in times[kept]]


def _trials(source: SubjectSource, epochs: Any) -> list[meg_trials.Trial | None]:
    """What each epoch shows, by all tables that there are.

    Raises:
        UserError: there is none, or they contradict each other or the epochs.
    """
    path, events = source.files[0], epochs.events[:, 2]
    named = {file.name.partition("_P")[0]: file for file in source.files if file.suffix == ".csv"}
    told = {}
    if epochs.metadata is not None:  # a table where pandas is installed, else a list
        rows = epochs.metadata.to_dict("records") if hasattr(epochs.metadata, "to_dict") else epochs.metadata
        told[f"the metadata of {path}"] = lambda where: meg_trials.from_attributes(rows, events, where)
    if table := named.get("sample_attributes"):
        told[str(table)] = lambda where: meg_trials.from_attributes(meg_trials.read_attributes(table), events, where)
    if {"image_paths.csv", "image_concept_index.csv"} <= named.keys():
        images = meg_trials.read_images(named["image_paths.csv"], named["image_concept_index.csv"])
        told[str(named["image_paths.csv"])] = lambda where: meg_trials.from_images(*images, events, where)
    if not told:
        wanted = (
            "sourcedata/sample_attributes_P*.csv of ds004212, or image_paths.csv and image_concept_index.csv of THINGS,"
        )
        raise UserError(f"{path}: does not tell what its epochs show; put {wanted} into {source.root}")
    (first, trials), *others = [(where, read(where)) for where, read in told.items()]
    for other, also in others:
        meg_trials.compare(trials, also, first, other)
    return trials


def _tables(folder: Path, name: str) -> list[Path]:
    """The table of that name nearest to the folder, if there is any."""
    return next(([path] for place in _TABLE_PLACES for path in sorted(folder.glob(place + name))), [])
