"""Small raw recordings as THINGS-EEG2 publishes them, and their epochs cut by plain numpy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bvsa_core.data.things_eeg import CHANNELS

INTERVAL = 0.52  # seconds between two images: a response of 0.3 s is over before the next baseline begins
RESPONSE = 0.3
NAMES = [*reversed(CHANNELS), "Fz", "stim"]  # not in the order of the result, and one channel too many


def response(number: int, channel: str, shown: int, time: np.ndarray) -> np.ndarray:
    """Return the response, in volts, to the shown-th presentation of an image; no two are the same."""
    peak, gain = 0.1 + 0.01 * (number % 7), (1 + CHANNELS.index(channel)) * (1 + 0.1 * number + 0.01 * shown)
    return np.where(time < RESPONSE, 1e-6 * gain * np.exp(-(((time - peak) / 0.02) ** 2)), 0.0)


def recording(numbers: list[int], rate: float, noise: float, drift: float, random: np.random.Generator) -> dict:
    """Return the content of a file that shows images, by number, one after another; 99999 is a target.

    Args:
        noise: volts, correlated between channels.
        drift: volts per second, beside an offset of each channel.
    """
    interval = round(INTERVAL * rate)
    samples = interval * (len(numbers) + 1) + round(1.1 * rate)
    mixing = noise * (np.eye(len(NAMES)) + 0.3 * random.standard_normal((len(NAMES), len(NAMES))))
    data = mixing @ random.standard_normal((len(NAMES), samples))
    data += 1e-3 * random.standard_normal((len(NAMES), 1)) + drift * np.arange(samples) / rate
    data[NAMES.index("stim")] = 0
    shown: dict[int, int] = {}
    for place, number in enumerate(numbers):
        onset = (place + 1) * interval
        data[NAMES.index("stim"), onset] = number
        if number != 99999:
            time, earlier = np.arange(round(RESPONSE * rate)) / rate, shown.get(number, 0)
            for channel in CHANNELS:
                data[NAMES.index(channel), onset : onset + len(time)] += response(number, channel, earlier, time)
            shown[number] = earlier + 1
    kinds = ["stim" if name == "stim" else "eeg" for name in NAMES]
    band = {"sfreq": int(rate), "highpass": 0.01, "lowpass": 100}
    return {"raw_eeg_data": data, "ch_names": NAMES, "ch_types": kinds, **band}


def by_hand(content: dict, before: float = 0.0) -> dict[int, list[np.ndarray]]:
    """Return epochs (channels, time) of every image from `before` seconds on, without MNE or resampling."""
    rate, data = content["sfreq"], content["raw_eeg_data"]
    rows = data[[content["ch_names"].index(name) for name in CHANNELS]]
    stim = data[content["ch_names"].index("stim")]
    epochs: dict[int, list[np.ndarray]] = {}
    for onset in np.flatnonzero(stim):
        baseline = rows[:, onset - round(0.2 * rate) : onset + 1].mean(1, keepdims=True)
        epoch = rows[:, onset - round(before * rate) : onset + round(rate)] - baseline
        epochs.setdefault(int(stim[onset]), []).append(epoch)
    return epochs


def numbers_of(session: int, split: str) -> list[int]:
    """Return what a session shows of 12 training images, half of them in two sessions each, or 3 test images."""
    if split == "test":
        return [99999, *[(turn + step) % 3 + 1 for turn in range(20) for step in range(3)]]
    half = [1, 2, 5, 6, 9, 10] if session in (1, 3) else [3, 4, 7, 8, 11, 12]
    return [*half, 99999, *reversed(half)]


def write_subject(folder: Path, content: Callable[[int, str], dict]) -> None:
    """Write sub-XX/ses-0Y/raw_eeg_*.npy by np.save of a dict."""
    for session in (1, 2, 3, 4):
        (folder / f"ses-{session:02d}").mkdir(parents=True)
        for split, name in (("train", "training"), ("test", "test")):
            np.save(folder / f"ses-{session:02d}" / f"raw_eeg_{name}.npy", content(session, split))


def write_images(folder: Path) -> None:
    """Make the empty images of six training concepts, two of each, and of three test concepts."""
    for place, count, letters in (("training_images", 6, "bn"), ("test_images", 3, "s")):
        for concept in range(count):
            inside = folder / place / f"{concept + 1:05d}_{place[:2]}thing_{concept}"
            inside.mkdir(parents=True)
            for letter in letters:
                (inside / f"{place[:2]}thing_{concept}_01{letter}.jpg").touch()
