"""The files of UBP and BVSA: sub-01/train.pt and test.pt."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bvsa_core.data.layout import read_recordings
from bvsa_core.data.published.source import Options, Progress, Source
from bvsa_core.data.store import SPLITS, Header, SplitHeader, SubjectWriter
from bvsa_core.errors import UserError

LAYOUT = "ubp"
MODALITIES = ("EEG", "MEG")
LOOKS_LIKE = "sub-XX/train.pt and test.pt"


def find(folder: Path) -> list[Source]:
    """Its subjects; none where this is another layout."""
    roots = [folder, *sorted(folder.glob("Preprocessed_data*"))]
    places = sorted({path.parent for root in roots for path in root.glob("sub-*/t*.pt") if path.stem in SPLITS})
    settled = ("whole_epoch", "sampling_rate", "whitening")
    return [Source(LAYOUT, place.name, folder, sorted(place.glob("t*.pt")), _read, settled) for place in places]


def _read(source: Source, writer: SubjectWriter, options: Options, progress: Progress) -> None:
    splits, header = {}, None
    for done, split in enumerate(SPLITS):
        progress("recordings", done, len(SPLITS))
        [path] = [path for path in source.files if path.stem == split] or [None]
        if path is None:
            raise UserError(f"{source.root}: {source.subject} has no {split}.pt; fetch it")
        recordings = read_recordings(path)
        writer.array(split, recordings.data.shape)[:] = recordings.data
        splits[split] = SplitHeader(list(recordings.data.shape), recordings.images, recordings.concepts)
        ...
    raise NotImplementedError
