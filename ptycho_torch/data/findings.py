"""Faults of a scan that end in a wrong image, each with its evidence and the setting that corrects it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import ContractError
from ptycho_torch.data.bad_pixels import BadPixels, find_bad_pixels
from ptycho_torch.data.beam_center import CenterEstimate, estimate_center
from ptycho_torch.data.detector import find_marker_pixels, may_hold_markers
from ptycho_torch.data.extent import compute_median_step, compute_probe_diameter
from ptycho_torch.data.lattice import estimate_lattice_factor
from ptycho_torch.data.outlier_frames import OutlierFrames, find_outlier_frames
from ptycho_torch.data.position_faults import find_outlier_positions, find_unit_fault
from ptycho_torch.data.scan import Scan

MIN_COUNTING_FRACTION = 0.2
"""Smallest fraction of pixels, or of photons, that a mask leaves."""

MAX_CENTER_OFFSET_PX = 0.5
"""Largest distance of zero frequency from N//2 along an axis, if the probe determines it."""

MAX_SYMMETRY_OFFSET_PX = 3.0
"""Largest distance otherwise: a far field without symmetry moves the estimate, and a ramp of the probe absorbs it."""

MIN_SYMMETRIC_CORRELATION, MAX_SYMMETRIC_OFFSET_PX = 0.99, 1.5
"""Correlation with its rotation from which a pattern is symmetric, and the largest distance then: the estimate is
within 0.8 pixels for simulated disks, Gaussians, defocused beams and zone plates."""

MIN_CENTER_OFFSET_UNCERTAINTIES = 2.0
"""Smallest offset of a center in its uncertainties."""

SIMILAR_FRACTION_OF_PROBE = 0.25
"""Distance in probe diameters up to which patterns are similar."""

MIN_OVERLAP, RECOMMENDED_OVERLAP = 0.2, 0.5
"""Overlaps (1 − step / probe diameter) below which a scan is reported as a warning and as a note."""

MIN_LARGEST_WHOLE_AMPLITUDE = 4.0
"""Largest amplitude from which whole numbers only are counts: square roots of counts are rarely whole."""

MIN_PHOTONS_PER_PATTERN = 10.0
"""Smallest plausible number of photons per pattern."""

MAX_SAMPLED_FRAMES = 600
"""Largest number of patterns on which pixels are tested."""

MAX_LISTED = 8
"""Largest number of indices in the evidence."""

FIX = "`fix`"


@dataclass(frozen=True)
class Finding:
    """A fault of a scan."""

    name: str
    """``mask``, ``position unit``, ``outlier positions``, ``outlier frames``, ``center``, ``origin``, ``probe origin``,
    ``bad pixels``, ``saturation``, ``spacing``, ``photon scale``, ``measurement`` or ``several scans``."""

    severity: Literal["error", "warning", "note"]

    evidence: str

    setting: str
    """Settings that correct the fault, in backticks."""

    rule: str | None = None
    """Number of the rule of ``specs/data_contracts.md`` that the fault breaks."""


@dataclass(frozen=True)
class Faults:
    """The places of the faults that :func:`~ptycho_torch.data.fixes.fix_scan` corrects."""

    frames: OutlierFrames
    positions: NDArray[np.intp]
    bad_pixels: BadPixels
    markers: NDArray[np.bool_] | None
    center: CenterEstimate | None
    """Center of the patterns if it is not N//2."""

    corner_probe: bool
    """True if the center of the probe is in its corner."""


def find_faults(scan: Scan) -> list[Finding]:
    """Find faults of a scan that end in a wrong image: errors first, then warnings, then notes.

    The true object is not used. A scan of 500 patterns of 128 × 128 pixels takes about a second.

    Args:
        scan: the scan.
    """
    findings = [*_find_errors(scan), *_describe_faults(scan, locate_faults(scan)), *_find_scale_faults(scan)]
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])


def raise_for_faults(scan: Scan) -> None:
    """Raise for the first fault that excludes a right image; it takes milliseconds.

    Raises:
        ContractError: the mask excludes nearly everything, or the positions are not in object pixels.
    """
    for finding in _find_errors(scan):
        if finding.rule is not None:
            raise ContractError(
                finding.rule, f"{scan.source or 'scan'}: {finding.evidence}; set {finding.setting} to correct it"
            )


