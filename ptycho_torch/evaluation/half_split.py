"""Resolution without a truth: two halves of a scan, and the ring correlation of their reconstructions."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.grouping import Indices, make_compact_batches
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.evaluation.alignment import OverlapRegion, align, compute_covered_region
from ptycho_torch.evaluation.frc import (
    MIN_SQUARE_SIDE_PX,
    RingCorrelation,
    compute_ring_correlation,
    find_largest_square,
)

FIXED_FRC_LEVEL = 0.5
"""A fixed level, stricter than the ½-bit threshold of half data sets."""


class HalfScanCorrelation(NamedTuple):
    """The agreement of reconstructions from two halves of a scan."""

    frc: RingCorrelation
    """Correlation in the largest square that both reconstructions cover."""

    shift: tuple[float, float]
    """Shift (y, x) in pixels that was applied to the second half."""

    pixel_size: float | None
    """Geometric mean of the sides of an object pixel in meters; None: unknown."""

    def to_metrics(self) -> dict[str, Any]:
        """Return the numbers by the names of ``metrics.json``."""
        metrics: dict[str, Any] = {
            "half_scan_crossing_cycles_per_pixel": self.frc.crossing,
            "half_scan_resolution_pixels": self.frc.resolution,
        }
        if self.pixel_size is not None:
            resolution = self.frc.resolution
            metrics["half_scan_resolution_nm"] = None if resolution is None else resolution * self.pixel_size * 1e9
        return metrics | {
            "half_scan_fixed_crossing_cycles_per_pixel": self.frc.find_crossing(FIXED_FRC_LEVEL),
            "half_scan_removed_shift_pixels": list(self.shift),
        }


def split_half_indices(positions: NDArray[np.float64], rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Split scan positions into two halves that cover the field alike.

    Neighbors are paired, and each half receives a random member of each pair: halves drawn freely would have holes.

    Args:
        positions: (n, 2) scan positions.
        rng: generator that draws the halves.

    Returns:
        The indices of the first and of the second half, each in file order; the first has at most one more.
    """
    first, second = [], []
    for pair in make_compact_batches(positions, 2, 1, rng):  # the order within a pair is random
        first.append(pair[0])
        second += pair[1:].tolist()
    return np.sort(np.array(first, np.int64)), np.sort(np.array(second, np.int64))


def correlate_half_scans(first: Reconstruction, second: Reconstruction) -> HalfScanCorrelation:
    """Align ``second`` with ``first`` and correlate them where both are covered.

    A phase ramp, a shift and a complex factor are free in independent reconstructions and are removed first. No other
    difference is removed: where the probes or the phases differ, the correlation falls.

    Args:
        first: reconstruction from one half of the positions; its geometry gives the resolution in nanometers.
        second: reconstruction from the other half, on the same canvas.

    Raises:
        DataError: the canvases differ, or the largest square that both cover is too small.
    """
    if first.object.shape != second.object.shape or (first.origin_yx != second.origin_yx).any():
        raise DataError(
            f"half scans on canvases of {first.object.shape} and {second.object.shape} pixels at "
            f"{first.origin_yx.tolist()} and {second.origin_yx.tolist()}; expected the same canvas"
        )
    region = compute_covered_region(first) & compute_covered_region(second)
    square = find_largest_square(region)
    side = first.object[square].shape[0]
    if side < MIN_SQUARE_SIDE_PX:
        raise DataError(
            f"the halves of the scan both cover a square of {side} pixels; expected at least {MIN_SQUARE_SIDE_PX}; "
            "the scan is too sparse, so leave out `half_scan_frc`"
        )
    reference, moved = (np.asarray(half.object, np.complex128) for half in (first, second))
    pair = OverlapRegion(moved, reference, region, first.origin_yx)
    alignment = align(pair, remove_ramp=True, remove_shift=True)
    pixel_size = None if first.geometry is None else first.geometry.mean_object_pixel_m
    shift = (float(alignment.shift[0]), float(alignment.shift[1]))
    return HalfScanCorrelation(compute_ring_correlation(alignment.object[square], reference[square]), shift, pixel_size)
