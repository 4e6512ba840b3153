"""Plain arrays, as NeuroBridge and others keep THINGS-EEG2: sub-01/train.npy and test.npy beside info.json.

Training data are (1654, 10, 4, 63, 250), concepts x images x repetitions x channels x time, or with the first two axes
in one; test data (200, 1, 80, 63, 250). info.json has channels and times; older files hold a dict of the three instead.
"""

from pathlib import Path

import numpy as np

from bvsa_core.data import things_eeg
from bvsa_core.data.layouts import stimuli
from bvsa_core.data.layouts.files import SHAPE, blocks_of, check_array, existing, open_file, read_description
from bvsa_core.data.layouts.source import Epochs, ReadContext, SubjectSource
from bvsa_core.data.store import HEADER, SPLITS
from bvsa_core.errors import UserError

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
    """Return the subjects of this layout in a folder."""
    roots = [folder, *sorted(folder.glob("[Pp]reprocessed*"))]
    places = {path.parent for root in roots for path in root.glob("sub-*/t*.npy") if path.stem in SPLITS}
    files = {
        place: existing([place / "train.npy", place / "test.npy", place.parent / INFO])
        for place in sorted(places)
        if not (place / HEADER).exists()  # the store's subjects have one
    }
    return [SubjectSource(LAYOUT, place.name, place.parent, paths) for place, paths in files.items()]


def read(source: SubjectSource, split: str, context: ReadContext) -> Epochs:
    """Open one split of a subject."""
    info = read_description(source.root / INFO) if (source.root / INFO).exists() else {}
    unknown = "as in the source", "How they were whitened is not told."
    units, normalised = _NORMALISED.get(str(info.get("normalization")), unknown)
    processing = ["Epochs, resampling and baseline by whoever made the arrays.", normalised]
    if not info:
        processing.append(
            "Where the files name no channels, THINGS-EEG2's 63 in their standard order and 250 Hz from image onset."
        )
    path = source.file(f"{split}.npy")
    content = open_file(path)
    if isinstance(content, dict):
        info, content = content, content.get("data")
    data = check_array(path, content, SHAPE if np.ndim(content) == 4 else _SHAPE)
    data = data.reshape(-1, *data.shape[-3:])
    channels, times = info.get("ch_names"), info.get("times")
    if channels is None or times is None:
        if data.shape[2:] != (len(things_eeg.CHANNELS), things_eeg.SAMPLES):
            unnamed = f"{data.shape[2]} channels and {data.shape[3]} samples that nothing names"
            raise UserError(f"{path}: {unnamed}; put {INFO} with ch_names and times beside the subjects")
        channels, times = things_eeg.CHANNELS, np.arange(things_eeg.SAMPLES) / things_eeg.SAMPLING_RATE
    images, concepts = stimuli.conditions(source, context.options, split, len(data))
    blocks = blocks_of(data.__getitem__, data.shape, data.itemsize, data)
    return Epochs(path, data.shape, blocks, images, concepts, channels, times, units, processing)
