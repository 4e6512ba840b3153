"""Convert published recordings into the store: recognise the layout, then read, crop, check and write every split."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bvsa_core.data.dataset import SYNTHETIC, read_description
from bvsa_core.data.layouts import layouts, recognise, stimuli
from bvsa_core.data.layouts.destination import refuse_mixture, refuse_overlap, write_description
from bvsa_core.data.layouts.source import ConversionOptions, Epochs, ReadContext, SubjectSource
from bvsa_core.data.stimulus_texts import STORED, read_texts, store_texts
from bvsa_core.data.store import SPLITS, Header, SplitHeader, SubjectWriter, Writer
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress, no_progress

_ONSET = -1e-6  # seconds; times are rounded to microseconds
_LONGEST = 30.0  # seconds of an epoch; longer ones are given in milliseconds
_SMALLEST = float(np.finfo(np.float16).smallest_normal)


def convert(
    source: Path, store: Path, modality: str, options: ConversionOptions, progress: Progress = no_progress
) -> list[str]:
    """Convert every subject of a published folder. Returns one line per subject.

    Subjects that are there already stay as they are; a conversion that was killed is resumed.
    """
    messages = []
    sources = {each.subject: each for each in recognise(source, modality)}
    if unknown := [name for name in options.subjects if name not in sources]:
        raise UserError(f"{source}: no subject {', '.join(unknown)}; there are {', '.join(sources)}")
    chosen = [each for name, each in sources.items() if not options.subjects or name in options.subjects]
    refuse_overlap(source, (path for each in chosen for path in each.files), store)
    given = _name(source, chosen[0].root, options)
    refuse_mixture(store, given, modality)
    recipes = [each.recipe(options) for each in chosen]
    texts = read_texts(options.texts, options.concepts)
    store.mkdir(parents=True, exist_ok=True)
    write_description(store, given or {"EEG": "THINGS-EEG2", "MEG": "THINGS-MEG"}[modality], modality)
    for each, recipe in zip(chosen, recipes):
        with SubjectWriter(store, each.subject, recipe) as writer:
            done = "was there already" if writer.complete else "converted"
            if not writer.complete:
                convert_subject(each, writer, options, progress)
        messages.append(f"{each.subject}: {each.layout} {done}, in {writer.target}")
    if texts:
        store_texts(store, texts)
        messages.append(f"texts of {texts.source}, in {store / STORED}")
    return messages


def convert_subject(source: SubjectSource, writer: Writer, options: ConversionOptions, progress: Progress) -> None:
    """Read, crop and check both splits of a subject, write them block by block, and commit them."""
    report: Progress = lambda task, *done: progress(f"{source.subject} {task}", *done)  # noqa: E731
    read = layouts()[source.layout].read
    context = ReadContext(options, writer.cached, report)
    splits: dict[str, SplitHeader] = {}
    of_train: tuple[list[str], list[float]] | None = None
    for split in SPLITS:
        epochs: Epochs = read(source, split, context)
        channels = _check_channels(epochs)
        keep, times = _crop(epochs, options.whole_epoch)
        if of_train not in (None, (channels, times)):
            which = "channels" if of_train[0] != channels else "times"
            raise UserError(f"{epochs.path}: its {which} are not those of the train data; fetch both again")
        of_train = channels, times
        shape = (*epochs.shape[:3], len(times))
        _write(epochs, writer.create_array(split, shape), keep, functools.partial(report, split))
        splits[split] = SplitHeader(list(shape), epochs.images, epochs.concepts, epochs.sessions)
    rate = epochs.sampling_rate or round((len(times) - 1) / (times[-1] - times[0]), 3)
    steps = [*epochs.processing, epochs.last_step.format(first=times[0], last=times[-1])]
    header = Header(source.subject, source.modality, epochs.units, rate, channels, times, source.layout, steps, splits)
    writer.commit(dataclasses.replace(header, whitened_from=epochs.whitened_from, source=epochs.source))


def _name(source: Path, root: Path, options: ConversionOptions) -> str | None:
    """Return the name of the data set: the one given, or the one that the source has; None: that of published data."""
    there = next((name for folder in (source, root) if (name := read_description(folder).get("name"))), None)
    if there == SYNTHETIC and options.name not in ("", SYNTHETIC):
        raise UserError(f"name is {options.name!r}: the recordings in {source} are synthetic, and keep that name")
    return options.name or there


def _check_channels(epochs: Epochs) -> list[str]:
    """Return the channels' names, which must be unique and none of them the trigger."""
    path, count = epochs.path, epochs.shape[2]
    channels = stimuli.texts(epochs.channels)
    if channels is None or len(channels) != count:
        names = "their names are no list of names" if channels is None else f"{len(channels)} names"
        raise UserError(f"{path}: {count} channels, and {names}; fetch or make it again")
    if len(set(channels)) != count:
        raise UserError(f"{path}: a channel's name appears twice ({', '.join(channels)}); fetch or make it again")
    if "stim" in channels:
        raise UserError(f"{path}: channel stim is the trigger, which reveals the images; make the file without it")
    return channels


def _crop(epochs: Epochs, whole_epoch: bool) -> tuple[slice, list[float]]:
    """Return the range of samples to keep, and their times in seconds."""
    path, count = epochs.path, epochs.shape[3]
    try:
        times = np.asarray(epochs.times, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: its times are not numbers ({error}); fetch or make it again") from error
    if times.ndim != 1 or len(times) < count or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        need = "they must be increasing seconds, one per sample"
        raise UserError(f"{path}: times of shape {times.shape} for {count} samples; {need}")
    span = f"times run from {times[0]:g} to {times[-1]:g}"
    if times[-1] - times[0] > _LONGEST:
        raise UserError(f"{path}: {span}; they must be seconds after image onset")
    longer, times = len(times) > count, times[-count:]
    if longer and not _ONSET <= times[0] < times[-1] / (count - 1 or 1):
        last = f"{count} samples and {len(epochs.times)} times, of which the last {count} start at {times[0]:g} s"
        raise UserError(f"{path}: {last}, not at image onset; give as many times as samples")
    if whole_epoch and times[0] >= _ONSET:
        raise UserError(f"{path}: has no samples before image onset; leave --whole_epoch out")
    first = 0 if whole_epoch else int(np.searchsorted(times, _ONSET))
    if count - first < 2:
        raise UserError(f"{path}: times run from {times[0]:g} to {times[-1]:g} s, so nothing is left after image onset")
    kept = times[first:].tolist()
    return slice(first, count), [round(time, 6) + 0.0 for time in kept] if epochs.sampling_rate is None else kept


def _write(epochs: Epochs, target: Any, keep: slice, progress: Callable[[int, int], None]) -> None:
    """Copy the epochs into the array of a split; refuse samples too small for float16."""
    trials, done, power, dtype = math.prod(epochs.shape[:2]), 0, 0.0, np.dtype(np.float16)
    progress(0, trials)
    for index, block in epochs.blocks(keep):
        with np.errstate(over="ignore"):  # what is too large for float16 becomes infinite, and the store refuses it
            target[index] = block
        power += float(np.mean(np.square(block, dtype=np.float64))) * (part := math.prod(block.shape[:-2])) / trials
        done, dtype = done + part, block.dtype
        progress(done, trials)
    target.flush()
    if np.sqrt(power) < _SMALLEST and dtype != np.float16:
        small = f"samples are about {np.sqrt(power):.1e}, too small for float16"
        raise UserError(f"{epochs.path}: {small}; bring them to microvolts or whiten them")
