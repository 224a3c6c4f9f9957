"""Whether the object of a file lies on its coordinate grid, and whether the coordinates are in object pixels at all."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

VACUUM_TOLERANCE = 1e-6
"""Object pixels this near (of the largest modulus) to the corner pixel count as vacuum."""

CANDIDATE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Scales that coordinates are suspected of: what binning and cropping by 2 and 4 leave behind."""

Box = list[float]
"""First row, last row, first column, last column, in object pixels."""


class CoordinateScale(NamedTuple):
    """The factor on the coordinates that puts the patterns where the object is."""

    factor: float
    """The member of :data:`CANDIDATE_FACTORS` that fits: 1 unless another one fits by far better."""

    illuminated_box: Box
    """What the patterns see with that factor."""

    misfit: dict[float, float]
    """By factor: the largest distance in pixels between the edges of what is seen and of the object (its structure or
    its extent, whichever fits better)."""


def compute_illuminated_box(positions: NDArray[np.float64], size: int) -> Box:
    """Pixel centres that patterns of ``size`` pixels see from ``positions`` (n, 2) (y, x)."""
    low, high = positions.min(0) - size // 2, positions.max(0) - size // 2 + size - 1
    return [float(low[0]), float(high[0]), float(low[1]), float(high[1])]


def compute_structure_box(obj: NDArray[Any]) -> list[int] | None:
    """First and last row, first and last column of what differs from the corner pixel of ``obj``; None if empty."""
    differs = np.abs(obj - obj[0, 0]) > VACUUM_TOLERANCE * np.abs(obj).max()
    if not differs.any():
        return None
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    return [int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])]


def estimate_coordinate_scale(positions: NDArray[np.float64], size: int, obj: NDArray[Any]) -> CoordinateScale:
    """Find out whether ``positions`` are in pixels of ``obj``, or in a multiple of them.

    A reconstructed or simulated object fills the box that the patterns see: either its array does, or within a larger
    array its structure does. A factor other than 1 is told only where it fits to a quarter of a pattern and at least
    three times better than the coordinates as they are.

    Args:
        positions: (n, 2) (y, x) as in the file.
        size: N, pixels of a pattern.
        obj: (rows, columns) complex, origin (0, 0).
    """
    boxes: list[Box] = [[0.0, obj.shape[0] - 1.0, 0.0, obj.shape[1] - 1.0]]
    structure = compute_structure_box(obj)
    if structure is not None:
        boxes.append([float(edge) for edge in structure])

    def misfit(factor: float) -> float:
        illuminated_box = compute_illuminated_box(positions * factor, size)
        return min(max(abs(a - b) for a, b in zip(illuminated_box, box, strict=True)) for box in boxes)

    found = {factor: misfit(factor) for factor in CANDIDATE_FACTORS}
    best = min(found, key=found.__getitem__)
    convinces = found[best] <= size / 4 and found[best] <= found[1.0] / 3
    factor = best if convinces else 1.0
    return CoordinateScale(factor, compute_illuminated_box(positions * factor, size), found)
