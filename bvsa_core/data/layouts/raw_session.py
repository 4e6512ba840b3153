"""One file of raw THINGS-EEG2 recordings cut into epochs, by MNE-Python and with the settings of Gifford et al. (2022)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from bvsa_core.data import things_eeg
from bvsa_core.data.optional import import_mne
from bvsa_core.errors import UserError
from bvsa_core.io.safe_readers import read_arrays

TARGET = 99999  # what stim tells where a target appears; every other number is that of an image, from 1
_BEFORE, _AFTER = 0.2, 1.0  # seconds of an epoch around the image's appearance
_TOGETHER = 256  # epochs treated at once
_DRAWN_OUT = 100  # samples at either end before resampling, at least
_LONGEST = 1000  # samples after which old and new ones meet again
_NEEDED = ("raw_eeg_data", "ch_names", "sfreq")


@dataclass(frozen=True)
class _Recording:
    data: np.ndarray  # (channels, samples) volts, stim among them
    names: list[str]  # (channels,)
    rate: float  # Hz
    band: str  # such as "0.01 to 100 Hz"; empty where the file does not tell


class RawSession:
    """Epochs of what was shown in one file, which is read when they are asked for.

    Args:
        repetitions: of an image; further ones are left out, in the order of presentation.
        sampling_rate: Hz, after resampling.
    """

    def __init__(self, path: Path, repetitions: int, sampling_rate: float):
        self.path, self.repetitions, self.sampling_rate = path, repetitions, sampling_rate
        self.mne = import_mne("raw recordings")

    def about(self) -> dict:
        """numbers: of the images shown, ascending; times of an epoch's samples, in seconds; and what there is to tell.

        Raises:
            UserError: the file is missing or damaged, or shows some image too rarely.
        """
        kept, _, numbers, more = self._trials
        recording = self._recording
        return {
            "numbers": numbers.tolist(),
            "times": self._cut(kept[:1])[1].tolist(),
            "rate": recording.rate,
            "band": recording.band,
            "shown_more_often": more,
            "left_out": [name for name in recording.names if name not in ("stim", *things_eeg.CHANNELS)],
        }

    def epochs(self) -> np.ndarray:
        """(images shown, repetitions, channels, time) float32 volts, repetitions in the order of presentation.

        Raises:
            UserError: as above, or a sample is not finite.
        """
        kept, places, numbers, _ = self._trials
        samples = self._cut(kept[:1])[0].shape[-1]
        found = np.empty((len(numbers) * self.repetitions, len(things_eeg.CHANNELS), samples), np.float32)
        for start in range(0, len(kept), _TOGETHER):
            block, _ = self._cut(kept[start : start + _TOGETHER])
            if not (finite := np.isfinite(block).all(axis=(1, 2))).all():
                sample, _, number = kept[start + int(finite.argmin())]
                raise UserError(f"{self.path}: samples around {sample} (image {number}) are not finite; fetch it again")
            found[places[start : start + _TOGETHER]] = block
        return found.reshape(len(numbers), self.repetitions, -1, samples)

    @functools.cached_property
    def _recording(self) -> _Recording:
        content = read_arrays(self.path)
        if not isinstance(content, dict) or not set(_NEEDED) <= content.keys():
            raise UserError(f"{self.path}: not a raw session of THINGS-EEG2; it must hold {', '.join(_NEEDED)}")
        data, names, rate = (content[name] for name in _NEEDED)
        names = [str(name) for name in names] if isinstance(names, (list, tuple, np.ndarray)) else []
        shape = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        if not isinstance(data, np.ndarray) or data.dtype.kind != "f" or data.ndim != 2 or len(data) != len(names):
            raise UserError(
                f"{self.path}: 'raw_eeg_data' is {shape}; it must be floats, a row for each of {len(names)} channels"
            )
        if missing := [name for name in ("stim", *things_eeg.CHANNELS) if names.count(name) != 1]:
            raise UserError(f"{self.path}: channels {', '.join(missing)} are missing or there twice; fetch it again")
        if not isinstance(rate, (int, float, np.integer, np.floating)) or not 0 < rate < math.inf:
            raise UserError(f"{self.path}: 'sfreq' is {rate!r}; it must be Hz above 0; fetch it again")
        if rate < self.sampling_rate or (Fraction(float(rate)) / Fraction(self.sampling_rate)).numerator > _LONGEST:
            told = f"recorded at {rate:g} Hz, and sampling_rate is {self.sampling_rate:g}"
            raise UserError(f"{self.path}: {told}; give a lower one in a simple ratio to it, such as {rate / 4:g}")
        band = [content.get("highpass"), content.get("lowpass")]
        told = f"{band[0]:g} to {band[1]:g} Hz" if all(isinstance(edge, (int, float)) for edge in band) else ""
        return _Recording(data, names, float(rate), told)

    @functools.cached_property
    def _raw(self):
        recording = self._recording
        kinds = [
            "stim" if name == "stim" else "eeg" if name in things_eeg.CHANNELS else "misc" for name in recording.names
        ]
        info = self.mne.create_info(recording.names, recording.rate, kinds, verbose="ERROR")
        return self.mne.io.RawArray(recording.data, info, verbose="ERROR")

    @functools.cached_property
    def _trials(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Events (trials, 3) in the order of presentation, the place of each in the result, images shown, how many too often."""
        recording = self._recording
        stim = recording.data[recording.names.index("stim")]
        if not (
            np.isfinite(stim).all()
            and (stim == np.rint(stim)).all()
            and stim.min(initial=0) >= 0
            and stim.max(initial=0) <= TARGET
        ):
            raise UserError(
                f"{self.path}: the channel stim is damaged (it must be whole numbers from 0 to {TARGET}); fetch it again"
            )
        try:
            events = self.mne.find_events(self._raw, "stim", verbose="ERROR")
        except ValueError as error:
            raise UserError(f"{self.path}: the channel stim is damaged ({error}); fetch it again") from error
        events = events[events[:, 2] != TARGET]
        samples = recording.data.shape[1]
        whole = (events[:, 0] >= _BEFORE * recording.rate) & (events[:, 0] + _AFTER * recording.rate < samples)
        events = events[whole]
        numbers, index, counts = np.unique(events[:, 2], return_inverse=True, return_counts=True)
        if len(numbers) == 0:
            raise UserError(f"{self.path}: the channel stim tells of no image; fetch it again")
        if (rare := counts < self.repetitions).any():
            shown = f"image {numbers[rare][0]} is shown {counts[rare][0]} of {self.repetitions} times"
            raise UserError(f"{self.path}: {shown}, and {rare.sum() - 1} others too rarely; fetch it again")
        order = np.argsort(index, kind="stable")
        earlier = np.empty(len(events), int)  # presentations of the same image
        earlier[order] = np.arange(len(events)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = earlier < self.repetitions
        return events[kept], (index * self.repetitions + earlier)[kept], numbers, int((counts > self.repetitions).sum())

    def _cut(self, events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Epochs (events, channels, time) in volts less their mean before the image appears, and times in seconds."""
        picks = [self._recording.names.index(name) for name in things_eeg.CHANNELS]
        window = {"tmin": -_BEFORE, "tmax": _AFTER, "baseline": (None, 0)}
        epochs = self.mne.Epochs(self._raw, events, picks=picks, preload=True, proj=False, verbose="ERROR", **window)
        data, step = epochs.get_data(copy=False), 1 / self._recording.rate
        if self.sampling_rate != self._recording.rate:
            data, step = _resample(data, self._recording.rate, self.sampling_rate), 1 / self.sampling_rate
        times = np.round(epochs.times[0] + step * np.arange(data.shape[-1]), 9) + 0.0
        kept = times < _AFTER - 1e-6  # the last sample is there or not, as the rates divide
        return data[..., kept], times[kept]


def _resample(data: np.ndarray, rate: float, wanted: float) -> np.ndarray:
    """By Fourier transform along the last axis, the first sample staying in its place.

    The ends are drawn out so far that old and new samples meet at both: MNE's Epochs.resample does not see to that, and what
    it makes of 1201 samples at 1000 Hz is a millisecond late at 250 Hz.
    """
    from scipy import fft, signal

    ratio = Fraction(rate) / Fraction(wanted)
    samples = data.shape[-1]
    before = ratio.numerator * math.ceil(_DRAWN_OUT / ratio.numerator)
    whole = ratio.numerator * fft.next_fast_len(math.ceil((samples + 2 * before) / ratio.numerator), real=True)
    long = np.pad(data, ((0, 0), (0, 0), (before, whole - samples - before)), mode="edge")
    first, count = int(before / ratio), math.ceil(samples / ratio)
    return signal.resample(long, int(whole / ratio), axis=-1)[..., first : first + count]
