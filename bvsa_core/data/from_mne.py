"""Recordings from epochs of MNE-Python."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bvsa_core.data.dataset import Recordings
from bvsa_core.data.from_arrays import from_arrays, name_of
from bvsa_core.errors import UserError, first_few, import_mne

if TYPE_CHECKING:
    import mne

UNITS = {"eeg": ("µV", 1e6), "mag": ("fT", 1e15), "grad": ("fT/cm", 1e13)}  # factors from MNE's V, T and T/m
_MAX_VOLTS = 1e-2  # no standard deviation of EEG is larger
_EXPORTED = re.compile(r"(?P<dataset>.*), sub-\w+, (?:train|test); units: (?P<units>.*)")  # by to_mne


def from_mne(
    epochs: mne.BaseEpochs | Sequence[mne.BaseEpochs],
    image: str | Sequence[str] | None = None,
    concept: str | Sequence[str] | None = None,
    images: Mapping[str, str] | None = None,
    units: str | None = None,
) -> Recordings:
    """Return the recordings of one subject from MNE epochs, those of an image as its repetitions.

    EEG channels are taken, or else MEG channels, without those marked bad. EEG becomes microvolts, magnetometers
    femtotesla, gradiometers femtotesla per centimetre. For `bvsa_core.Decoder`, or for the store:

        train, test = (bvsa_core.from_mne(each, image="file") for each in (train_epochs, test_epochs))
        bvsa_core.write_subject("STORE", "sub-01", train, test, image_folder="IMAGES")

    Args:
        epochs: epochs of one subject, or a list of its sessions; their numbers are kept. Baseline, filter and rate stay
            as they are. Subjects are converted one by one.
        image: the column of epochs.metadata that names the image of each epoch, or a name for every epoch; default: the
            name of its event.
        concept: the column that says what the image shows, or a text for every epoch; default: the name in its path.
        images: names or paths of the images by what names them in the epochs, such as the name of an event.
        units: of samples that are not in MNE's volts or tesla, such as "whitened"; they are not scaled.

    Raises:
        UserError: MNE is not installed, sessions do not fit together, or there is no such column.
    """
    mne = import_mne("MNE epochs")
    sessions: list[Any] = list(epochs) if isinstance(epochs, (list, tuple)) else [epochs]
    for number, session in enumerate(sessions, start=1):
        if not isinstance(session, mne.BaseEpochs):
            kind = type(session).__name__
            raise UserError(f"epochs: session {number} is a {kind}; give mne.Epochs, or a list of them")
    sessions = [*map(loaded, sessions)]
    if not sum(map(len, sessions)):
        raise UserError("epochs: there are none; give mne.Epochs, or a list of them")
    kinds = _channel_kinds(sessions[0])
    _check_sessions(sessions, list(kinds))
    exported = _EXPORTED.fullmatch(sessions[0].info["description"] or "")
    if units is None and exported and exported["units"] not in dict(UNITS.values()):
        units = exported["units"]
    factors = np.array([1.0 if units is not None else UNITS[kind][1] for kind in kinds.values()])
    parts = [session.get_data(picks=list(kinds), copy=False) * factors[:, None] for session in sessions]
    data = np.concatenate(parts, dtype=np.float32, casting="same_kind")
    if units is None and "eeg" in kinds.values() and (deviation := data.std() / UNITS["eeg"][1]) > _MAX_VOLTS:
        problem = f"samples deviate by {deviation:.2g} V, which is no EEG in volts"
        raise UserError(f"epochs: {problem}; name their unit, such as units='whitened' or units='standardised'")
    names = [name_of(each, images) for each in _labels(sessions, "image", image)]
    return from_arrays(
        data,
        names,
        None if concept is None else _labels(sessions, "concept", concept),
        list(kinds),
        sessions[0].times,
        "EEG" if "eeg" in kinds.values() else "MEG",
        ", ".join(dict.fromkeys(UNITS[kind][0] for kind in kinds.values())) if units is None else units,
        np.repeat(np.arange(len(sessions)) + 1, list(map(len, sessions))).tolist(),
        exported["dataset"] if exported else "",
    )


def loaded(session: mne.BaseEpochs) -> mne.BaseEpochs:
    """Return epochs whose samples are in memory, without those that their thresholds reject; the given ones stay."""
    return session if session.preload else session.copy().load_data()


def subject_of(session: mne.BaseEpochs) -> str:
    """Return the name that epochs give their subject; empty if they give none."""
    return str((session.info["subject_info"] or {}).get("his_id", ""))


def _channel_kinds(session: mne.BaseEpochs) -> dict[str, str]:
    """Return the kinds of the channels to take, by name."""
    kinds = dict(zip(session.ch_names, session.get_channel_types()))
    wanted = ("eeg",) if "eeg" in kinds.values() else ("mag", "grad")
    chosen = {name: kind for name, kind in kinds.items() if kind in wanted and name not in session.info["bads"]}
    if not chosen:
        there = ", ".join(sorted(set(kinds.values())))
        raise UserError(f"epochs: no good EEG or MEG channel among those of kind {there}; set_channel_types or bads")
    return chosen


def _check_sessions(sessions: Sequence[mne.BaseEpochs], channels: list[str]) -> None:
    """Check that sessions are of one subject and have the same channels and times."""
    subjects = {*map(subject_of, sessions)} - {""}
    if len(subjects) > 1:
        problem = f"sessions of several subjects ({first_few(sorted(subjects))})"
        raise UserError(f"epochs: {problem}; convert each subject by itself, or give Decoder.fit a dict of subjects")
    for number, session in enumerate(sessions[1:], start=2):
        own = list(_channel_kinds(session))
        if sorted(own) != sorted(channels):
            differing = first_few(sorted(set(own) ^ set(channels)))
            raise UserError(f"epochs: session {number} has other good channels ({differing}); interpolate or drop them")
        times = session.times, sessions[0].times
        if len(times[0]) != len(times[1]) or not np.allclose(*times, rtol=0, atol=1e-6):
            remedy = "cut and resample all alike"
            raise UserError(f"epochs: session {number} has other times than session 1; {remedy}")


def _labels(sessions: Sequence[mne.BaseEpochs], kind: str, given: str | Sequence[str] | None) -> list[Any]:
    """Return the image or concept of every epoch, from metadata, a list, or the names of events."""
    count = sum(map(len, sessions))
    if given is not None and not isinstance(given, str):
        if len(given) != count:
            raise UserError(f"{kind}: {len(given)} names for {count} epochs; give one an epoch")
        return list(given)
    labels: list[Any] = []
    for session in sessions:
        if given is None:
            names = {code: name for name, code in session.event_id.items()}
            labels += [names[code] for code in session.events[:, 2].tolist()]
            continue
        columns = [] if session.metadata is None else list(session.metadata.columns)
        if given not in columns:
            there = f"there are {first_few(list(map(str, columns)))}" if columns else "the epochs have none"
            raise UserError(f"{kind}: no column {given!r} in epochs.metadata; {there}")
        labels += session.metadata[given].tolist()
    return labels
