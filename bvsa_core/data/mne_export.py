"""Export recordings to MNE-Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bvsa_core.data.dataset import Dataset
from bvsa_core.data.store import read_header
from bvsa_core.errors import UserError, import_mne

if TYPE_CHECKING:
    import mne

_SCALE = {"µV": 1e-6, "fT": 1e-15}  # to volts and tesla, the units of MNE


def to_mne(
    dataset: Dataset | str | Path, subject: str, split: str, conditions: Sequence[int] | None = None
) -> mne.EpochsArray:
    """Return one split of one subject as MNE epochs: every repetition of every condition, as float64.

    Event code c is condition c - 1, and the tags "concept/image" select by either: epochs["aardvark"]. The second
    column of the events is the session, or 0 if it is unknown. EEG channels have the positions of MNE's montage
    easycap-M1 (the 10-10 system), if it has their names; MEG channels are magnetometers without positions. MNE expects
    volts and tesla; whitened recordings have no unit and are not scaled, as epochs.info["description"] says.

    Args:
        dataset: the data set, or its folder.
        subject: such as "sub-01".
        split: "train" or "test".
        conditions: rows of the split; default: all.

    Raises:
        UserError: MNE is not installed, or there is no such subject, split or condition.
    """
    mne = import_mne("MNE epochs")
    dataset = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    recordings = dataset.load(subject, split)
    rows = np.arange(len(recordings)) if conditions is None else np.asarray(conditions, dtype=int).ravel()
    if wrong := [row for row in rows.tolist() if not 0 <= row < len(recordings)]:
        known = f"there are 0 to {len(recordings) - 1}"
        raise UserError(f"{dataset.path(subject, split)}: no condition {wrong[0]}; {known}")
    units, rate, sessions = "unknown, most likely whitened", 1 / np.diff(recordings.times).mean(), None
    if dataset.in_store(subject):
        header = read_header(dataset.recordings_folder / subject)
        units, rate, sessions = header.units, header.sampling_rate, recordings.sessions
    data = np.concatenate(recordings.data[rows], dtype=np.float64)
    data *= _SCALE.get(units, 1)
    repetitions = recordings.data.shape[1]
    info = mne.create_info(recordings.channels, rate, "mag" if recordings.modality == "MEG" else "eeg", verbose="ERROR")
    info["description"] = f"{dataset.name}, {subject}, {split}; units: {units}"
    if recordings.modality == "EEG":
        info.set_montage("easycap-M1", on_missing="ignore", verbose="ERROR")
    codes = np.repeat(rows + 1, repetitions)
    by_trial = np.zeros_like(codes) if sessions is None else np.array(sessions)[rows].ravel()
    events = np.stack([np.arange(len(codes)) * data.shape[-1], by_trial, codes], axis=1)
    names = {}
    for row in sorted(set(rows.tolist())):
        name = f"{recordings.concepts[row]}/{Path(recordings.images[row]).stem}"
        names[f"{name}/{row}" if name in names else name] = row + 1
    return mne.EpochsArray(data, info, events, recordings.times[0], names, proj=False, verbose="ERROR")