def find_position_and_probe_faults(scan: Scan) -> list[Finding]:
    """Find the faults of positions and probe that need no pattern; it takes milliseconds."""
    outliers = find_outlier_positions(scan.positions, scan.size)
    corner_probe = scan.probe is not None and _has_corner_origin(scan.probe)
    return [*_describe_outlier_positions(scan, outliers), *_describe_probe_origin(corner_probe)]


def find_measurement_fault(scan: Scan) -> Finding | None:
    """Return the finding that the amplitudes are likely counts, because all are whole numbers; None if they are not."""
    amplitudes, mask = scan.amplitudes[:: max(1, len(scan) // 64)], scan.mask
    if mask is not None:
        amplitudes = np.where(mask if mask.ndim == 2 else mask[:: max(1, len(scan) // 64)], amplitudes, np.float32(0))
    largest = float(amplitudes.max(initial=0))
    if not MIN_LARGEST_WHOLE_AMPLITUDE <= largest < np.inf or (amplitudes != np.rint(amplitudes)).any():
        return None
    return Finding(
        "measurement",
        "warning",
        f"all amplitudes are whole numbers up to {largest:g}; square roots of counts are not, so that the values are "
        "likely counts",
        "`measurement` to counts",
    )


def locate_outlier_frames(scan: Scan) -> OutlierFrames:
    """Return the frames of a scan that deviate from those at the nearest positions."""
    radius = SIMILAR_FRACTION_OF_PROBE * (_compute_diameter(scan) or 0.0)
    return find_outlier_frames(scan.amplitudes, scan.positions, scan.mask, radius)


def locate_faults(scan: Scan) -> Faults:
    """Return the places of the faults of a scan that can be corrected."""
    positions = find_outlier_positions(scan.positions, scan.size)
    frames = locate_outlier_frames(scan)
    usable = np.setdiff1d(np.arange(len(scan)), frames.indices)
    sample = usable[:: max(1, len(usable) // MAX_SAMPLED_FRAMES)]
    counts = np.square(scan.amplitudes[sample])
    mask = scan.mask if scan.mask is None or scan.mask.ndim == 2 else scan.mask[sample]
    if mask is not None:
        counts = np.where(mask, counts, np.float32(0))
    markers = _find_markers(scan)
    counting = None if mask is None else (mask if mask.ndim == 2 else np.asarray(mask.all(0)))
    if markers is not None:
        unmarked = ~np.asarray(markers.any(0))
        counting = unmarked if counting is None else counting & unmarked
    pixels = find_bad_pixels(counts, counting)
    good = ~pixels.combined if counting is None else counting & ~pixels.combined
    return Faults(
        frames=frames,
        positions=positions,
        bad_pixels=pixels,
        markers=markers,
        center=_find_center(counts.mean(0, dtype=np.float64), good, scan.probe),
        corner_probe=scan.probe is not None and _has_corner_origin(scan.probe),
    )


def _find_markers(scan: Scan) -> NDArray[np.bool_] | None:
    """Return the unmasked values (n, N, N) that are saturated or markers; None without any."""
    amplitudes = scan.amplitudes if scan.mask is None else np.where(scan.mask, scan.amplitudes, np.float32(0))
    if not may_hold_markers(amplitudes, squared=True):
        return None
    markers = find_marker_pixels(np.square(amplitudes, dtype=np.float64))
    return markers if markers.any() else None


def _find_center(
    mean_pattern: NDArray[np.float64], good: NDArray[np.bool_], probe: NDArray[Any] | None
) -> CenterEstimate | None:
    """Return the center if it is not N//2 within its uncertainty."""
    if _is_brighter_in_corners(mean_pattern):
        return None  # corner origin, a finding of its own
    estimate = estimate_center(mean_pattern, good, probe)  # a shift of the probe does not change its far field
    offset = max(abs(estimate.row - len(mean_pattern) // 2), abs(estimate.column - len(mean_pattern) // 2))
    limit = max(MAX_CENTER_OFFSET_PX, MIN_CENTER_OFFSET_UNCERTAINTIES * estimate.uncertainty)
    if estimate.method != "probe":
        symmetric = estimate.correlation >= MIN_SYMMETRIC_CORRELATION
        largest = MAX_SYMMETRIC_OFFSET_PX if symmetric else MAX_SYMMETRY_OFFSET_PX
        limit = max(largest, MIN_CENTER_OFFSET_UNCERTAINTIES * estimate.uncertainty)
    return estimate if estimate.decided and offset > limit else None


def _has_corner_origin(probe: NDArray[Any]) -> bool:
    return _is_brighter_in_corners(np.square(np.abs(probe)).sum(0))


def _compute_diameter(scan: Scan) -> float | None:
    """Return the diameter of the probe in pixels, also of a probe with a corner origin; None without a probe."""
    if scan.probe is None:
        return None
    corner = _has_corner_origin(scan.probe)
    return compute_probe_diameter(np.fft.fftshift(scan.probe, axes=(-2, -1)) if corner else scan.probe)


def _is_brighter_in_corners(intensity: NDArray[np.floating[Any]]) -> bool:
    """Return True if the middle half (along each axis) holds more than twice as much after an fft-shift."""
    size = len(intensity)
    middle = slice(size // 4, size // 4 + size // 2)
    return bool(np.fft.fftshift(intensity)[middle, middle].sum() > 2 * intensity[middle, middle].sum())


def _find_errors(scan: Scan) -> Iterator[Finding]:
    """Yield faults that exclude a right image."""
    if scan.mask is not None:
        pixels = float(scan.mask.mean())
        photons = _compute_counting_photons(scan, scan.mask)
        if min(pixels, photons) < MIN_COUNTING_FRACTION:
            yield Finding(
                "mask",
                "error",
                f"the mask leaves {pixels:.1%} of the pixels and {photons:.1%} of the photons; its polarity is likely "
                "inverted: True means that a pixel counts",
                "`invert_mask`",
                "R30",
            )
    diameter = _compute_diameter(scan)
    unit = find_unit_fault(scan.positions, scan.size, diameter)
    if unit is not None:
        yield Finding("position unit", "error", unit, "`position_unit`, `pixel_size` or `position_scale`", "R31")
    numbers = [] if scan.scan_index is None else np.unique(scan.scan_index).tolist()
    if len(numbers) > 1:
        listed = ", ".join(map(str, numbers[:MAX_LISTED])) + ("…" if len(numbers) > MAX_LISTED else "")
        yield Finding("several scans", "error", f"patterns of {len(numbers)} scans: {listed}", "`scan_index`")


def _compute_counting_photons(scan: Scan, mask: NDArray[np.bool_]) -> float:
    """Return the share of the photons on pixels that count; values above the largest of these are no photons."""
    step = max(1, len(scan) // MAX_SAMPLED_FRAMES)
    amplitudes = scan.amplitudes[::step]
    counting = np.broadcast_to(mask if mask.ndim == 2 else mask[::step], amplitudes.shape)
    counted = amplitudes[counting].astype(np.float64)
    excluded = amplitudes[~counting].astype(np.float64)
    excluded = excluded[np.isfinite(excluded) & (excluded > 0)]
    kept = float(np.square(counted).sum())
    lost = float(np.square(excluded[excluded <= counted.max(initial=0)]).sum())
    return kept / (kept + lost) if kept + lost > 0 else 1.0


def _describe_faults(scan: Scan, faults: Faults) -> Iterator[Finding]:
    """Yield the findings of located faults."""
    yield from _describe_outlier_positions(scan, faults.positions)
    if len(faults.frames.indices):
        kinds = {kind: faults.frames.kinds.count(kind) for kind in sorted(set(faults.frames.kinds))}
        counts = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        yield Finding(
            "outlier frames",
            "warning",
            f"{len(faults.frames.indices)} patterns differ from those at the nearest positions ({counts}): "
            f"{_list_indices(faults.frames.indices)}",
            f"{FIX} or `frames`",
        )
    if faults.bad_pixels.combined.any():
        text = faults.bad_pixels.describe()
        yield Finding(
            "bad pixels", "warning", f"defective pixels that the mask does not exclude: {text}", f"{FIX} or `mask`"
        )
    if faults.markers is not None:
        pixels = int(faults.markers.any(0).sum())
        yield Finding(
            "saturation",
            "warning",
            f"{faults.markers.mean():.2%} of the values, on {pixels} pixels, are at one largest value",
            f"{FIX} or `mask`",
        )
    yield from _describe_center(scan, faults)


def _describe_outlier_positions(scan: Scan, outliers: NDArray[np.intp]) -> Iterator[Finding]:
    if len(outliers):
        listed = ", ".join(f"{i} at ({y:.6g}, {x:.6g})" for i, (y, x) in _take_positions(scan, outliers))
        are = "1 position is" if len(outliers) == 1 else f"{len(outliers)} positions are"
        yield Finding(
            "outlier positions", "warning", f"{are} far from the scan: pattern {listed}", f"{FIX} or `frames`"
        )


def _describe_probe_origin(corner_probe: bool) -> Iterator[Finding]:
    if corner_probe:
        yield Finding("probe origin", "warning", "the power of the probe is around its corner pixel [0, 0]", FIX)


def _take_positions(scan: Scan, indices: NDArray[np.intp]) -> list[tuple[int, list[float]]]:
    return [(index, scan.positions[index].tolist()) for index in indices[:MAX_LISTED].tolist()]


def _list_indices(indices: NDArray[np.intp]) -> str:
    return ", ".join(map(str, indices[:MAX_LISTED].tolist())) + (", …" if len(indices) > MAX_LISTED else "")


def _describe_center(scan: Scan, faults: Faults) -> Iterator[Finding]:
    if faults.center is not None:
        center, middle = faults.center, scan.size // 2
        yield Finding(
            "center",
            "warning",
            f"zero frequency is at ({center.row:.1f}, {center.column:.1f}) ± {center.uncertainty:.1f}, by the "
            f"{'far field of the probe' if center.method == 'probe' else 'symmetry of the mean pattern'}; expected "
            f"({middle}, {middle})",
            f"{FIX} or `center`",
        )
    yield from _describe_probe_origin(faults.corner_probe)
    sample = scan.select(np.arange(0, len(scan), max(1, len(scan) // 32)))
    counting = np.isfinite(sample.amplitudes) & (True if sample.mask is None else sample.mask)
    finite = np.where(counting, sample.amplitudes, 0)
    if _is_brighter_in_corners(np.square(finite).mean(0, dtype=np.float64)):
        yield Finding("origin", "warning", "the patterns are brighter in their corners than in the middle", "`origin`")


def _find_scale_faults(scan: Scan) -> Iterator[Finding]:
    """Yield findings about overlap and photons."""
    counts = find_measurement_fault(scan)
    if counts is not None:
        yield counts
    step = compute_median_step(scan.positions)
    diameter = _compute_diameter(scan)
    if step and diameter:
        overlap = 1 - step / diameter
        if overlap < RECOMMENDED_OVERLAP:
            yield Finding(
                "spacing",
                "warning" if overlap < MIN_OVERLAP else "note",
                f"neighboring positions are {step:.3g} pixels apart, and the diameter of the probe is {diameter:.3g} "
                f"pixels: an overlap of {overlap:.0%}; expected about 60 %",
                "`position_scale` or `pixel_size`",
            )
    yield from _find_photon_fault(scan)


def _find_photon_fault(scan: Scan) -> Iterator[Finding]:
    sample = scan.amplitudes[:: max(1, len(scan) // 64)]
    mask = scan.mask if scan.mask is None or scan.mask.ndim == 2 else scan.mask[:: max(1, len(scan) // 64)]
    flat = sample.reshape(-1) if mask is None else sample[np.broadcast_to(mask, sample.shape)]
    intensities = np.square(flat, dtype=np.float64)
    per_pattern = float(intensities.sum()) / len(sample)
    factor = estimate_lattice_factor(intensities)
    declared = scan.photons_per_unit
    if declared is None and factor is None:
        yield Finding("photon scale", "note", "the number of photons per pattern is unknown", "`photons_per_unit`")
    elif declared is not None and declared * per_pattern < MIN_PHOTONS_PER_PATTERN:
        hint = "" if factor is None else f"; the lattice of the values gives {factor:.6g} photons per unit"
        yield Finding(
            "photon scale",
            "warning",
            f"{declared * per_pattern:.3g} photons per pattern at {declared:g} photons per unit{hint}",
            "`photons_per_unit`",
        )
