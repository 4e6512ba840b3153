"""Plain arrays, as NeuroBridge and others keep THINGS-EEG2: sub-01/train.npy and test.npy beside info.json.

Training data are (1654, 10, 4, 63, 250), concepts x images x repetitions x channels x time, or the first two axes in one;
test data (200, 1, 80, 63, 250). info.json names channels and times; older files hold a dict of the three instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bvsa_core.data import things_eeg
from bvsa_core.data.layouts import conversion, stimuli
from bvsa_core.data.layouts.conversion import Epochs
from bvsa_core.data.layouts.source import ConversionOptions, SubjectSource
from bvsa_core.data.store import HEADER, SPLITS, SubjectWriter
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress

LAYOUT = "arrays"
MODALITIES = ("EEG",)
LOOKS_LIKE = "sub-XX/train.npy and test.npy, with info.json beside the subjects"
INFO = "info.json"
_SHAPE = "(concepts, images, repetitions, channels, time)"
_NORMALISED = {
    "mvnn": ("whitened", "MVNN."),
    "zscore": ("z-scores", "z-scores of every channel, by its training data."),
}


def find(folder: Path) -> list[SubjectSource]:
    """Its subjects; none where this is another layout."""
    roots = [folder, *sorted(folder.glob("[Pp]reprocessed*"))]
    found = {path.parent for root in roots for path in root.glob("sub-*/t*.npy") if path.stem in SPLITS}
    places = sorted(place for place in found if not (place / HEADER).exists())  # the store's own have one
    files = {place: [path for split in SPLITS if (path := place / f"{split}.npy").exists()] for place in places}
    for place in places:
        files[place] += [place.parent / INFO] * (place.parent / INFO).exists()
    return [
        SubjectSource(LAYOUT, place.name, place.parent, files[place], _read, ("sampling_rate", "whitening"))
        for place in places
    ]


def _read(source: SubjectSource, writer: SubjectWriter, options: ConversionOptions, progress: Progress) -> None:
    info = conversion.read_json(source.root / INFO) if (source.root / INFO).exists() else {}
    units, normalised = _NORMALISED.get(
        str(info.get("normalization")), ("as in the source", "How they were whitened is not told.")
    )
    processing = ["Epochs, resampling and baseline by whoever made the arrays.", normalised]
    if not info:
        processing.append(
            "Where the files name no channels, THINGS-EEG2's 63 in their standard order and 250 Hz from image onset."
        )
    conversion.convert(
        source, writer, options, progress, lambda split: _epochs(source, options, split, info), units, processing
    )


def _epochs(source: SubjectSource, options: ConversionOptions, split: str, info: dict[str, Any]) -> Epochs:
    path = conversion.file_of(source, f"{split}.npy")
    content = conversion.open_file(path)
    if isinstance(content, dict):
        info, content = content, content.get("data")
    data = conversion.check_array(path, content, conversion.SHAPE if np.ndim(content) == 4 else _SHAPE)
    data = data.reshape(-1, *data.shape[-3:])
    channels, times = info.get("ch_names"), info.get("times")
    if channels is None or times is None:
        if data.shape[2:] != (len(things_eeg.CHANNELS), things_eeg.SAMPLES):
            what = f"{data.shape[2]} channels and {data.shape[3]} samples that nothing names"
            raise UserError(f"{path}: {what}; put {INFO} with ch_names and times beside the subjects")
        channels, times = things_eeg.CHANNELS, np.arange(things_eeg.SAMPLES) / things_eeg.SAMPLING_RATE
    images, concepts = stimuli.conditions(source, options, split, len(data))
    return Epochs(path, data.shape, data.dtype, data.__getitem__, images, concepts, channels, times, behind=data)
