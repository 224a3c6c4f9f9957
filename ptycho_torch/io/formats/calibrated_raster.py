"""Raster scans of electron microscopes: patterns on a grid of scan steps, with a calibration instead of positions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings, PositionUnit
from ptycho_torch.io.formats.lengths import (
    ANGSTROM_M,
    compute_electron_pixel,
    find_wavelength,
    make_electron_geometry,
    make_raster,
    parse_length,
    parse_number,
)
from ptycho_torch.io.parts import InputReport, ScanParts


@dataclass(frozen=True)
class Calibration:
    """Steps of scan and detector, in the units of the file; None where the file has none."""

    path: str
    """Place in the file."""

    scan_step: tuple[float, float] | None = None
    """Steps (rows, columns)."""

    scan_unit: str | None = None

    detector_step: float | None = None

    detector_unit: str | None = None

    rotation: float = 0.0
    """Angle in radians that turns vectors of the detector to those of the scan."""

    transposed: bool = False
    """True if the axes of the detector are exchanged before the rotation."""

    center: tuple[float, float] | None = None
    """Pixel (row, column) of the undiffracted beam, mean of all patterns."""


def read_calibration(values: Mapping[str, Any], path: str) -> Calibration | None:
    """Return the calibration of py4DSTEM's names; None if there is none.

    Args:
        values: numbers and texts by name.
        path: their place in the file.
    """
    step = parse_number(values.get("R_pixel_size"))
    detector_step = parse_number(values.get("Q_pixel_size"))
    if step is None and detector_step is None:
        return None
    return Calibration(
        path,
        None if step is None else (step, step),
        _get_text(values, "R_pixel_units"),
        detector_step,
        _get_text(values, "Q_pixel_units"),
        _get_rotation(values),
        bool(parse_number(values.get("QR_flip"))),
        _get_center(values),
    )


def _get_rotation(values: Mapping[str, Any]) -> float:
    """Return the rotation of the scan to the detector in radians."""
    radians, degrees = (parse_number(values.get(name)) for name in ("QR_rotation", "QR_rotation_degrees"))
    return radians if radians is not None else math.radians(degrees or 0.0)


def _get_center(values: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the center of the beam from its coordinates, or the mean of its maps over the scan."""
    center = []
    for name in ("qx0", "qy0"):
        value = next((values[each] for each in (f"{name}_mean", name) if each in values), None)
        numbers = value if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" else parse_number(value)
        finite = np.asarray([] if numbers is None else numbers, np.float64)
        finite = finite[np.isfinite(finite)]
        if not finite.size:
            return None
        center.append(float(finite.mean()))
    return center[0], center[1]


def _get_text(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    return value if isinstance(value, str) else None


def make_raster_parts(
    patterns: NDArray[Any],
    shape: tuple[int, ...] | None,
    calibration: Calibration,
    wavelength_m: float | None,
    settings: InputSettings,
    report: InputReport,
) -> ScanParts:
    """Return the parts of a raster scan.

    Args:
        patterns: (rows, columns, ky, kx) or (n, ky, kx) counts.
        shape: rows and columns of the scan; None: unknown.
        calibration: steps of scan and detector.
        wavelength_m: wavelength in meters; None: unknown.
        settings: settings of reading; a step in the file's own unit is given by ``position_unit``.
        report: record of the file.
    """
    size = max(patterns.shape[-2:])
    side = compute_electron_pixel(
        size, calibration.detector_step, calibration.detector_unit, find_wavelength(settings, wavelength_m)
    )
    if side is not None:
        report.add(
            "object pixel",
            f"{calibration.path} {calibration.detector_step:.6g}",
            str(calibration.detector_unit),
            f"1 / (N dk) with N = {size}",
        )
    elif calibration.detector_unit in ("mrad", "rad"):
        report.missing.append("object pixel: set `voltage_kv`, or `pixel_size`")
    if calibration.center is not None:
        report.add("center", calibration.path, "pixel", "({:.2f}, {:.2f})".format(*calibration.center))
    positions, unit = _make_positions(shape, calibration, settings, report)
    return ScanParts(
        patterns=patterns.reshape(math.prod(patterns.shape[:-2]), *patterns.shape[-2:]),
        measurement="counts",
        positions=positions,
        position_unit=unit,
        center=calibration.center,
        geometry=make_electron_geometry(wavelength_m, side),
        report=report,
    )


def _make_positions(
    shape: tuple[int, ...] | None, calibration: Calibration, settings: InputSettings, report: InputReport
) -> tuple[NDArray[np.float64] | None, PositionUnit]:
    """Return the positions of the raster in the frame of the detector, and their unit."""
    stored = calibration.scan_step
    lengths = [parse_length(each, calibration.scan_unit) for each in stored or ()]
    unit: PositionUnit = "angstrom"
    if settings.position_unit is not None:
        step, unit = stored or (1.0, 1.0), settings.position_unit
    elif len(lengths) == 2 and None not in lengths:
        step = (float(lengths[0] or 0) / ANGSTROM_M, float(lengths[1] or 0) / ANGSTROM_M)
    else:
        shape = None
    if shape is None:
        report.missing.append(
            "positions: set `position_unit` and `position_scale`, the scan step in this unit, or `positions_file`"
        )
        return None, "angstrom"
    rows, columns = shape
    report.add(
        "positions", calibration.path, unit, f"raster of {rows} × {columns} steps of {step[0]:.6g} × {step[1]:.6g}"
    )
    positions = make_raster((rows, columns), step, -calibration.rotation)
    if calibration.rotation:
        report.assumptions.append(
            f"positions: rotated by {math.degrees(-calibration.rotation):.3g}° to the detector ({calibration.path}); "
            "programs differ in the sign: `rotation` changes the angle"
        )
    if calibration.transposed:
        positions = positions[:, ::-1].copy()
        report.assumptions.append(f"positions: exchanged, as the detector is transposed ({calibration.path})")
    return positions, unit
