"""MATLAB files of the hard X-ray nanoprobe of NSLS-II, version 5 or 7.3."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry, compute_photon_wavelength
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.mat import Mat73File, MatFile, open_mat
from ptycho_torch.io.parts import InputReport, ScanParts

MICROMETER_M = 1e-6


class NslsMatFormat(Format):
    """Patterns ``det_data`` and positions ``pos_xy``."""

    name = "nsls_mat"
    title = "MATLAB file of NSLS-II HXN (det_data, pos_xy)"

    def matches(self, file: InputFile) -> bool:
        mat = open_mat(file) if file.kind in ("mat5", "hdf5") else None
        return mat is not None and sum(mat.has(name) for name in ("det_data", "pos_xy", "det_pixel_size")) > 1

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        mat, report = open_mat(file), InputReport(self.name)
        if mat is None:
            raise DataError(f"{file.path}: this is a file of the kind {file.kind}; expected a MATLAB file")
        positions = _read_positions(mat, report) if mat.has("pos_xy") else None
        patterns = None
        if mat.has("det_data"):
            patterns = _read_patterns(mat, None if positions is None else len(positions), report)
        for name, label in (("det_data", "patterns"), ("pos_xy", "positions")):
            if not mat.has(name):
                report.missing.append(f"{label}: {name} is not in the file; set `{label}_file`")
        if mat.has("prb"):
            report.assumptions.append("prb and obj are not read: the place of the positions on obj is unknown")
        return ScanParts(
            patterns=patterns,
            measurement="counts",
            positions=positions,
            position_unit="micrometer",
            geometry=_read_geometry(mat, report),
            report=report,
        )


def _read_patterns(mat: MatFile, count: int | None, report: InputReport) -> NDArray[Any]:
    """Return the patterns (n, rows, columns), whose first axis is found by its length."""
    stored = mat.read("det_data", "biuf")
    if stored.ndim != 3:
        raise DataError(f"{mat.path}: det_data has shape {stored.shape}; expected three axes")
    # Files of version 7.3 have reversed axes in MATLAB, and hold (n, rows, columns).
    patterns = stored.T if isinstance(mat, Mat73File) else stored
    if count is not None and patterns.shape[0] != count:
        if patterns.shape[2] != count:
            raise DataError(
                f"{mat.path}: det_data has shape {stored.shape} for {count} positions; expected one per pattern"
            )
        patterns = np.moveaxis(patterns, 2, 0)
    report.add("patterns", "det_data", "counts", f"axes {stored.shape} ordered as {patterns.shape}")
    return patterns


def _read_positions(mat: MatFile, report: InputReport) -> NDArray[np.float64]:
    """Return the positions (row, column) from ``pos_xy``: rows or columns (x, y), or (number, x, y)."""
    values = mat.read("pos_xy", "iuf").astype(np.float64)
    if values.ndim == 2 and values.shape[1] not in (2, 3) and values.shape[0] in (2, 3):
        values = values.T
    if values.ndim != 2 or values.shape[1] not in (2, 3):
        raise DataError(f"{mat.path}: pos_xy has shape {values.shape}; expected (n, 2) or (n, 3)")
    report.add("positions", "pos_xy", "µm", "(row, column) = (y, x), the last two columns")
    return values[:, :-3:-1]


def _read_geometry(mat: MatFile, report: InputReport) -> Geometry:
    energy = mat.find_number("energy")
    pixel, distance = mat.find_number("det_pixel_size"), mat.find_number("det_dist")
    for value, label, name, unit in (
        (energy, "wavelength", "energy", "keV"),
        (distance, "distance", "det_dist", "µm"),
        (pixel, "detector pixel", "det_pixel_size", "µm"),
    ):
        if value is not None:
            report.add(label, name, unit)
    return Geometry(
        wavelength_m=None if energy is None else compute_photon_wavelength(energy * 1e3),
        distance_m=None if distance is None else distance * MICROMETER_M,
        detector_pixel_m=None if pixel is None else (pixel * MICROMETER_M, pixel * MICROMETER_M),
    )
