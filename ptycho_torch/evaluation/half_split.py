"""The resolution without a truth: two reconstructions from disjoint halves of a scan, correlated ring by ring."""

from typing import Any, NamedTuple

import numpy as np

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.alignment import OverlapRegion, align, compute_covered_region
from ptycho_torch.evaluation.frc import MIN_SQUARE_SIDE_PX, RingCorrelation, find_largest_square, ring_correlation
from ptycho_torch.plotting import figures
from ptycho_torch.plotting.report import ReportImage

FIXED_FRC_LEVEL = 0.5
"""A stricter level beside the ½-bit threshold, which is made for halves: half of the data has half of the signal."""


class HalfScanCorrelation(NamedTuple):
    """How far two halves of a scan agree."""

    frc: RingCorrelation
    """In the largest square that both cover."""

    shift: tuple[float, float]
    """(y, x) in pixels by which the second half was moved onto the first."""

    pixel_size: float | None
    """Side of an object pixel in metres, where it is known."""

    def to_metrics(self) -> dict[str, Any]:
        """The numbers by the names that ``metrics.json`` uses."""
        found: dict[str, Any] = {
            "half_scan_crossing_cycles_per_pixel": self.frc.crossing,
            "half_scan_resolution_pixels": self.frc.resolution,
        }
        if self.pixel_size is not None:
            resolution = self.frc.resolution
            found["half_scan_resolution_nm"] = None if resolution is None else resolution * self.pixel_size * 1e9
        return found | {
            "half_scan_fixed_crossing_cycles_per_pixel": self.frc.find_crossing(FIXED_FRC_LEVEL),
            "half_scan_removed_shift_pixels": list(self.shift),
        }

    def make_report_image(self) -> ReportImage:
        """The curve, for the report."""
        side = 2 * len(self.frc.frequency) + 1
        caption = (
            f"Two reconstructions from disjoint halves of the positions, in {side} × {side} pixels that both cover, "
            "after one complex factor, a ramp and a shift. Each half has half of the dose and of the overlap."
        )
        return ReportImage(
            "Half-scan Fourier ring correlation", figures.plot_frc(self.frc, FIXED_FRC_LEVEL), caption, wide=False
        )


def correlate_half_scans(
    first: Reconstruction, second: Reconstruction, pixel_size: float | None = None
) -> HalfScanCorrelation:
    """Register ``second`` to ``first``, which share a canvas, and correlate them where both are covered.

    What two independent reconstructions leave free, a ramp, a shift and a complex factor, is removed first; nothing
    else is, so where probes or phases drift apart the halves disagree.

    Raises:
        DataError: they lie on different canvases, or share no covered square of some pixels.
    """
    if first.object.shape != second.object.shape or (first.origin_yx != second.origin_yx).any():
        raise DataError(
            f"half scans on canvases of {first.object.shape} and {second.object.shape} pixels at "
            f"{first.origin_yx.tolist()} and {second.origin_yx.tolist()}, expected the same"
        )
    region = compute_covered_region(first) & compute_covered_region(second)
    square = find_largest_square(region)
    side = first.object[square].shape[0]
    if side < MIN_SQUARE_SIDE_PX:
        raise DataError(
            f"the halves of the scan both cover a square of {side} pixels, expected at least {MIN_SQUARE_SIDE_PX}: "
            "the scan is too sparse to be halved; leave out --half_scan_frc"
        )
    reference, moved = (np.asarray(half.object, np.complex128) for half in (first, second))
    pair = OverlapRegion(moved, reference, region, first.origin_yx)
    found = align(pair, remove_ramp=True, remove_shift=True)
    shift = (float(found.shift[0]), float(found.shift[1]))
    return HalfScanCorrelation(ring_correlation(found.object[square], reference[square]), shift, pixel_size)


def read_pixel_size(scan: Scan) -> float | None:
    """Side of an object pixel in metres where the scan's metadata say it, or the conversion that made its file."""
    converted = scan.metadata.get("converted")
    for source in (scan.metadata, converted if isinstance(converted, dict) else {}):
        size = source.get("pixel_size")
        if isinstance(size, int | float) and 0 < size < np.inf:
            return float(size)
    return None
