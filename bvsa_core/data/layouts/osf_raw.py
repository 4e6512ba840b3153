"""Raw recordings of THINGS-EEG2 as published on OSF: one dict per session and split (Gifford et al., NeuroImage 2022).

    sub-01/ses-01/raw_eeg_training.npy    raw_eeg_data (channels, samples) in volts, ch_names, sfreq, highpass, lowpass
    sub-01/ses-01/raw_eeg_test.npy

Each of four sessions shows half of the training images twice and every test image twenty times, some a few times more.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bvsa_core.data import mvnn, things_eeg
from bvsa_core.data.layouts import stimuli
from bvsa_core.data.layouts.raw_session import RawSession
from bvsa_core.data.layouts.source import ConversionOptions, Epochs, ReadContext, SubjectSource
from bvsa_core.data.store import SPLITS
from bvsa_core.errors import UserError
from bvsa_core.io.memmap import drop_pages

LAYOUT = "osf_raw"
MODALITIES = ("EEG",)
LOOKS_LIKE = "sub-XX/ses-01 ... ses-04/raw_eeg_training.npy and raw_eeg_test.npy"
SESSIONS = (1, 2, 3, 4)
REPETITIONS = {"train": 2, "test": 20}  # of an image in a session
WHITENING = {"train": ("train",), "original": ("train", "test"), "none": ()}  # splits that covariances are fitted on
_TOTAL = {"train": things_eeg.TRAIN_REPETITIONS, "test": things_eeg.TEST_REPETITIONS}
_FILES = {"train": "raw_eeg_training.npy", "test": "raw_eeg_test.npy"}
_FITTED_ON = {
    "train": "the training recordings alone",
    "original": "training and test recordings, whose covariances are averaged",
}
_BLOCK = 2**24  # samples whitened at once

_Key = tuple[str, int]  # split and session
_Open = Callable[[_Key], tuple[dict[str, Any], np.ndarray]]  # what RawSession.about and RawSession.epochs return


def find(folder: Path) -> list[SubjectSource]:
    """Return the subjects of this layout in a folder."""
    roots = [folder, folder / "Raw_data", folder / "raw_data"]
    files = sorted(path for root in roots for name in _FILES.values() for path in root.glob(f"sub-*/ses-*/{name}"))
    of_subject: dict[Path, list[Path]] = {}
    for path in files:
        of_subject.setdefault(path.parents[1], []).append(path)
    return [SubjectSource(LAYOUT, place.name, folder, paths, ()) for place, paths in of_subject.items()]


def read(source: SubjectSource, split: str, context: ReadContext) -> Epochs:
    """Cut all sessions into epochs, fit the whitening, and open one split of the whitened epochs."""
    options = context.options
    files = _session_files(source)
    if options.whitening not in WHITENING:
        raise UserError(f"whitening is {options.whitening!r}; choose one of {', '.join(WHITENING)}")
    if not 10 <= options.sampling_rate < math.inf:
        raise UserError(f"sampling_rate is {options.sampling_rate:g}; give 10 Hz or more")
    shown = {name: stimuli.conditions(source, options, name) for name in SPLITS}
    open_session = functools.partial(_open, context, files, {name: len(shown[name][0]) for name in SPLITS})
    about = {}
    for done, key in enumerate(files):
        context.progress("sessions", done, len(files))
        about[key] = open_session(key)[0]
    context.progress("sessions", len(files), len(files))
    times = about["train", 1]["times"]
    if uneven := [path for key, path in files.items() if about[key]["times"] != times]:
        raise UserError(f"{uneven[0]}: its sampling differs from the first session's; fetch it again")
    onset = next(i for i, time in enumerate(times) if time >= 0)
    covariances = []
    factors = [(1e6 * np.eye(len(things_eeg.CHANNELS))).astype(np.float32)] * len(SESSIONS)  # volts to microvolts
    if fitted_on := WHITENING[options.whitening]:
        covariances = [_covariance(session, fitted_on, onset, open_session, context) for session in SESSIONS]
        factors = [_whitener(files["train", session], each) for session, each in zip(SESSIONS, covariances)]
    images, concepts = shown[split]
    sessions = _sessions(source, about, split, images)
    return Epochs(
        files[split, 1],
        (*sessions.shape, len(things_eeg.CHANNELS), len(times)),
        functools.partial(_blocks, split, sessions, factors, open_session),
        images,
        concepts,
        list(things_eeg.CHANNELS),
        times,
        "whitened" if fitted_on else "µV",
        _processing(list(about.values()), options),
        sessions.tolist(),
        options.sampling_rate,
        f"Samples {'before the onset kept, too' if options.whole_epoch else 'from the onset on kept'}, as float16.",
        np.mean(covariances, axis=0).tolist() if fitted_on else None,
        f"{LAYOUT}, whitening {options.whitening}",
    )


def _session_files(source: SubjectSource) -> dict[_Key, Path]:
    """Return the file of every split and session; the error names all that are missing."""
    folder = source.files[0].parents[1]
    folders = {session: folder / f"ses-{session:02d}" for session in SESSIONS}
    files = {(split, session): folders[session] / _FILES[split] for session in SESSIONS for split in SPLITS}
    if missing := [str(path.relative_to(folder)) for path in files.values() if path not in source.files]:
        raise UserError(f"{folder}: without {', '.join(missing)}; fetch what is missing, a subject has four sessions")
    return files


def _open(
    context: ReadContext, files: dict[_Key, Path], images: dict[str, int], key: _Key
) -> tuple[dict[str, Any], np.ndarray]:
    """Return a session's description and its memory-mapped epochs; its file is read only if they are not cached."""
    split, session = key
    raw = RawSession(files[key], REPETITIONS[split], context.options.sampling_rate)
    about_bytes = lambda: np.frombuffer(json.dumps(raw.about()).encode(), np.uint8)  # noqa: E731
    about = json.loads(bytes(context.cached(f"{split}-{session}-about", about_bytes)))
    if (last := about["numbers"][-1]) > images[split]:
        shown = f"shows image {last}, and the image set has {images[split]}"
        raise UserError(f"{files[key]}: {shown}; give the complete one by --images")
    return about, context.cached(f"{split}-{session}", raw.epochs)


