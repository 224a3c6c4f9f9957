"""Extent of a probe, and distances between scan positions."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def compute_median_step(positions: NDArray[np.float64]) -> float | None:
    """Return the median distance from a position to its nearest neighbor in pixels; None for a single position.

    Args:
        positions: (n, 2) (y, x) in pixels.
    """
    from scipy.spatial import cKDTree

    if len(positions) < 2:
        return None
    distances, _ = cKDTree(positions).query(positions, k=2)
    return float(np.median(distances[:, 1]))


def compute_probe_diameter(probe: NDArray[Any]) -> float:
    """Return the diameter in pixels of the uniform disk whose power has the same second moment as the probe's power.

    A uniform disk of radius ρ has the mean squared distance ρ²/2 from its center, so the diameter is 2√2 times the
    root mean square distance. Modes are added in power.

    Args:
        probe: (N, N) or (M, N, N) complex.
    """
    power = np.square(np.abs(probe.astype(np.complex128)))
    power = power if power.ndim == 2 else power.sum(0)
    power = power / power.sum()
    rows, columns = np.arange(power.shape[0])[:, None], np.arange(power.shape[1])[None, :]
    center_y, center_x = (power * rows).sum(), (power * columns).sum()
    return float(2 * math.sqrt(2 * (power * ((rows - center_y) ** 2 + (columns - center_x) ** 2)).sum()))
