"""Topographic maps: positions of electrodes and the interpolation between them."""

import numpy as np

from bvsa_core.data import things_eeg
from bvsa_core.report.head_map import EDGE, map_weights, positions


def test_positions_are_those_of_the_10_10_system():
    places = dict(zip(things_eeg.CHANNELS, positions(things_eeg.CHANNELS)))
    assert np.isfinite(list(places.values())).all()
    for left, right in (("O1", "O2"), ("FT9", "FT10"), ("C3", "C4")):
        np.testing.assert_allclose(places[left] * [-1, 1], places[right], atol=1e-12)
        assert places[left][0] < 0
    assert places["Fp1"][1] > places["F3"][1] > places["C3"][1] > places["P3"][1] > places["O1"][1]


def test_a_map_is_exact_for_values_linear_in_position_and_ends_near_the_electrodes():
    channels = [*things_eeg.OCCIPITAL_CHANNELS, "EOG"]
    weights, places = map_weights(channels, side=40), positions(channels)
    values = 2 * places[:, 0] - places[:, 1] + 0.5
    values[-1] = 1e6  # without a position, so without a weight
    shown = weights @ values
    centres = (np.arange(40) + 0.5) / 40 * 2 * EDGE - EDGE
    x, y = np.meshgrid(centres, -centres)
    inside = np.isfinite(shown)
    np.testing.assert_allclose(shown[inside], (2 * x - y + 0.5)[inside], atol=1e-8)
    assert 0.05 < inside.mean() < 0.5 and not inside[:20].any()  # the front of the head has no electrodes


def test_there_is_no_map_without_enough_positions():
    assert map_weights(["Oz", "O1", "O2", "channel 4"]) is None
    assert map_weights(["Fz", "Cz", "Pz", "Oz", "FCz"]) is None  # on a line
    assert map_weights(["Oz", "O1", "O2", "Pz"]) is not None