def _covariance(
    session: int, splits: tuple[str, ...], onset: int, open_session: _Open, context: ReadContext
) -> np.ndarray:
    """Return a session's noise covariance from image onset on, (channels, channels) V², mean over `splits`."""

    def fit() -> np.ndarray:
        epochs = (open_session((split, session))[1][..., onset:] for split in splits)
        return np.mean([mvnn.noise_covariance(part) for part in epochs], axis=0)

    context.progress("whitening", session - 1, len(SESSIONS))
    covariance = np.array(context.cached(f"covariance-{session}", fit))
    context.progress("whitening", session, len(SESSIONS))
    return covariance


def _whitener(path: Path, covariance: np.ndarray) -> np.ndarray:
    """Return the float32 matrix that whitens a session."""
    try:
        return mvnn.whitener(covariance).astype(np.float32)
    except ValueError as error:
        flat = [name for name, variance in zip(things_eeg.CHANNELS, np.diag(covariance)) if variance == 0]
        why = f"{error} (flat channels: {', '.join(flat) or 'none'})"
        raise UserError(f"{path.parent}: cannot be whitened, {why}; give --whitening none") from error


def _sessions(source: SubjectSource, about: dict[_Key, Any], split: str, images: list[str]) -> np.ndarray:
    """Return the session of every image's repetitions, (images, repetitions), ascending; check their number."""
    shown = np.zeros((len(images), len(SESSIONS)), bool)
    for column, session in enumerate(SESSIONS):
        shown[np.array(about[split, session]["numbers"]) - 1, column] = True
    expected = _TOTAL[split] // REPETITIONS[split]
    if (wrong := shown.sum(1) != expected).any():
        number = int(wrong.argmax())
        which = f"image {number + 1} ({images[number]}) is in {shown[number].sum()} session(s)"
        more = f"and should be in {expected}; {wrong.sum() - 1} more like it"
        raise UserError(f"{source.root}: {source.subject} {split}: {which} {more}; fetch the sessions again")
    return np.repeat(np.nonzero(shown)[1].reshape(len(images), expected) + SESSIONS[0], REPETITIONS[split], axis=1)


def _blocks(
    split: str, sessions: np.ndarray, factors: list[np.ndarray], open_session: _Open, keep: slice
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield whitened epochs session by session, see `Epochs.blocks`."""
    for session, factor in zip(SESSIONS, factors):
        about, epochs = open_session((split, session))
        rows = np.array(about["numbers"]) - 1
        columns = np.nonzero(sessions[rows] == session)[1].reshape(len(rows), -1)
        kept = epochs[..., keep]
        step = max(1, _BLOCK // math.prod(kept.shape[1:]))
        for start in range(0, len(rows), step):
            here = slice(start, start + step)
            yield (rows[here, None], columns[here]), factor @ kept[here]
            drop_pages(epochs)


def _processing(about: list[dict[str, Any]], options: ConversionOptions) -> list[str]:
    recorded = sorted({f"{each['rate']:g} Hz" + (f", {each['band']}" if each["band"] else "") for each in about})
    left_out = sorted({name for each in about for name in each["left_out"]})
    more = sum(each["shown_more_often"] for each in about)
    counts = f"{REPETITIONS['train']} (train) or {REPETITIONS['test']} (test)"
    without = f", without {', '.join(left_out)}" if left_out else ""
    steps = [
        f"Recorded at {' and '.join(recorded)}.",
        f"Channels in the order of THINGS-EEG2{without}; target trials left out.",
        f"The first {counts} presentations of an image in each session kept; in {more} cases there were more.",
        "Epochs from 0.2 s before to 1 s after the image appears, less their mean before it (MNE-Python).",
    ]
    if any(each["rate"] != options.sampling_rate for each in about):
        rate = f"{options.sampling_rate:g} Hz"
        steps.append(f"Resampled to {rate} by Fourier transform, the first sample of the epoch in its place.")
    if options.whitening in _FITTED_ON:
        steps.append(
            "Multivariate noise normalisation, session by session: inverse square root of the mean Ledoit-Wolf "
            f"covariance of epochs from the onset on, fitted on {_FITTED_ON[options.whitening]} "
            f"(whitening: {options.whitening})."
        )
    return steps
