"""Coordinate grid of the object: the pixels that the patterns cover, and the unit of the coordinates."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

VACUUM_TOLERANCE = 1e-6
"""Object pixels within this fraction of the largest modulus from the corner pixel count as vacuum."""

CANDIDATE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Tested factors between coordinates and object pixels; binning and cropping by 2 and 4 leave such factors behind."""

Box = list[float]
"""First row, last row, first column, last column, in object pixels."""


class CoordinateScale(NamedTuple):
    """Factor that brings the coordinates to object pixels."""

    factor: float
    """Best-fitting member of :data:`CANDIDATE_FACTORS`; 1 unless another factor fits far better."""

    illuminated_box: Box
    """Pixels that the patterns cover with that factor."""

    misfit: dict[float, float]
    """Largest distance in pixels between the edges of the covered box and of the object, by factor. The object's box
    is its array or its structure, whichever fits better."""


def compute_illuminated_box(positions: NDArray[np.float64], size: int) -> Box:
    """Return the range of pixel centers that patterns cover.

    Args:
        positions: (n, 2) (y, x) in pixels.
        size: N, side of a pattern in pixels.
    """
    low, high = positions.min(0) - size // 2, positions.max(0) - size // 2 + size - 1
    return [float(low[0]), float(high[0]), float(low[1]), float(high[1])]


def compute_structure_box(obj: NDArray[Any]) -> list[int] | None:
    """Return first and last row, first and last column of the pixels that differ from the corner pixel of ``obj``.

    Returns None if no pixel differs.
    """
    differs = np.abs(obj - obj[0, 0]) > VACUUM_TOLERANCE * np.abs(obj).max()
    if not differs.any():
        return None
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    return [int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])]


def is_inside(low: float, high: float, extent: int) -> bool:
    """Return True if pixel centers from ``low`` to ``high`` round to pixels of an axis of length ``extent``."""
    return low >= -0.5 and high <= extent - 0.5


def estimate_coordinate_scale(positions: NDArray[np.float64], size: int, obj: NDArray[Any]) -> CoordinateScale:
    """Estimate the factor between ``positions`` and pixels of ``obj``.

    A reconstructed or simulated object fills the box that the patterns cover, either with its array or with the
    structure inside a larger array. A factor other than 1 is returned only if it fits to a quarter of a pattern and at
    least three times better than the factor 1.

    Args:
        positions: (n, 2) (y, x) as in the file.
        size: N, side of a pattern in pixels.
        obj: (rows, columns) complex, origin (0, 0).
    """
    boxes: list[Box] = [[0.0, obj.shape[0] - 1.0, 0.0, obj.shape[1] - 1.0]]
    structure = compute_structure_box(obj)
    if structure is not None:
        boxes.append([float(edge) for edge in structure])

    def compute_misfit(factor: float) -> float:
        illuminated_box = compute_illuminated_box(positions * factor, size)
        return min(max(abs(a - b) for a, b in zip(illuminated_box, box, strict=True)) for box in boxes)

    misfit = {factor: compute_misfit(factor) for factor in CANDIDATE_FACTORS}
    best = min(misfit, key=misfit.__getitem__)
    is_clear = misfit[best] <= size / 4 and misfit[best] <= misfit[1.0] / 3
    factor = best if is_clear else 1.0
    return CoordinateScale(factor, compute_illuminated_box(positions * factor, size), misfit)
