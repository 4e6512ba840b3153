"""Cut one file of raw THINGS-EEG2 recordings into epochs by MNE-Python, with the settings of Gifford et al. (2022)."""

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from bvsa_core.data import things_eeg
from bvsa_core.errors import UserError, import_mne
from bvsa_core.io.safe_readers import read_arrays

TARGET = 99999  # value of stim at a target; every other value is the number of an image, from 1
_BEFORE, _AFTER = 0.2, 1.0  # seconds of an epoch around image onset
_BLOCK = 256  # epochs cut at once
_PADDING = 100  # samples added at either end before resampling, at least
_LONGEST = 1000  # samples after which old and new sampling points coincide again
_NEEDED = ("raw_eeg_data", "ch_names", "sfreq")


@dataclass(frozen=True)
class _Recording:
    data: np.ndarray  # (channels, samples) volts, stim among them
    names: list[str]  # (channels,)
    rate: float  # Hz
    band: str  # such as "0.01 to 100 Hz"; empty if the file has none


class RawSession:
    """Epochs of the images shown in one file, which is read at first use.

    Args:
        path: the file, raw_eeg_training.npy or raw_eeg_test.npy.
        repetitions: number of presentations of each image to keep, the first ones.
        sampling_rate: Hz, after resampling.
    """

    def __init__(self, path: Path, repetitions: int, sampling_rate: float):
        self.path, self.repetitions, self.sampling_rate = path, repetitions, sampling_rate
        self.mne = import_mne("raw recordings")

    def about(self) -> dict:
        """Describe the epochs, as plain data.

        Returns:
            numbers: of the images shown, ascending; times: of an epoch's samples, in seconds; rate: Hz, as recorded;
            band: of the recording's filter; shown_more_often: number of images; left_out: channels.
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
        """Cut the epochs, (images shown, repetitions, channels, time) float32 volts, repetitions as presented."""
        kept, places, numbers, _ = self._trials
        samples = self._cut(kept[:1])[0].shape[-1]
        epochs = np.empty((len(numbers) * self.repetitions, len(things_eeg.CHANNELS), samples), np.float32)
        for start in range(0, len(kept), _BLOCK):
            block, _ = self._cut(kept[start : start + _BLOCK])
            if not (finite := np.isfinite(block).all(axis=(1, 2))).all():
                sample, _, number = kept[start + int(finite.argmin())]
                raise UserError(f"{self.path}: samples around {sample} (image {number}) are not finite; fetch it again")
            epochs[places[start : start + _BLOCK]] = block
        return epochs.reshape(len(numbers), self.repetitions, -1, samples)

    @functools.cached_property
    def _recording(self) -> _Recording:
        content = read_arrays(self.path)
        if not isinstance(content, dict) or not set(_NEEDED) <= content.keys():
            raise UserError(f"{self.path}: not a raw session of THINGS-EEG2; it must hold {', '.join(_NEEDED)}")
        data, names, rate = (content[name] for name in _NEEDED)
        names = [str(name) for name in names] if isinstance(names, (list, tuple, np.ndarray)) else []
        shape = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        if not isinstance(data, np.ndarray) or data.dtype.kind != "f" or data.ndim != 2 or len(data) != len(names):
            need = f"it must be floats, a row for each of {len(names)} channels"
            raise UserError(f"{self.path}: 'raw_eeg_data' is {shape}; {need}")
        if missing := [name for name in ("stim", *things_eeg.CHANNELS) if names.count(name) != 1]:
            raise UserError(f"{self.path}: channels {', '.join(missing)} are missing or there twice; fetch it again")
        if not isinstance(rate, (int, float, np.integer, np.floating)) or not 0 < rate < math.inf:
            raise UserError(f"{self.path}: 'sfreq' is {rate!r}; it must be Hz above 0; fetch it again")
        if rate < self.sampling_rate or (Fraction(float(rate)) / Fraction(self.sampling_rate)).numerator > _LONGEST:
            rates = f"recorded at {rate:g} Hz, and sampling_rate is {self.sampling_rate:g}"
            raise UserError(f"{self.path}: {rates}; give a lower one in a simple ratio to it, such as {rate / 4:g}")
        low, high = content.get("highpass"), content.get("lowpass")
        known = isinstance(low, (int, float)) and isinstance(high, (int, float))
        return _Recording(data, names, float(rate), f"{low:g} to {high:g} Hz" if known else "")

    @functools.cached_property
    def _raw(self):
        recording = self._recording
        kinds = {"stim": "stim", **dict.fromkeys(things_eeg.CHANNELS, "eeg")}
        types = [kinds.get(name, "misc") for name in recording.names]
        info = self.mne.create_info(recording.names, recording.rate, types, verbose="ERROR")
        return self.mne.io.RawArray(recording.data, info, verbose="ERROR")

    @functools.cached_property
    def _trials(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Events (trials, 3), the row of each in the result, images shown, and how many of them too often."""
        recording = self._recording
        stim = recording.data[recording.names.index("stim")]
        try:
            if not ((stim == np.rint(stim)) & (stim >= 0) & (stim <= TARGET)).all():
                raise ValueError(f"it must be whole numbers from 0 to {TARGET}")
            events = self.mne.find_events(self._raw, "stim", verbose="ERROR")
        except ValueError as error:
            raise UserError(f"{self.path}: the channel stim is damaged ({error}); fetch it again") from error
        events = events[events[:, 2] != TARGET]
        samples = recording.data.shape[1]
        whole = (events[:, 0] >= _BEFORE * recording.rate) & (events[:, 0] + _AFTER * recording.rate < samples)
        events = events[whole]
        numbers, index, counts = np.unique(events[:, 2], return_inverse=True, return_counts=True)
        if len(numbers) == 0:
            raise UserError(f"{self.path}: the channel stim has no image; fetch it again")
        if (rare := counts < self.repetitions).any():
            shown = f"image {numbers[rare][0]} is shown {counts[rare][0]} of {self.repetitions} times"
            raise UserError(f"{self.path}: {shown}, and {rare.sum() - 1} others too rarely; fetch it again")
        order = np.argsort(index, kind="stable")
        earlier = np.empty(len(events), int)  # presentations of the same image
        earlier[order] = np.arange(len(events)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = earlier < self.repetitions
        return events[kept], (index * self.repetitions + earlier)[kept], numbers, int((counts > self.repetitions).sum())

    def _cut(self, events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return epochs (events, channels, time) in volts, minus their mean before onset, and times in seconds."""
        picks = [self._recording.names.index(name) for name in things_eeg.CHANNELS]
        window = {"tmin": -_BEFORE, "tmax": _AFTER, "baseline": (None, 0)}
        epochs = self.mne.Epochs(self._raw, events, picks=picks, preload=True, proj=False, verbose="ERROR", **window)
        data, step = epochs.get_data(copy=False), 1 / self._recording.rate
        if self.sampling_rate != self._recording.rate:
            data, step = _resample(data, self._recording.rate, self.sampling_rate), 1 / self.sampling_rate
        times = np.round(epochs.times[0] + step * np.arange(data.shape[-1]), 9) + 0.0
        kept = times < _AFTER - 1e-6  # whether there is a last sample depends on the rates
        return data[..., kept], times[kept]


def _resample(data: np.ndarray, rate: float, new_rate: float) -> np.ndarray:
    """Resample along the last axis by Fourier transform; the first sample keeps its time.

    Padding makes old and new sampling points coincide at both ends. MNE's Epochs.resample does not do that: it makes
    1201 samples at 1000 Hz a millisecond late at 250 Hz.
    """
    from scipy import fft, signal

    ratio = Fraction(rate) / Fraction(new_rate)
    samples = data.shape[-1]
    before = ratio.numerator * math.ceil(_PADDING / ratio.numerator)
    whole = ratio.numerator * fft.next_fast_len(math.ceil((samples + 2 * before) / ratio.numerator), real=True)
    long = np.pad(data, ((0, 0), (0, 0), (before, whole - samples - before)), mode="edge")
    first, count = int(before / ratio), math.ceil(samples / ratio)
    return signal.resample(long, int(whole / ratio), axis=-1)[..., first : first + count]
