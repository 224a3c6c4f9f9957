"""Scan positions that cannot be right: outliers, and units other than object pixels."""

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.extent import compute_median_step

MIN_POSITIONS = 10
"""Smallest number of positions that must cover more than one probe."""

MAX_STEP_IN_PROBES = 2.0
"""Largest step between neighbors in probe diameters; patterns at larger steps share nothing of the object."""

MIN_PROBE_DIAMETER_PX = 3.0
"""Smallest diameter of a probe that steps are compared with; a smaller probe is a placeholder."""

OUTLIER_STEPS = 8.0
"""Smallest distance in median steps between an outlier and the scan."""

MAX_OUTLIER_FRACTION = 0.02
"""Largest fraction of the positions in a group that is an outlier."""

LINKED_NEIGHBORS = 8
"""Number of nearest positions that are connected in the search for groups."""

UNIT_LIMITS = ((1e-3, "meters"), (1.0, "millimeters or micrometers"))
"""Largest extent of positions in units that are too small, and the likely unit."""

LARGE_UNIT = "nanometers, motor steps, or pixels of another grid"


def find_outlier_positions(positions: NDArray[np.float64], size: int) -> NDArray[np.intp]:
    """Return the indices of positions far from the scan, in ascending order.

    Positions are connected to their nearest neighbors up to a distance of :data:`OUTLIER_STEPS` median steps and half
    a pattern. A group of at most :data:`MAX_OUTLIER_FRACTION` of the positions is an outlier.

    Args:
        positions: (n, 2) (y, x) in pixels.
        size: N, side of a pattern in pixels.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    # Repeated exposures count as one place.
    places, place_of = np.unique(np.round(positions, 3), axis=0, return_inverse=True)
    place_of = place_of.reshape(-1)
    if len(places) < MIN_POSITIONS:
        return np.zeros(0, np.intp)
    distances, neighbors = cKDTree(places).query(places, k=min(LINKED_NEIGHBORS + 1, len(places)))
    reach = max(OUTLIER_STEPS * float(np.median(distances[:, 1])), size / 2)
    linked = distances <= reach
    rows = np.broadcast_to(np.arange(len(places))[:, None], neighbors.shape)[linked]
    graph = coo_array((np.ones(len(rows), bool), (rows, neighbors[linked])), shape=(len(places), len(places)))
    _, group = connected_components(graph, directed=False)
    members = np.bincount(group[place_of])
    small = members <= max(1, int(MAX_OUTLIER_FRACTION * len(positions)))
    outliers: NDArray[np.intp] = np.flatnonzero(small[group[place_of]])
    if len(outliers) > 0.1 * len(positions):
        return np.zeros(0, np.intp)  # a scan of many separate places
    return outliers


def find_unit_fault(positions: NDArray[np.float64], size: int, probe_diameter: float | None) -> str | None:
    """Return the reason why positions cannot be in object pixels, with the likely unit; None if they can.

    Args:
        positions: (n, 2) (y, x) in the unit to be tested.
        size: N, side of a pattern in pixels.
        probe_diameter: diameter of the probe in pixels; None if unknown.
    """
    if len(positions) < 2:
        return None
    kept = np.delete(positions, find_outlier_positions(positions, size), axis=0)
    extent = float(np.ptp(kept, axis=0).max())
    if len(kept) >= MIN_POSITIONS and extent < 1:
        return f"all {len(positions)} positions lie within {extent:.3g} pixels; they are likely in {guess_unit(extent)}"
    distinct = np.unique(kept, axis=0)
    if len(distinct) < MIN_POSITIONS:
        return None
    step = compute_median_step(distinct) or 0.0
    if probe_diameter is not None and probe_diameter >= MIN_PROBE_DIAMETER_PX and extent < probe_diameter and step < 1:
        return (
            f"the positions cover {extent:.3g} pixels, less than the probe of {probe_diameter:.3g} pixels in diameter, "
            f"in steps of {step:.2g}; they are likely in {guess_unit(extent)}"
        )
    limit = float(size)
    if probe_diameter is not None and probe_diameter >= MIN_PROBE_DIAMETER_PX:
        limit = min(limit, MAX_STEP_IN_PROBES * probe_diameter)
    if step > limit:
        probe = f"the probe has {probe_diameter:.3g} pixels, " if probe_diameter is not None else ""
        return (
            f"neighboring positions are {step:.4g} pixels apart ({probe}a pattern {size}), so that patterns share "
            f"nothing of the object; the positions are likely in {LARGE_UNIT}"
        )
    return None


def guess_unit(extent: float) -> str:
    """Return the likely unit of positions of an extent that is too small for pixels."""
    return next((unit for limit, unit in UNIT_LIMITS if extent < limit), "micrometers, or pixels of another grid")
