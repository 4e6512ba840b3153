"""What the layouts of finished epochs share: the checks of a split, which samples are kept, and the way into the store."""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bvsa_core.data.layouts import stimuli
from bvsa_core.data.layouts.source import ConversionOptions, SubjectSource
from bvsa_core.data.store import SPLITS, Header, SplitHeader, SubjectWriter
from bvsa_core.errors import UserError
from bvsa_core.io.safe_readers import READ_ERRORS, read_arrays
from bvsa_core.progress import Progress

SHAPE = "(conditions, repetitions, channels, time)"
_BLOCK = 2**26  # bytes of the source converted at once
_ONSET = -1e-6  # seconds; times are rounded to microseconds
_LONGEST = 30.0  # seconds of an epoch; more are milliseconds
_SMALLEST = float(np.finfo(np.float16).smallest_normal)


@dataclass(frozen=True)
class Epochs:
    """One split as a layout has it; conditions in the order of their images."""

    path: Path  # what errors call it
    shape: tuple[int, ...]  # (conditions, repetitions, channels, time)
    dtype: np.dtype
    rows: Callable[[slice], np.ndarray]  # some of the conditions
    images: list[str]  # (conditions,)
    concepts: list[str]  # (conditions,)
    channels: Any  # their names, as the file gives them
    times: Any  # (time,) seconds, or those of a longer epoch of which the file keeps the end; as the file gives them
    sessions: list[list[int]] | None = None  # (conditions, repetitions) from 1
    behind: np.ndarray | None = None  # what rows reads, where that may be memory-mapped


def open_file(path: Path) -> Any:
    """The array in a .npy file, memory-mapped, or the plain data of a pickle in one.

    Raises:
        UserError: it is missing, damaged, or holds anything but plain data.
    """
    if path.is_file():
        with contextlib.suppress(*READ_ERRORS):  # read_arrays says it better
            mapped = np.lib.format.open_memmap(path, mode="r")
            if mapped.offset + mapped.nbytes == path.stat().st_size:
                return mapped
    return read_arrays(path)


def check_array(path: Path, data: Any, shape: str = SHAPE) -> np.ndarray:
    """The array itself.

    Raises:
        UserError: it is no array of floats with as many axes as shape names.
    """
    if not isinstance(data, np.ndarray):
        raise UserError(f"{path}: holds a {type(data).__name__} where an array of {shape} belongs; fetch it again")
    if data.ndim != shape.count(",") + 1 or data.dtype.kind != "f" or data.size == 0:
        raise UserError(f"{path}: {data.dtype} of shape {data.shape}; it must be floats of shape {shape}")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """A description of recordings: an object with ch_names and times.

    Raises:
        UserError: it is damaged or lacks one of the two.
    """
    try:
        content = json.loads(path.read_text())
        if len(content["ch_names"]) and np.asarray(content["times"], dtype=np.float64).ndim == 1:
            return content
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError(f"{path}: damaged, or without lists ch_names and times; fetch or make it again")


def file_of(source: SubjectSource, name: str) -> Path:
    """One of the source's files.

    Raises:
        UserError: the layout has it, but this folder does not.
    """
    found = [path for path in source.files if path.name == name]
    if not found:
        raise UserError(f"{source.root}: {source.subject} has no {name}; fetch it")
    return found[0]


def convert(
    source: SubjectSource,
    writer: SubjectWriter,
    options: ConversionOptions,
    progress: Progress,
    read: Callable[[str], Epochs],
    units: str,
    processing: list[str],
) -> None:
    """Write both splits, in blocks of conditions, and finish the subject.

    Raises:
        UserError: what is missing or wrong, by file.
    """
    splits: dict[str, SplitHeader] = {}
    common: tuple[list[str], list[float]] | None = None
    for split in SPLITS:
        epochs = read(split)
        channels = _checked_channels(epochs)
        keep, times = _kept(epochs, options)
        if common not in (None, (channels, times)):
            which = "channels" if common[0] != channels else "times"
            raise UserError(f"{epochs.path}: its {which} are not those of the train data; fetch both again")
        common = channels, times
        shape = (*epochs.shape[:3], len(times))
        _write(epochs, writer.array(split, shape), keep, functools.partial(progress, split))
        splits[split] = SplitHeader(list(shape), epochs.images, epochs.concepts, epochs.sessions)
    rate = round((len(times) - 1) / (times[-1] - times[0]), 3)
    steps = [*processing, f"Samples from {times[0]:g} to {times[-1]:g} s kept, as float16."]
    writer.finish(Header(source.subject, source.modality, units, rate, channels, times, source.layout, steps, splits))


