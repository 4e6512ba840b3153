"""One raw file cut into epochs: against plain numpy, known signals, and errors."""

import numpy as np
import pytest
from raw_files import NAMES, RESPONSE, by_hand, recording, response

from bvsa_core.data.layouts.raw_session import RawSession
from bvsa_core.data.things_eeg import CHANNELS
from bvsa_core.errors import UserError

FLOAT32 = 2.0**-23


@pytest.fixture
def session(tmp_path):
    """Return a RawSession of given content, two repetitions at 250 Hz."""

    def make(content: object) -> RawSession:
        np.save(tmp_path / "raw_eeg_training.npy", content)
        return RawSession(tmp_path / "raw_eeg_training.npy", 2, 250.0)

    return make


def small(numbers=(3, 1, 99999, 1, 3), rate=250.0, noise=0.0, drift=0.0, seed=0) -> dict:
    return recording(list(numbers), rate, noise, drift, np.random.default_rng(seed))


def test_epochs_equal_those_cut_by_numpy(seed, session):
    content = small((3, 1, 99999, 2, 1, 3, 2), noise=1e-5, drift=1e-4, seed=seed)
    raw = session(content)
    about, epochs = raw.about(), raw.epochs()
    assert about["numbers"] == [1, 2, 3] and about["left_out"] == ["Fz"]
    assert (about["rate"], about["band"]) == (250, "0.01 to 100 Hz")
    np.testing.assert_allclose(about["times"], np.arange(-50, 250) / 250, rtol=0, atol=1e-9)
    assert epochs.dtype == np.float32 and epochs.shape == (3, 2, 63, 300)
    of_image = by_hand(content, before=0.2)
    expected = np.array([of_image[number] for number in (1, 2, 3)])
    np.testing.assert_allclose(epochs, expected, rtol=0, atol=FLOAT32 * abs(expected).max())


def test_known_responses_are_in_their_places(session):
    epochs = session(small()).epochs()  # image 2 is not shown
    time = np.arange(round(RESPONSE * 250)) / 250
    for row, number in enumerate((1, 3)):
        for shown in range(2):
            known = np.stack([response(number, channel, shown, time) for channel in CHANNELS])
            # The float64 offset of a millivolt is subtracted again.
            np.testing.assert_allclose(epochs[row, shown, :, 50 : 50 + len(time)], known, rtol=FLOAT32, atol=1e-17)


def test_extra_and_cut_off_presentations_are_ignored(session):
    content = small((1, 3, 1, 3, 1, 2, 2))
    content["raw_eeg_data"][NAMES.index("stim"), -100] = 2  # its epoch would reach beyond the end
    raw = session(content)
    assert raw.about()["shown_more_often"] == 1
    kept = by_hand({**content, "raw_eeg_data": content["raw_eeg_data"][:, :-100]})
    np.testing.assert_allclose(raw.epochs()[0, :, :, 50:], np.array(kept[1][:2]), rtol=0, atol=1e-10)


def test_block_size_does_not_matter(seed, session, monkeypatch):
    raw = session(small(noise=1e-5, seed=seed))
    whole = raw.epochs()
    monkeypatch.setattr("bvsa_core.data.layouts.raw_session._BLOCK", 3)
    np.testing.assert_array_equal(raw.epochs(), whole)


def test_resampling_keeps_low_frequencies_without_aliasing(session):
    content = small((1, 1), rate=1000.0)
    data, samples = content["raw_eeg_data"], content["raw_eeg_data"].shape[1]
    time = np.arange(samples) / 1000
    oz, cz = (NAMES.index(name) for name in ("Oz", "Cz"))
    stim = data[NAMES.index("stim")].copy()
    data[:] = 0
    data[NAMES.index("stim")] = stim
    data[oz], data[cz] = 1e-5 * np.sin(2 * np.pi * 10 * time), 1e-5 * np.sin(2 * np.pi * 180 * time)
    raw = session(content)
    epochs = raw.epochs()
    assert epochs.shape == (1, 2, 63, 300) and raw.about()["times"][-1] == pytest.approx(0.996)
    middle = slice(30, 270)  # away from the ends, where the signal beyond is not known
    kept = by_hand(content, before=0.2)[1]
    sine = np.array([epoch[CHANNELS.index("Oz"), ::4] for epoch in kept])
    slow, fast = (epochs[0][:, CHANNELS.index(name), middle] for name in ("Oz", "Cz"))
    assert abs(slow - sine[:, middle]).max() < 1e-7  # a hundredth of the amplitude
    # Taking every fourth sample would alias 180 Hz to 70 Hz of full amplitude; what is left is its mean before onset.
    assert abs(fast - fast.mean(-1, keepdims=True)).max() < 1e-7


def changed(**changes) -> dict:
    return {**small(), **changes}


def renamed(old: str, new: str) -> dict:
    return changed(ch_names=[new if name == old else name for name in NAMES])


def with_sample(row: str, column: int, value: float) -> dict:
    content = small()
    content["raw_eeg_data"][NAMES.index(row), column] = value
    return content


REFUSED = [
    (lambda: np.zeros((3, 4)), "not a raw session of THINGS-EEG2; it must hold raw_eeg_data, ch_names, sfreq"),
    (lambda: {"raw_eeg_data": np.zeros((3, 4))}, "it must hold raw_eeg_data, ch_names, sfreq"),
    (lambda: changed(raw_eeg_data=[1.0]), "'raw_eeg_data' is list; it must be floats, a row for each of 65 channels"),
    (lambda: changed(raw_eeg_data=np.zeros((3, 4))), r"'raw_eeg_data' is float64 \(3, 4\)"),
    (lambda: changed(ch_names=7), "a row for each of 0 channels"),
    (lambda: renamed("Oz", "Oz2"), "channels Oz are missing or there twice"),
    (lambda: renamed("stim", "Oz"), "channels stim, Oz are missing or there twice"),
    (lambda: changed(sfreq="fast"), "'sfreq' is 'fast'; it must be Hz above 0"),
    (lambda: changed(sfreq=100), "recorded at 100 Hz, and sampling_rate is 250; give a lower one in a simple ratio"),
    (lambda: with_sample("stim", 200, 0.5), "the channel stim is damaged .it must be whole numbers"),
    (lambda: with_sample("stim", 131, 9), "the channel stim is damaged"),
    (lambda: small((1, 2, 1, 3)), "image 2 is shown 1 of 2 times, and 1 others too rarely"),
    (lambda: small((99999,)), "stim has no image"),
    (lambda: with_sample("Oz", 200, np.nan), r"samples around \d+ .image 3. are not finite"),
]


@pytest.mark.parametrize(("content", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_errors_in_a_file_are_reported(session, content, message):
    raw = session(content())
    with pytest.raises(UserError, match=r"raw_eeg_training\.npy: .*" + message):
        raw.about()
        raw.epochs()
