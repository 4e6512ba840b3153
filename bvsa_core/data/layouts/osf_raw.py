"""The raw recordings of THINGS-EEG2 as they lie on OSF: one dict a session and split (Gifford et al., NeuroImage 2022).

    sub-01/ses-01/raw_eeg_training.npy    raw_eeg_data (channels, samples) in volts, ch_names, sfreq, highpass, lowpass
    sub-01/ses-01/raw_eeg_test.npy

Each of four sessions shows half of the training images twice and every test image twenty times, some a few times more.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from bvsa_core.data import mvnn, things_eeg
from bvsa_core.data.layouts import stimuli
from bvsa_core.data.layouts.raw_session import RawSession
from bvsa_core.data.layouts.source import ConversionOptions, SubjectSource
from bvsa_core.data.store import SPLITS, Header, SplitHeader, SubjectWriter
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress

LAYOUT = "osf_raw"
MODALITIES = ("EEG",)
LOOKS_LIKE = "sub-XX/ses-01 ... ses-04/raw_eeg_training.npy and raw_eeg_test.npy"
SESSIONS = (1, 2, 3, 4)
REPETITIONS = {"train": 2, "test": 20}  # of an image in a session
WHITENING = {"train": ("train",), "original": ("train", "test"), "none": ()}  # what the covariance is of
_TOTAL = {"train": things_eeg.TRAIN_REPETITIONS, "test": things_eeg.TEST_REPETITIONS}
_FILES = {"train": "raw_eeg_training.npy", "test": "raw_eeg_test.npy"}
_FITTED_ON = {
    "train": "the training recordings alone",
    "original": "training and test recordings, whose covariances are averaged",
}
_BLOCK = 2**24  # samples whitened at once


def find(folder: Path) -> list[SubjectSource]:
    """Its subjects; none where this is another layout."""
    roots = [folder, folder / "Raw_data", folder / "raw_data"]
    files = [path for root in roots for name in _FILES.values() for path in root.glob(f"sub-*/ses-*/{name}")]
    places = sorted({path.parents[1] for path in files})
    return [
        SubjectSource(LAYOUT, place.name, folder, sorted(path for path in files if path.parents[1] == place), _read)
        for place in places
    ]


def _read(source: SubjectSource, writer: SubjectWriter, options: ConversionOptions, progress: Progress) -> None:
    files = _files(source)
    _check(options)
    shown = {split: stimuli.conditions(source, options, split) for split in SPLITS}
    opened = functools.partial(
        _open, writer, files, {split: len(images) for split, (images, _) in shown.items()}, options
    )
    about = {}
    for done, key in enumerate(files):
        progress("sessions", done, len(files))
        about[key] = opened(key)[0]
    progress("sessions", len(files), len(files))
    times = about["train", 1]["times"]
    if uneven := [path for key, path in files.items() if about[key]["times"] != times]:
        raise UserError(f"{uneven[0]}: its sampling differs from the first session's; fetch it again")
    onset = next(i for i, time in enumerate(times) if time >= 0)
    first = 0 if options.whole_epoch else onset
    sessions = {split: _sessions(source, about, split, shown[split][0]) for split in SPLITS}
    shapes = {split: (*sessions[split].shape, len(things_eeg.CHANNELS), len(times) - first) for split in SPLITS}
    arrays = {split: writer.array(split, shape) for split, shape in shapes.items()}
    covariances = []
    for session in SESSIONS:
        progress("whitening", session - 1, len(SESSIONS))
        epochs = {
            split: opened((split, session))[1] for split in SPLITS
        }  # two of eight at a time: mapped memory counts
        fitted_on = [epochs[split][..., onset:] for split in WHITENING[options.whitening]]
        factor = 1e6 * np.eye(len(things_eeg.CHANNELS))
        if fitted_on:
            covariances.append(np.mean([mvnn.noise_covariance(part) for part in fitted_on], axis=0))
            factor = _whitener(files["train", session], covariances[-1])
        for split in SPLITS:
            rows = np.array(about[split, session]["numbers"]) - 1
            columns = np.nonzero(sessions[split][rows] == session)[1].reshape(len(rows), -1)
            _fill(arrays[split], rows, columns, epochs[split][..., first:], factor.astype(np.float32))
    progress("whitening", len(SESSIONS), len(SESSIONS))
    while arrays:  # unmapped before they are read again
        arrays.popitem()[1].flush()
    header = Header(
        source.subject,
        "EEG",
        "whitened" if WHITENING[options.whitening] else "µV",
        options.sampling_rate,
        list(things_eeg.CHANNELS),
        times[first:],
        LAYOUT,
        _processing(list(about.values()), options),
        {split: SplitHeader(list(shapes[split]), *shown[split], sessions[split].tolist()) for split in SPLITS},
        whitened_from=np.mean(covariances, axis=0).tolist() if covariances else None,
    )
    writer.finish(header)


def _files(source: SubjectSource) -> dict[tuple[str, int], Path]:
    """The file of every split and session.

    Raises:
        UserError: some are missing; all of them are named.
    """
    folder = source.files[0].parents[1]
    wanted = {
        (split, session): folder / f"ses-{session:02d}" / _FILES[split] for session in SESSIONS for split in SPLITS
    }
    if missing := [str(path.relative_to(folder)) for path in wanted.values() if path not in source.files]:
        raise UserError(f"{folder}: without {', '.join(missing)}; fetch what is missing, a subject has four sessions")
    return wanted


def _open(
    writer: SubjectWriter,
    files: dict[tuple[str, int], Path],
    images: dict[str, int],
    options: ConversionOptions,
    key: tuple[str, int],
) -> tuple[dict[str, Any], np.ndarray]:
    """What RawSession tells and its epochs, memory-mapped; the file is read only where they are not there yet.

    Raises:
        UserError: what is wrong with it, or it shows more images than there are.
    """
    split, session = key
    raw = RawSession(files[key], REPETITIONS[split], options.sampling_rate)
    about = json.loads(
        bytes(
            writer.piece(f"{split}-{session}-about", lambda: np.frombuffer(json.dumps(raw.about()).encode(), np.uint8))
        )
    )
    if about["numbers"][-1] > images[split]:
        told = f"shows image {about['numbers'][-1]}, and the image set has {images[split]}"
        raise UserError(f"{files[key]}: {told}; give the complete one by --images")
    return about, writer.piece(f"{split}-{session}", raw.epochs)


def _check(options: ConversionOptions) -> None:
    if options.whitening not in WHITENING:
        raise UserError(f"whitening is {options.whitening!r}; choose one of {', '.join(WHITENING)}")
    if not 10 <= options.sampling_rate < math.inf:
        raise UserError(f"sampling_rate is {options.sampling_rate:g}; give 10 Hz or more")


def _sessions(source: SubjectSource, about: dict[tuple[str, int], Any], split: str, images: list[str]) -> np.ndarray:
    """The session of every image's repetitions, (images, repetitions), ascending.

    Raises:
        UserError: an image is not in as many sessions as it should.
    """
    shown = np.zeros((len(images), len(SESSIONS)), bool)
    for column, session in enumerate(SESSIONS):
        shown[np.array(about[split, session]["numbers"]) - 1, column] = True
    expected = _TOTAL[split] // REPETITIONS[split]
    if (wrong := shown.sum(1) != expected).any():
        number = int(wrong.argmax())
        told = (
            f"image {number + 1} ({images[number]}) is in {shown[number].sum()} session(s) and should be in {expected}"
        )
        raise UserError(
            f"{source.root}: {source.subject} {split}: {told}; {wrong.sum() - 1} more like it; fetch the sessions again"
        )
    return np.repeat(np.nonzero(shown)[1].reshape(len(images), expected) + SESSIONS[0], REPETITIONS[split], axis=1)


def _whitener(path: Path, covariance: np.ndarray) -> np.ndarray:
    """Of one session, from its noise covariance."""
    try:
        return mvnn.whitener(covariance)
    except ValueError as error:
        flat = (
            ", ".join(name for name, variance in zip(things_eeg.CHANNELS, np.diag(covariance)) if variance == 0)
            or "none"
        )
        raise UserError(
            f"{path.parent}: cannot be whitened, {error} (flat channels: {flat}); give --whitening none"
        ) from error


def _fill(array: np.ndarray, rows: np.ndarray, columns: np.ndarray, epochs: np.ndarray, factor: np.ndarray) -> None:
    """Write factor @ epochs into the array's (rows, columns), block by block."""
    step = max(1, _BLOCK // math.prod(epochs.shape[1:]))
    for start in range(0, len(rows), step):
        here = slice(start, start + step)
        with np.errstate(over="ignore"):  # what leaves float16's range is found and named when the folder is finished
            array[rows[here, None], columns[here]] = (factor @ epochs[here]).astype(array.dtype)


def _processing(about: list[dict[str, Any]], options: ConversionOptions) -> list[str]:
    recorded = sorted({f"{told['rate']:g} Hz" + (f", {told['band']}" if told["band"] else "") for told in about})
    left_out = sorted({name for told in about for name in told["left_out"]})
    more = sum(told["shown_more_often"] for told in about)
    counts = f"{REPETITIONS['train']} (train) or {REPETITIONS['test']} (test)"
    without = f", without {', '.join(left_out)}" if left_out else ""
    steps = [
        f"Recorded at {' and '.join(recorded)}.",
        f"Channels in the order of THINGS-EEG2{without}; target trials left out.",
        f"The first {counts} presentations of an image in each session kept; in {more} cases there were more.",
        "Epochs from 0.2 s before to 1 s after the image appears, less their mean before it (MNE-Python).",
    ]
    if any(told["rate"] != options.sampling_rate for told in about):
        steps.append(
            f"Resampled to {options.sampling_rate:g} Hz by Fourier transform, the first sample of the epoch in its place."
        )
    if options.whitening in _FITTED_ON:
        steps.append(
            "Multivariate noise normalisation, session by session: inverse square root of the mean Ledoit-Wolf covariance of epochs "
            f"from the onset on, fitted on {_FITTED_ON[options.whitening]} (whitening: {options.whitening})."
        )
    return [
        *steps,
        f"Samples {'before the onset kept, too' if options.whole_epoch else 'from the onset on kept'}, as float16.",
    ]
