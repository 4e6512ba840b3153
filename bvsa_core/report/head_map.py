"""Topographic maps of EEG: positions of electrodes, and the weights that interpolate between them."""

from collections.abc import Sequence

import numpy as np
import scipy  # which imports scipy.interpolate when it is used

_ANGLES = (
    "Fp1 -92 -72 Fp2 92 72 F3 -60 -51 F4 60 51 C3 -46 0 C4 46 0 P3 -60 51 P4 60 -51 O1 -92 72 O2 92 -72 F7 -92 -36 "
    "F8 92 36 T7 -92 0 T8 92 0 P7 -92 36 P8 92 -36 Fz 46 90 Cz 0 0 Pz 46 -90 F1 -50 -68 F2 50 68 FC1 -32 -45 FC2 32 "
    "45 C1 -23 0 C2 23 0 CP1 -32 45 CP2 32 -45 P1 -50 68 P2 50 -68 AF3 -74 -65 AF4 74 65 FC3 -53 -33 FC4 53 33 CP3 "
    "-52 33 CP4 52 -33 PO3 -74 65 PO4 74 -65 F5 -75 -41 F6 75 41 FC5 -72 -21 FC6 72 21 C5 -69 0 C6 69 0 CP5 -72 21 "
    "CP6 72 -21 P5 -75 41 P6 75 -41 AF7 -92 -54 AF8 92 54 FT7 -92 -18 FT8 92 18 TP7 -92 18 TP8 92 -18 PO7 -92 54 "
    "PO8 92 -54 F9 -115 -36 F10 115 36 FT9 -115 -18 FT10 115 18 TP9 -115 18 TP10 115 -18 P9 -115 36 P10 115 -36 PO9 "
    "-115 54 PO10 115 -54 O9 -115 72 O10 115 -72 Fpz 92 90 AFz 69 90 FCz 23 90 CPz 23 -90 POz 69 -90 Oz 92 -90 Iz "
    "115 -90"
).split()
# Inclination from Cz and azimuth in degrees of the electrodes of the 10-10 system, as EASYCAP's layout M1 has them.
ANGLES = {name: (int(theta), int(phi)) for name, theta, phi in zip(_ANGLES[::3], _ANGLES[1::3], _ANGLES[2::3])}
EAR_LEVEL = 92  # degrees from Cz: the circle of the head that is drawn, of radius 1
EDGE = 1.3  # half the width of a map; electrodes below the ears are outside the circle
NEAR = 0.3  # a map ends at this distance from the nearest electrode


def positions(channels: Sequence[str]) -> np.ndarray:
    """Return positions (channels, 2) on a head seen from above, nose up, in radii of the head; NaN where unknown.

    >>> positions(["Cz", "Oz", "EOG"]).round(3).tolist()
    [[0.0, 0.0], [0.0, -1.0], [nan, nan]]
    """
    angles = np.array([ANGLES.get(name, (np.nan, np.nan)) for name in channels], dtype=float)
    radius, azimuth = angles[:, 0] / EAR_LEVEL, np.deg2rad(angles[:, 1])
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth)], axis=1)


def map_weights(channels: Sequence[str], side: int = 28) -> np.ndarray | None:
    """Return weights (side, side, channels) of a map, top row first; NaN far from all electrodes.

    A map of values (channels,) is `weights @ values`: a thin-plate spline through the values at known positions, which
    is linear in them. None where fewer than four channels, or only channels on a line, have a known position.
    """
    places = positions(channels)
    known = np.flatnonzero(np.isfinite(places[:, 0]))
    if len(known) < 4 or np.linalg.matrix_rank(np.column_stack([np.ones(len(known)), places[known]]), tol=1e-6) < 3:
        return None
    line = (np.arange(side) + 0.5) / side * 2 * EDGE - EDGE
    pixels = np.stack(np.meshgrid(line, -line), axis=-1).reshape(-1, 2)
    spline = scipy.interpolate.RBFInterpolator(places[known], np.eye(len(known)), kernel="thin_plate_spline")
    weights = np.zeros((len(pixels), len(channels)))
    weights[:, known] = spline(pixels)
    weights[np.linalg.norm(pixels[:, None] - places[known], axis=2).min(axis=1) > NEAR] = np.nan
    return weights.reshape(side, side, len(channels))
