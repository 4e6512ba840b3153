"""The files of UBP and BVSA: sub-01/train.pt and test.pt."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from bvsa_core.data import things_eeg
from bvsa_core.data.dataset import Dataset, read_recordings, write_recordings
from bvsa_core.data.layouts import stimuli
from bvsa_core.data.layouts.destination import refuse_mixture, refuse_overlap, write_description
from bvsa_core.data.layouts.files import blocks_of, existing, repeated
from bvsa_core.data.layouts.source import Epochs, ReadContext, SubjectSource
from bvsa_core.data.store import SPLITS
from bvsa_core.errors import UserError
from bvsa_core.io.atomic import lock, make_folder
from bvsa_core.progress import Progress, no_progress

LAYOUT = "ubp"
MODALITIES = ("EEG", "MEG")
LOOKS_LIKE = "sub-XX/train.pt and test.pt"


def find(folder: Path) -> list[SubjectSource]:
    """Return the subjects of this layout in a folder."""
    roots = [folder, *sorted(folder.glob("Preprocessed_data*"))]
    places = {path.parent for root in roots for path in root.glob("sub-*/t*.pt") if path.stem in SPLITS}
    files = {place: existing(place / f"{split}.pt" for split in SPLITS) for place in sorted(places)}
    return [SubjectSource(LAYOUT, place.name, place.parent, paths) for place, paths in files.items()]


def read(source: SubjectSource, split: str, context: ReadContext) -> Epochs:
    """Open one split of a subject."""
    path = source.file(f"{split}.pt")
    recordings = read_recordings(path)
    modality = recordings.modality
    if modality != "MEG" and not set(things_eeg.CHANNELS) & set(recordings.channels):
        modality = source.modality  # unknown, so as requested
    if modality != source.modality:
        raise UserError(f"{path}: these are {modality} recordings; convert them by 'bvsa data {modality.lower()}'")
    if np.array_equal(recordings.times, np.arange(len(recordings.times))):
        raise UserError(f"{path}: has no times of its samples; add 'times', in seconds after image onset")
    images = [stimuli.canonical(image, split) for image in recordings.images]
    if twice := repeated(images):
        raise UserError(f"{path}: image {twice[0]} is in two conditions; make the file again")
    order = sorted(range(len(images)), key=lambda i: Path(images[i]).parts)
    sessions = None if recordings.sessions is None else [recordings.sessions[i] for i in order]
    whitened = "whiten" in source.root.resolve().name
    processing = ["Epochs, resampling and baseline by the preprocessing of UBP (CVPR 2025)."]
    if whitened:
        processing.append("MVNN of every session with the covariance of its training data.")
    data, channels, times = recordings.data, recordings.channels, recordings.times
    blocks = blocks_of(lambda part: data[order[part]], data.shape, data.itemsize)
    images, concepts = [images[i] for i in order], [recordings.concepts[i] for i in order]
    units = "whitened" if whitened else "as in the source"
    about = Epochs(path, data.shape, blocks, images, concepts, channels, times, units, processing, sessions)
    return dataclasses.replace(about, source=recordings.source or "")


def export(dataset: Dataset, target: Path, progress: Progress = no_progress) -> list[str]:
    """Write recordings in this layout. Returns one line per subject; subjects that are there already stay."""
    folders = [dataset.recordings_folder / subject for subject in dataset.subjects]
    refuse_overlap(dataset.root, folders, target)
    name, modality = dataset.name, dataset.modality
    refuse_mixture(target, name, modality)
    messages = []
    with lock(target, activity="an export"):
        write_description(target, name, modality)
        for done, subject in enumerate(dataset.subjects):
            progress("recordings", done, len(dataset.subjects))
            outcome = "was there already" if (target / subject).exists() else "written"
            make_folder(target / subject, functools.partial(_export, dataset, subject))
            messages.append(f"{subject}: {outcome}, in {target / subject}")
    progress("recordings", len(dataset.subjects), len(dataset.subjects))
    return messages


def _export(dataset: Dataset, subject: str, folder: Path) -> None:
    for split in SPLITS:
        recordings = dataset.load(subject, split)
        number = {concept: i for i, concept in enumerate(dict.fromkeys(recordings.concepts))}
        labels = np.array([number[concept] for concept in recordings.concepts])
        sessions = None if recordings.sessions is None else np.array(recordings.sessions, dtype=np.float64) - 1
        write_recordings(folder / f"{split}.pt", recordings, labels, sessions)
