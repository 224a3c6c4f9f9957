"""Scan files of PtyLab: intensities, encoder positions in meters and geometry."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.export import compute_photons, solve_geometry, write_hdf5
from ptycho_torch.io.formats.base import ScanWriter
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.parts import InputReport, ScanParts

MAX_PIXEL_DIFFERENCE = 1e-6
"""Largest relative difference of the sides of a detector pixel that is written as one number."""

IGNORED = {"emptyBeam": "the empty beam", "theta": "the tilt of the sample"}
"""Datasets that are passed over."""


class PtyLabFormat(ScanWriter):
    """Scans of PtyLab."""

    name = "ptylab"
    title = "PtyLab scan file (HDF5)"
    omitted_parts = ("probe", "object", "mask", "scan_index")

    def matches(self, file: InputFile) -> bool:
        names = set() if file.hdf5 is None else set(file.hdf5.list_members("/"))
        return "ptychogram" in names or names >= {"encoder", "zo", "dxd"}

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        tree, report = file.tree, InputReport(self.name)
        if tree.has("/zled") or tree.has("/NA"):
            raise DataError(
                f"{file.path}: /zled or /NA is in the file: images of Fourier ptychography, whose encoder holds the "
                "positions of light sources; expected diffraction patterns of a scanned sample"
            )
        patterns = tree.read("/ptychogram", kinds="biuf", ndim=3)
        report.add("patterns", "/ptychogram", "counts")
        for name, text in IGNORED.items():
            if tree.has(f"/{name}"):
                report.assumptions.append(f"/{name}: {text} is passed over")
        if tree.has("/spectralDensity") and int(np.prod(tree.get_shape("/spectralDensity"))) > 1:
            report.assumptions.append("/spectralDensity: several wavelengths; /wavelength alone is used")
        pixel = tree.read_positive("/dxd")
        for field, path in (("wavelength", "/wavelength"), ("distance", "/zo"), ("detector pixel", "/dxd")):
            report.add(field, path, "m")
        return ScanParts(
            patterns=_orient(tree, patterns, report),
            positions=_read_positions(tree, report),
            geometry=Geometry(
                wavelength_m=tree.read_positive("/wavelength"),
                distance_m=tree.read_positive("/zo"),
                detector_pixel_m=(pixel, pixel),
            ),
            report=report,
        )

    def write_scan(self, path: Path, scan: Scan) -> None:
        geometry = solve_geometry(scan.geometry, scan.size, str(path))
        detector, distance = geometry.detector_pixel_m, geometry.distance_m
        assert detector is not None  # solved
        if abs(detector[0] / detector[1] - 1) > MAX_PIXEL_DIFFERENCE:
            sides = f"{detector[0]:.4g} × {detector[1]:.4g} m (y, x)"
            raise DataError(f"{path}: the detector pixel is {sides}; expected a square one; set `detector_pixel`")
        photons = compute_photons(scan)
        if scan.mask is not None:
            photons = np.where(scan.mask, photons, 0).astype(photons.dtype)
        encoder = scan.positions * np.asarray(geometry.compute_far_field_pixel(scan.size))
        with write_hdf5(path) as writer:
            writer.put("ptychogram", photons.astype(np.float32))
            writer.put("encoder", encoder)
            for name, value in (("wavelength", geometry.wavelength_m), ("dxd", detector[0]), ("zo", distance)):
                writer.put(name, np.array([value]))
            writer.put("orientation", 0)
            if scan.probe is not None:
                diameter = _measure_diameter(scan.probe, geometry.compute_far_field_pixel(scan.size) or (1.0, 1.0))
                writer.put("entrancePupilDiameter", np.array([diameter]))


def _orient(tree: Hdf5File, patterns: NDArray[Any], report: InputReport) -> NDArray[Any]:
    """Return the patterns transposed, then flipped, by the code 0 to 7 of the file."""
    if not tree.has("/orientation"):
        return patterns
    code = tree.read_number("/orientation")
    if code not in range(8):
        raise DataError(f"{tree.path}: /orientation is {code}; expected an integer from 0 to 7")
    code = int(code)
    oriented = patterns.swapaxes(1, 2) if code & 4 else patterns
    oriented = oriented[:, ::-1] if code & 2 else oriented
    oriented = oriented[:, :, ::-1] if code & 1 else oriented
    if code:
        words = [word for bit, word in ((4, "transposed"), (2, "rows reversed"), (1, "columns reversed")) if code & bit]
        report.add("orientation", "/orientation", str(code), ", ".join(words))
    return oriented


def _read_positions(tree: Hdf5File, report: InputReport) -> NDArray[np.float64]:
    encoder = tree.read("/encoder", kinds="iuf", ndim=2).astype(np.float64)
    conversion = "columns (row, column)"
    if encoder.shape[0] == 2 < encoder.shape[1]:
        encoder, conversion = encoder.T, "rows (row, column): transposed"
        report.assumptions.append("/encoder has the shape (2, n) of MATLAB: it is transposed, the patterns are not")
    if encoder.shape[1] != 2:
        raise DataError(f"{tree.path}: /encoder has shape {encoder.shape}; expected (n, 2)")
    report.add("positions", "/encoder", "m", conversion)
    return encoder


def _measure_diameter(probe: NDArray[Any], pixel: tuple[float, float]) -> float:
    """Return four standard deviations of the power of the probe, mean of both axes, in the unit of ``pixel``."""
    power = np.square(np.abs(probe), dtype=np.float64).sum(0)
    widths = []
    for axis, side in enumerate(pixel):
        weights = power.sum(1 - axis) / power.sum()
        places = np.arange(len(weights)) * side
        widths.append(4 * np.sqrt(weights @ (places - weights @ places) ** 2))
    return float(np.mean(widths))
