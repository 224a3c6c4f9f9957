"""Conversion of the arrays of a scan file to a :class:`~ptycho_torch.data.scan.Scan`."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.base import AxisOrder, Measurement
from ptycho_torch.data.contract import find_violations, raise_for_violations
from ptycho_torch.data.detector import (
    clip_negative,
    combine_masks,
    find_gap_pixels,
    find_marker_pixels,
    may_hold_markers,
)
from ptycho_torch.data.layout import (
    DiffractionLayout,
    compute_stack_size,
    find_diffraction_key,
    find_layout,
    move_pattern_axis_first,
    normalize_probe_shape,
)
from ptycho_torch.data.measured_quantity import REASON_DECIDED, resolve_measurement
from ptycho_torch.data.scan import Scan

WARNING_RULES = ("R1", "R24", "R26", "R27", "R29")
"""Recommendations that are logged as warnings when they are broken."""

logger = logging.getLogger(__name__)


def make_scan_from_arrays(
    arrays: dict[str, NDArray[Any]],
    *,
    name: str,
    axis_order: AxisOrder | None = None,
    measurement: Measurement | None = None,
    photons_per_unit: float | None = None,
    source: Path | None = None,
) -> Scan:
    """Check the arrays of a scan file and convert them to a scan.

    Args:
        arrays: arrays by the keys of the contract.
        name: name of the file for errors and warnings.
        axis_order: axis order of the patterns; overrides the metadata and the shape.
        measurement: measured quantity; overrides the metadata.
        photons_per_unit: photons per squared unit of amplitude; overrides the metadata.
        source: file that the arrays were read from.

    Raises:
        ContractError: the arrays break a MUST of ``specs/data_contracts.md``, whose number the error carries.
    """
    violations = find_violations(arrays, axis_order, measurement)
    raise_for_violations(violations, name)
    layout = resolve_measurement(arrays, find_layout(arrays, axis_order, measurement))
    for violation in violations:
        if violation.rule in WARNING_RULES:
            logger.warning("%s: %s", name, violation.message)
    patterns = arrays[str(find_diffraction_key(arrays))]
    count = int(compute_stack_size(patterns, layout)[1] or 0)
    declared = layout.metadata.get("photons_per_unit")
    is_declared = not layout.measurement_reason.startswith(REASON_DECIDED)
    if photons_per_unit is None and declared is None and layout.measurement == "counts" and is_declared:
        declared = 1.0
    mask, labels, truth = (arrays.get(key) for key in ("mask", "Y", "objectGuess"))
    if truth is not None and truth.ndim != 2:
        logger.warning("%s: objectGuess has %d slices and is left out; a scan has one slice", name, len(truth))
        truth = None
    counting = None if mask is None else move_pattern_axis_first(mask.astype(bool), layout, count)
    amplitudes, counting = _convert_patterns(move_pattern_axis_first(patterns, layout, count), counting, layout, name)
    return Scan(
        amplitudes=amplitudes,
        positions=_stack_positions(arrays, "ycoords", "xcoords"),
        probe=_convert_probe(arrays.get("probeGuess")),
        mask=counting,
        truth=None if truth is None else np.ascontiguousarray(truth, dtype=np.complex64),
        scan_index=arrays["scan_index"].astype(np.int64) if "scan_index" in arrays else None,
        source_index=arrays["source_index"].astype(np.int64) if "source_index" in arrays else None,
        nominal_positions=_stack_positions(arrays, "ycoords_start", "xcoords_start")
        if "xcoords_start" in arrays
        else None,
        labels=None if labels is None else move_pattern_axis_first(labels.astype(np.complex64), layout, count),
        photons_per_unit=declared if photons_per_unit is None else photons_per_unit,
        metadata=layout.metadata,
        source=source,
    )


def _convert_probe(probe: NDArray[Any] | None) -> NDArray[np.complex64] | None:
    if probe is None:
        return None
    modes = probe.reshape(normalize_probe_shape(probe.shape)).astype(np.complex64)
    return np.ascontiguousarray(modes if modes.ndim == 3 else modes[None])


def _convert_patterns(
    patterns: NDArray[Any], mask: NDArray[np.bool_] | None, layout: DiffractionLayout, name: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Return amplitudes (n, N, N) float32, and the mask without gaps and markers; uncounted pixels become 0.

    Counts are cast before arithmetic, because small integers wrap.
    """
    is_counts = layout.measurement == "counts"
    lowest, highest = patterns.min(), patterns.max()
    if not (lowest >= 0 and np.isfinite(highest)):
        mask = combine_masks(mask, _negate_if_any(find_gap_pixels(patterns)))
        patterns = patterns if mask is None else np.where(mask, patterns, patterns.dtype.type(0))
    if may_hold_markers(patterns, squared=not is_counts):
        markers = find_marker_pixels(patterns if is_counts else np.square(patterns, dtype=np.float64))
        if markers.any():
            in_any = np.asarray(markers.any(0))
            number = int(in_any.sum())
            logger.warning(
                "%s: %d pixels hold the largest or a negative marker instead of counts; masked", name, number
            )
            mask = combine_masks(mask, ~in_any if (in_any == markers.all(0)).all() else ~markers)
            patterns = np.where(markers, patterns.dtype.type(0), patterns)
    patterns, number = clip_negative(patterns)
    if number:
        logger.warning("%s: %d negative values, down to %.3g, are set to 0", name, number, lowest)
    if is_counts:
        patterns = np.sqrt(patterns.astype(np.float64))
    return np.ascontiguousarray(patterns, dtype=np.float32), mask


def _negate_if_any(pixels: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    return ~pixels if pixels.any() else None


def _stack_positions(arrays: dict[str, NDArray[Any]], y: str, x: str) -> NDArray[np.float64]:
    return np.stack([np.atleast_1d(arrays[y]), np.atleast_1d(arrays[x])], axis=1).astype(np.float64)
