"""Where channels are on the head, from their names."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from bvsa_core.errors import UserError, import_mne

_MIN_LOCATED = 4  # channels with a position that a map needs
_LETTERS = {  # of the 10-10 system, and the third letter of CTF's sensors
    "frontal": ("FP", "AF", "F"), "central": ("FC", "C"), "temporal": ("FT", "T", "TP"), "parietal": ("CP", "P"),
    "occipital": ("PO", "O", "I"),
}  # fmt: skip
REGIONS = (*_LETTERS, "other")


def located_channels(channels: Sequence[str], modality: str) -> tuple[Any, str]:
    """Return an mne.Info of the channels with a known position on the head, or None and why there is no map."""
    if modality != "EEG":
        return None, "no topographic maps: recordings do not hold the positions of MEG sensors"
    try:
        mne = import_mne("topographic maps")
    except UserError as error:
        return None, str(error)
    known = set(mne.channels.make_standard_montage("easycap-M1").ch_names)
    if len(located := [name for name in channels if name in known]) < _MIN_LOCATED:
        return None, "no topographic maps: the channel names are not those of the 10-10 system"
    info = mne.create_info(located, 1.0, "eeg", verbose="ERROR")
    info.set_montage("easycap-M1", verbose="ERROR")
    return info, ""


def positions(channels: Sequence[str], modality: str) -> dict[str, np.ndarray]:
    """Return the place (3,) on the head, in metres, of every channel for which it is known."""
    info, _ = located_channels(channels, modality)
    return {} if info is None else {each["ch_name"]: each["loc"][:3] for each in info["chs"]}


def region(channel: str) -> str:
    """Return the part of the head of a channel named by the 10-10 system, or of a CTF sensor; "other" if unknown.

    >>> [region(name) for name in ("Fp1", "CPz", "TP10", "Oz", "MLO11-1609", "E17")]
    ['frontal', 'parietal', 'temporal', 'occipital', 'occipital', 'other']
    """
    if ctf := re.fullmatch(r"M[LRZ]([CFOPT])\d+.*", channel):
        letters = ctf[1]
    else:
        electrode = re.fullmatch(r"([A-Z]+)(?:\d{1,2}|Z)", channel.upper())
        letters = electrode[1] if electrode else ""
    return next((name for name, known in _LETTERS.items() if letters in known), "other")
