"""The epochs of THINGS-MEG (OpenNeuro ds004212): derivatives/preprocessed/preprocessed_P1-epo.fif and its parts.

Hebart et al. (eLife 2023) dropped a broken sensor, filtered to 0.1-40 Hz, cut epochs of -100 to 1300 ms, z-scored each
trial's sensors by their baseline and decimated to 200 Hz. UBP and ATM take the first second of that in float16, without
further scaling or whitening, and so does this module.
"""

import functools
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bvsa_core.data import things_meg
from bvsa_core.data.layouts import meg_trials
from bvsa_core.data.layouts.source import Epochs, ReadContext, SubjectSource
from bvsa_core.errors import UserError, import_mne

LAYOUT = "meg_epochs"
MODALITIES = ("MEG",)
LOOKS_LIKE = "preprocessed_P1-epo.fif, below derivatives/preprocessed or not"

_PLACES = ("", "*/", "derivatives/preprocessed/")
_TABLE_PLACES = ("", "sourcedata/", "Metadata/*-specific/", "*/Metadata/*-specific/")
_BLOCK = 128  # epochs in memory at once; 78 MB at 271 sensors and 281 samples
_TESLA_BELOW = 1e-6  # median size of a sample: far above any field of a brain, far below z-scores
_FEMTO = 1e15
_TAG = struct.Struct(">4i")  # kind, type, bytes of content, position of the next tag: 0 if adjacent, _LAST if none
_LAST = -1
_Z_SCORES = "standard deviations of the baseline"
_DONE_BEFORE = (
    "Before us (Hebart et al. 2023): a broken sensor dropped, filtered to 0.1-40 Hz, cut at the onsets an optical "
    "sensor saw, z-scored for each trial and sensor by the 100 ms before the image, decimated to 200 Hz."
)


def find(folder: Path) -> list[SubjectSource]:
    """Return the subjects of this layout in a folder."""
    sources: dict[str, SubjectSource] = {}
    for first in sorted({path for place in _PLACES for path in folder.glob(f"{place}preprocessed_P*-epo.fif")}):
        person = re.fullmatch(r"preprocessed_P(\d+)-epo\.fif", first.name)
        if not person:
            continue
        subject = f"sub-{int(person[1]):02d}"
        if subject in sources:
            raise UserError(f"{first}: {subject} is in {sources[subject].files[0]} too; keep one of them")
        parts = sorted(first.parent.glob(f"{first.stem}-*.fif"))
        attributes = f"sample_attributes_P{person[1]}.csv"
        tables = _tables(folder, attributes) or _tables(first.parent, attributes)
        images = [*_tables(folder, "image_paths.csv"), *_tables(folder, "image_concept_index.csv")]
        files = [first, *parts, *tables, *images]
        sources[subject] = SubjectSource(LAYOUT, subject, folder, files)
    return [sources[subject] for subject in sorted(sources)]


def read(source: SubjectSource, split: str, context: ReadContext) -> Epochs:
    """Open one split of a subject."""
    path, whole = source.files[0], context.options.whole_epoch
    for part in source.files:
        if part.suffix == ".fif":
            _check_complete(part)
    epochs = _open(path)
    picks = _sensors(epochs, path, context.options.sensors)
    end = _end_of_second(epochs, path)
    times = [round(float(time), 6) for time in epochs.times[: None if whole else end]]
    conditions = meg_trials.arrange(_trials(source, epochs), path)
    load = functools.partial(_load, epochs, picks, path)
    first = np.sort(np.concatenate([each.epochs.ravel() for each in conditions.values()]))[:_BLOCK]
    units = _units(load(first), epochs.times)
    steps = [
        _DONE_BEFORE if units == _Z_SCORES else "Before us: as in the file.",
        "Trials without an object dropped, and from training the concepts of the test images.",
    ]
    window = "The whole epoch kept" if whole else "The second from image onset kept"
    shown = conditions[split]
    return Epochs(
        path,
        (*shown.epochs.shape, len(picks), len(times)),
        lambda keep: _blocks(load, shown.epochs, units, epochs.times, path, keep),
        shown.images,
        shown.concepts,
        [epochs.ch_names[pick] for pick in picks],
        times,
        units,
        steps,
        shown.sessions,
        epochs.info["sfreq"],
        f"{window}; {'Tesla times 1e15, ' if units == 'fT' else ''}rounded to float16.",
    )


