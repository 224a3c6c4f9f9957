"""Correction of the faults of a scan that are safe to correct."""

from dataclasses import replace

import numpy as np

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.beam_center import estimate_center, move_far_field
from ptycho_torch.data.detector import combine_masks, fit_window
from ptycho_torch.data.findings import Faults, locate_faults
from ptycho_torch.data.scan import Scan
from ptycho_torch.data.scan_numbers import cut_scan

MIN_REST_PX, MAX_REST_PX = 0.15, 3.0
"""Smallest and largest distance of the center of the patterns from that of the probe that the probe follows."""

N_REFINEMENTS = 3
"""Number of further estimates of that distance, each with the moved probe: an estimate is accurate to 0.05 pixels at
distance 0, and to 0.1 between pixels."""


def fix_scan(scan: Scan) -> tuple[Scan, list[str]]:
    """Correct faults of a scan and return it with a list of the corrections; a scan without faults is unchanged.

    Frames and positions that are outliers are left out, and ``source_index`` keeps the indices of the others. Bad and
    saturated pixels are masked. Patterns whose zero frequency is not at N//2 are moved by whole pixels, with masked
    pixels where the detector ends; the probe follows the rest. A probe with a corner origin is centered.

    Raises:
        DataError: no frame remains.
    """
    faults = locate_faults(scan)
    scan, applied = _mask_pixels(scan, faults)
    scan, moved = _move_center(scan, faults)
    scan, dropped = _drop_outliers(scan, faults)
    return scan, applied + moved + dropped


def _mask_pixels(scan: Scan, faults: Faults) -> tuple[Scan, list[str]]:
    applied = []
    bad = faults.bad_pixels.combined
    if bad.any():
        scan = replace(scan, mask=combine_masks(scan.mask, ~bad))
        applied.append(f"masked pixels: {faults.bad_pixels.describe()}")
    if faults.markers is not None:
        markers = faults.markers
        in_any = np.asarray(markers.any(0))
        constant = bool((in_any == markers.all(0)).all())
        scan = replace(scan, mask=combine_masks(scan.mask, ~in_any if constant else ~markers))
        applied.append(f"masked saturated values: {int(markers.sum())} on {int(in_any.sum())} pixels")
    return scan, applied


def _move_center(scan: Scan, faults: Faults) -> tuple[Scan, list[str]]:
    applied = []
    if faults.corner_probe and scan.probe is not None:
        scan = replace(scan, probe=np.fft.fftshift(scan.probe, axes=(-2, -1)))
        applied.append("centered the probe, which had a corner origin")
    if faults.center is not None:
        center = (faults.center.row, faults.center.column)
        amplitudes, mask = fit_window(scan.amplitudes, scan.mask, center, scan.size)
        if mask is None or mask.any():
            scan = replace(scan, amplitudes=np.ascontiguousarray(amplitudes), mask=mask)
            applied.append(f"moved zero frequency from ({center[0]:.1f}, {center[1]:.1f}) to N//2")
            scan, aligned = align_probe(scan)
            applied += aligned
    return scan, applied


def align_probe(scan: Scan) -> tuple[Scan, list[str]]:
    """Move the far field of the probe to the center of the patterns, with a description of the change.

    A window moves patterns by whole pixels; the rest would be a phase ramp of the object. The scan is unchanged if the
    rest is below :data:`MIN_REST_PX`, or if the probe does not determine the center.
    """
    if scan.probe is None:
        return scan, []
    mean = np.square(scan.amplitudes).mean(0, dtype=np.float64)
    mask = scan.mask if scan.mask is None or scan.mask.ndim == 2 else np.asarray(scan.mask.all(0))
    estimate = estimate_center(mean, mask, scan.probe)
    rest = (estimate.row - scan.size // 2, estimate.column - scan.size // 2)
    largest = max(map(abs, rest))
    if estimate.method != "probe" or largest < max(MIN_REST_PX, estimate.uncertainty) or largest > MAX_REST_PX:
        return scan, []
    probe = scan.probe
    for _ in range(N_REFINEMENTS):
        probe = move_far_field(probe, (estimate.row - scan.size // 2, estimate.column - scan.size // 2))
        estimate = estimate_center(mean, mask, probe)
        if estimate.method != "probe":
            break
        rest = (rest[0] + estimate.row - scan.size // 2, rest[1] + estimate.column - scan.size // 2)
    scan = replace(scan, probe=move_far_field(scan.probe, rest))
    return scan, [f"moved the far field of the probe by ({rest[0]:.2f}, {rest[1]:.2f}) pixels to that of the patterns"]


def _drop_outliers(scan: Scan, faults: Faults) -> tuple[Scan, list[str]]:
    outliers = np.union1d(faults.frames.indices, faults.positions)
    if not len(outliers):
        return scan, []
    kept = np.setdiff1d(np.arange(len(scan)), outliers)
    if not len(kept):
        raise DataError(
            f"{scan.source or 'scan'}: every pattern is an outlier; expected a scan with some good patterns"
        )
    listed = ", ".join(map(str, outliers.tolist()))
    return cut_scan(scan, kept), [f"left out {len(outliers)} outlier patterns: {listed}"]
