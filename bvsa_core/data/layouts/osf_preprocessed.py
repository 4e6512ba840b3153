"""THINGS-EEG2 as preprocessed by its authors, and NICE's and ATM's variant at 250 Hz: preprocessed_eeg_training.npy.

The files are pickled dicts, by np.save or by pickle itself. Repetitions are shuffled, so their sessions are unknown.
"""

from pathlib import Path

from bvsa_core.data.layouts import stimuli
from bvsa_core.data.layouts.files import blocks_of, check_array, existing, open_file
from bvsa_core.data.layouts.source import Epochs, ReadContext, SubjectSource
from bvsa_core.errors import UserError

LAYOUT = "osf_preprocessed"
MODALITIES = ("EEG",)
LOOKS_LIKE = "sub-XX/preprocessed_eeg_training.npy and preprocessed_eeg_test.npy"
FILES = {"train": "preprocessed_eeg_training.npy", "test": "preprocessed_eeg_test.npy"}
_KEYS = ("preprocessed_eeg_data", "ch_names", "times")
_PROCESSING = [
    "Epochs, resampling and baseline by the authors' preprocessing (Gifford et al., 2022) or a variant of it.",
    "MVNN.",
]


def find(folder: Path) -> list[SubjectSource]:
    """Return the subjects of this layout in a folder."""
    roots = [folder, *sorted(folder.glob("[Pp]reprocessed*"))]
    places = {path.parent for root in roots for name in FILES.values() for path in root.glob(f"sub-*/{name}")}
    files = {place: existing(place / name for name in FILES.values()) for place in sorted(places)}
    return [SubjectSource(LAYOUT, _subject(place.name), place.parent, paths) for place, paths in files.items()]


def _subject(name: str) -> str:
    """Return sub-01 for sub-1, too."""
    number = name.removeprefix("sub-")
    return f"sub-{int(number):02d}" if number.isdecimal() else name


def read(source: SubjectSource, split: str, context: ReadContext) -> Epochs:
    """Open one split of a subject."""
    path = source.file(FILES[split])
    content = open_file(path)
    if not isinstance(content, dict) or not set(_KEYS) <= content.keys():
        raise UserError(f"{path}: not a file of preprocessed THINGS-EEG2; it must hold {', '.join(_KEYS)}")
    data = check_array(path, content[_KEYS[0]])
    images, concepts = stimuli.conditions(source, context.options, split, len(data))
    blocks = blocks_of(data.__getitem__, data.shape, data.itemsize, data)
    channels, times = content["ch_names"], content["times"]
    return Epochs(path, data.shape, blocks, images, concepts, channels, times, "whitened", _PROCESSING)