def _blocks(
    load: Any, places: np.ndarray, units: str, times: np.ndarray, path: Path, keep: slice
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield the epochs `places`, (conditions, repetitions), in the order of the file; see `Epochs.blocks`."""
    order = np.argsort(places, axis=None)
    numbers = places.ravel()[order]
    for start in range(0, len(order), _BLOCK):
        here = slice(start, start + _BLOCK)
        block = load(numbers[here])
        its = _units(block, times)
        if (its == "fT") != (units == "fT"):
            differs = f"{units} at first, but {its} from epoch {numbers[start] + 1} on"
            raise UserError(f"{path}: {differs}; fetch parts of one version")
        if units == "fT":
            block *= _FEMTO
        yield np.unravel_index(order[here], places.shape), block[..., keep]


def _load(epochs: Any, picks: list[int], path: Path, numbers: np.ndarray) -> np.ndarray:
    """Read epochs, (len(numbers), sensors, time)."""
    try:
        return epochs.get_data(picks=picks, item=numbers, verbose="error")
    except Exception as error:  # damage raises many types: MNE has none of its own for it
        remedy = "fetch it and its parts again"
        raise UserError(f"{path}: cannot be read from epoch {numbers[0] + 1} on ({error}); {remedy}") from error


def _units(block: np.ndarray, times: np.ndarray) -> str:
    """Return the units of samples, judged by their size; MNE calls all of them Tesla."""
    if np.median(np.abs(block)) < _TESLA_BELOW:
        return "fT"
    spread = np.median(block[..., times < -1e-6].std(axis=-1))
    return _Z_SCORES if 0.5 < spread < 2 else "as in the source"


def _check_complete(path: Path) -> None:
    """Follow the tags of a .fif file to the last one: MNE accepts a file that is cut off, and loses its next part."""
    size, position = path.stat().st_size, 0
    with path.open("rb") as stream:
        while position + _TAG.size <= size:
            stream.seek(position)
            kind, _, length, following = _TAG.unpack(stream.read(_TAG.size))
            end = position + _TAG.size + length
            if following == _LAST and end <= size:
                return
            if kind <= 0 or length < 0 or following < 0 or 0 < following <= position:  # zeros: an unfinished download
                break
            position = following or end
    raise UserError(f"{path}: damaged or cut off ({size} bytes, and no end of a .fif file); fetch it again")


def _open(path: Path) -> Any:
    """Open the epochs of a file and its parts; samples stay on disk."""
    mne = import_mne(".fif files")
    try:
        return mne.read_epochs(path, proj=False, preload=False, verbose="error")
    except FileNotFoundError as error:
        raise UserError(f"{path}: a part is missing ({error}); fetch it into the same folder") from error
    except Exception as error:  # MNE has no type of its own for damage
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: it or a part of it is damaged or cut off ({detail}); fetch it again") from error


def _sensors(epochs: Any, path: Path, expected: int) -> list[int]:
    """Return the indices of the MEG sensors among the channels."""
    picks = [number for number, kind in enumerate(epochs.get_channel_types()) if kind in ("mag", "grad")]
    if (count := len(picks)) != expected:
        raise UserError(f"{path}: {count} MEG sensors, not {expected}; if that is right, give --sensors {count}")
    return picks


def _end_of_second(epochs: Any, path: Path) -> int:
    """Return the sample after the first second from image onset, which must be sampled as published."""
    rate, times, expected = epochs.info["sfreq"], epochs.times, things_meg.SAMPLING_RATE
    inside = np.flatnonzero((times > -0.5 / rate) & (times < (things_meg.SAMPLES - 0.5) / expected))
    if rate != expected or len(inside) != things_meg.SAMPLES:
        span = f"epochs run {times[0]:g} to {times[-1]:g} s at {rate:g} Hz"
        raise UserError(f"{path}: {span}; they must hold 0 to 1 s at {expected} Hz, as the published ones do")
    return int(inside[-1]) + 1


def _trials(source: SubjectSource, epochs: Any) -> list[meg_trials.Trial | None]:
    """Return the image of each epoch, by all tables that there are; they must agree."""
    path, events = source.files[0], epochs.events[:, 2]
    files = {file.name.partition("_P")[0]: file for file in source.files if file.suffix == ".csv"}
    tables: dict[str, list[meg_trials.Trial | None]] = {}
    if epochs.metadata is not None:  # a table with pandas, else a list
        rows = epochs.metadata.to_dict("records") if hasattr(epochs.metadata, "to_dict") else epochs.metadata
        name = f"the metadata of {path}"
        tables[name] = meg_trials.from_attributes(rows, events, name)
    if table := files.get("sample_attributes"):
        tables[str(table)] = meg_trials.from_attributes(meg_trials.read_attributes(table), events, table)
    if {"image_paths.csv", "image_concept_index.csv"} <= files.keys():
        images = files["image_paths.csv"]
        known = meg_trials.read_images(images, files["image_concept_index.csv"])
        tables[str(images)] = meg_trials.from_images(*known, events, images)
    if not tables:
        needed = "sourcedata/sample_attributes_P*.csv of ds004212, or image_paths.csv and image_concept_index.csv of"
        raise UserError(f"{path}: nothing says what its epochs show; put {needed} THINGS, into {source.root}")
    (first, trials), *others = tables.items()
    for other, also in others:
        meg_trials.compare(trials, also, first, other)
    return trials


def _tables(folder: Path, name: str) -> list[Path]:
    """Return the table of that name nearest to the folder, if there is any."""
    return next(([path] for place in _TABLE_PLACES for path in sorted(folder.glob(place + name))), [])
