"""THINGS-EEG2 as its authors publish it preprocessed, and NICE's and ATM's variant at 250 Hz: preprocessed_eeg_training.npy.

The files are pickled dicts, by np.save or by pickle itself. Their repetitions were shuffled across sessions, so none is told.
"""

from __future__ import annotations

from pathlib import Path

from bvsa_core.data.layouts import conversion, stimuli
from bvsa_core.data.layouts.conversion import Epochs
from bvsa_core.data.layouts.source import ConversionOptions, SubjectSource
from bvsa_core.data.store import SubjectWriter
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress

LAYOUT = "osf_preprocessed"
MODALITIES = ("EEG",)
LOOKS_LIKE = "sub-XX/preprocessed_eeg_training.npy and preprocessed_eeg_test.npy"
FILES = {"train": "preprocessed_eeg_training.npy", "test": "preprocessed_eeg_test.npy"}
_KEYS = ("preprocessed_eeg_data", "ch_names", "times")


def find(folder: Path) -> list[SubjectSource]:
    """Its subjects; none where this is another layout."""
    roots = [folder, *sorted(folder.glob("[Pp]reprocessed*"))]
    places = sorted(
        {
            path.parent
            for root in roots
            for path in root.glob("sub-*/preprocessed_eeg_*.npy")
            if path.name in FILES.values()
        }
    )
    files = {place: [place / name for name in FILES.values() if (place / name).exists()] for place in places}
    return [
        SubjectSource(LAYOUT, _subject(place), place.parent, files[place], _read, ("sampling_rate", "whitening"))
        for place in places
    ]


def _subject(place: Path) -> str:
    """sub-1 and sub-01 are the same."""
    number = place.name.removeprefix("sub-")
    return f"sub-{int(number):02d}" if number.isdecimal() else place.name


def _read(source: SubjectSource, writer: SubjectWriter, options: ConversionOptions, progress: Progress) -> None:
    processing = [
        "Epochs, resampling and baseline by the authors' preprocessing (Gifford et al., 2022) or a variant of it.",
        "MVNN.",
    ]
    conversion.convert(
        source, writer, options, progress, lambda split: _epochs(source, options, split), "whitened", processing
    )


def _epochs(source: SubjectSource, options: ConversionOptions, split: str) -> Epochs:
    path = conversion.file_of(source, FILES[split])
    content = conversion.open_file(path)
    if not isinstance(content, dict) or not set(_KEYS) <= content.keys():
        raise UserError(f"{path}: not a file of preprocessed THINGS-EEG2; it must hold {', '.join(_KEYS)}")
    data = conversion.check_array(path, content[_KEYS[0]])
    images, concepts = stimuli.conditions(source, options, split, len(data))
    names, times = content["ch_names"], content["times"]
    return Epochs(path, data.shape, data.dtype, data.__getitem__, images, concepts, names, times, behind=data)
