"""The files of UBP and BVSA: sub-01/train.pt and test.pt."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bvsa_core.data import things_eeg
from bvsa_core.data.dataset import DESCRIPTION, Dataset, read_recordings, write_recordings
from bvsa_core.data.layouts import conversion, stimuli
from bvsa_core.data.layouts.conversion import Epochs
from bvsa_core.data.layouts.source import ConversionOptions, SubjectSource
from bvsa_core.data.store import SPLITS, SubjectWriter
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import Locked, lock, make_folder, write_atomically
from bvsa_core.progress import Progress

LAYOUT = "ubp"
MODALITIES = ("EEG", "MEG")
LOOKS_LIKE = "sub-XX/train.pt and test.pt"


def find(folder: Path) -> list[SubjectSource]:
    """Its subjects; none where this is another layout."""
    roots = [folder, *sorted(folder.glob("Preprocessed_data*"))]
    places = sorted({path.parent for root in roots for path in root.glob("sub-*/t*.pt") if path.stem in SPLITS})
    settled = ("sampling_rate", "whitening")
    return [SubjectSource(LAYOUT, place.name, place.parent, _files(place), _read, settled) for place in places]


def _files(place: Path) -> list[Path]:
    return [path for split in SPLITS if (path := place / f"{split}.pt").exists()]


def _read(source: SubjectSource, writer: SubjectWriter, options: ConversionOptions, progress: Progress) -> None:
    whitened = "whiten" in source.root.resolve().name
    processing = ["Epochs, resampling and baseline by the preprocessing of UBP (CVPR 2025)."]
    if whitened:
        processing.append("MVNN of every session with the covariance of its training data.")
    units = "whitened" if whitened else "as in the source"
    conversion.convert(source, writer, options, progress, lambda split: _epochs(source, split), units, processing)


def _epochs(source: SubjectSource, split: str) -> Epochs:
    path = conversion.file_of(source, f"{split}.pt")
    found = read_recordings(path)
    known = (
        "MEG"
        if found.modality == "MEG"
        else "EEG"
        if set(things_eeg.CHANNELS) & set(found.channels)
        else source.modality
    )
    if known != source.modality:
        raise UserError(f"{path}: these are {known} recordings; convert them by 'bvsa data {known.lower()}'")
    if np.array_equal(found.times, np.arange(len(found.times))):
        raise UserError(
            f"{path}: does not tell when its samples were taken; add 'times', in seconds after the image appears"
        )
    images = [stimuli.canonical(image, split) for image in found.images]
    if len(set(images)) != len(images):
        twice = next(image for image in images if images.count(image) > 1)
        raise UserError(f"{path}: image {twice} is in two conditions; make the file again")
    order = sorted(range(len(images)), key=lambda i: Path(images[i]).parts)
    found = replace(found, images=[images[i] for i in order], concepts=[found.concepts[i] for i in order])
    sessions = None if found.sessions is None else [found.sessions[i] for i in order]
    rows = lambda part: found.data[order[part]]  # noqa: E731
    return Epochs(
        path,
        found.data.shape,
        found.data.dtype,
        rows,
        found.images,
        found.concepts,
        found.channels,
        found.times,
        sessions,
    )


def export(dataset: Dataset, target: Path, progress: Callable[[str, int, int], None] = lambda *_: None) -> list[str]:
    """Write a data set's recordings as UBP and BVSA read them. Returns one line a subject; subjects that are there stay.

    Raises:
        UserError: what is wrong, by file, or another process is writing there.
    """
    if target.resolve() == dataset.recordings_folder.resolve():
        raise UserError(f"{target}: holds what is to be written; give another folder")
    told = []
    try:
        with lock(target):
            if not (target / DESCRIPTION).exists():
                description = {"name": dataset.name, "modality": dataset.modality}
                write_atomically(target / DESCRIPTION, json.dumps(description, indent=1).encode() + b"\n")
            for done, subject in enumerate(dataset.subjects):
                progress("recordings", done, len(dataset.subjects))
                there = (target / subject).exists()
                make_folder(target / subject, functools.partial(_write, dataset, subject))
                told.append(f"{subject}: {'was there already' if there else 'written'}, in {target / subject}")
    except Locked as error:
        raise UserError(f"{target}: another process is writing there; wait for that one") from error
    progress("recordings", len(dataset.subjects), len(dataset.subjects))
    return told


def _write(dataset: Dataset, subject: str, folder: Path) -> None:
    for split in SPLITS:
        found = dataset.load(subject, split)
        number = {concept: i for i, concept in enumerate(dict.fromkeys(found.concepts))}
        labels = np.array([number[concept] for concept in found.concepts])
        sessions = None if found.sessions is None else np.array(found.sessions, dtype=np.float64) - 1
        write_recordings(folder / f"{split}.pt", found, labels, sessions)