def _checked_channels(epochs: Epochs) -> list[str]:
    path, count = epochs.path, epochs.shape[2]
    channels = stimuli.texts(epochs.channels)
    if channels is None or len(channels) != count:
        told = "what names them is no list of names" if channels is None else f"{len(channels)} names"
        raise UserError(f"{path}: {count} channels, and {told}; fetch or make it again")
    if len(set(channels)) != count:
        raise UserError(f"{path}: a channel's name appears twice ({', '.join(channels)}); fetch or make it again")
    if "stim" in channels:
        raise UserError(f"{path}: channel stim is the trigger, which tells the images; make the file again without it")
    return channels


def _kept(epochs: Epochs, options: ConversionOptions) -> tuple[slice, list[float]]:
    """Which samples are kept, and their times."""
    path, count = epochs.path, epochs.shape[3]
    try:
        times = np.asarray(epochs.times, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: its times are not numbers ({error}); fetch or make it again") from error
    if times.ndim != 1 or len(times) < count or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise UserError(
            f"{path}: times of shape {times.shape} for {count} samples; they must be rising seconds, one a sample"
        )
    if times[-1] - times[0] > _LONGEST:
        raise UserError(
            f"{path}: times run from {times[0]:g} to {times[-1]:g}; they must be seconds after the image appears"
        )
    cut, times = len(times) > count, times[-count:]
    if cut and not _ONSET <= times[0] < times[-1] / (count - 1 or 1):
        started = f"{count} samples and {len(epochs.times)} times, of which the last {count} start at {times[0]:g} s, not at image onset"
        raise UserError(f"{path}: {started}; give as many times as samples")
    first = 0 if options.whole_epoch else int(np.searchsorted(times, _ONSET))
    if options.whole_epoch and times[0] >= _ONSET:
        raise UserError(f"{path}: has no samples before the image appears; leave --whole_epoch out")
    if count - first < 2:
        raise UserError(
            f"{path}: times run from {times[0]:g} to {times[-1]:g} s, which leaves nothing after the image appears"
        )
    return slice(first, count), [round(float(time), 6) + 0.0 for time in times[first:]]


def _write(epochs: Epochs, target: np.memmap, keep: slice, progress: Callable[[int, int], None]) -> None:
    conditions = epochs.shape[0]
    step = max(1, _BLOCK // (int(np.prod(epochs.shape[1:])) * epochs.dtype.itemsize))
    power = 0.0
    for start in range(0, conditions, step):
        progress(start, conditions)
        block = epochs.rows(slice(start, min(start + step, conditions)))[..., keep]
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, and the store refuses it
            target[start : start + len(block)] = block
        drop_pages(epochs.behind)
        power += float(np.mean(np.square(block, dtype=np.float64))) * len(block) / conditions
    progress(conditions, conditions)
    target.flush()
    if np.sqrt(power) < _SMALLEST and epochs.dtype != np.float16:
        deviation = f"{np.sqrt(power):.1e}"
        raise UserError(
            f"{epochs.path}: samples are about {deviation}, too small for float16; bring them to microvolts or whiten them"
        )


def drop_pages(array: Any) -> None:
    """Have the pages read of a memory map leave memory, which would count as this process's."""
    if (mapped := map_behind(array)) is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def map_behind(array: Any) -> mmap.mmap | None:
    """The memory map that an array is a view of; None where it is in memory."""
    while isinstance(array, np.ndarray):
        array = array.base
    mapped = array.obj if isinstance(array, memoryview) else array
    return mapped if isinstance(mapped, mmap.mmap) else None
