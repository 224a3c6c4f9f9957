"""HDF5 files of beamlines, each by a table of paths."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.base import Measurement
from ptycho_torch.config.input import InputSettings, PositionUnit
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.formats.cxi_layout import read_center, read_length, read_patterns, read_wavelength
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.parts import InputReport, ScanParts

ATTRIBUTES = "/entry/instrument/NDAttributes"


@dataclass(frozen=True, kw_only=True)
class Beamline:
    """The paths of a beamline's file, with the unit of each number that has no attribute ``units``."""

    name: str
    patterns: tuple[str, ...]
    signature: tuple[str, ...] = ()
    """Paths that exist besides one of ``patterns``; two or more decide without patterns."""

    measurement: Measurement = "counts"
    distance: tuple[str, str] = ("", "m")
    energy: tuple[str, str] = ("", "eV")
    wavelength: tuple[str, str] = ("", "m")
    pixel: tuple[str, str, str] = ("", "", "m")
    """Paths of the row and column sides, and their unit."""

    center: tuple[str, ...] = ()
    numbers: str = ""
    pair: str = ""
    """Path of positions (x, y), (2, n) or (n, 2)."""

    separate: tuple[str, str] = ("", "")
    """Paths of the row and column coordinates."""

    unit: PositionUnit = "meter"
    intensities: str = ""


BEAMLINES = (
    Beamline(
        name="NSLS-II HXN",
        patterns=("/diffamp",),
        signature=("/lambda_nm", "/ccd_pixel_um"),
        measurement="amplitude",
        distance=("/z_m", "m"),
        wavelength=("/lambda_nm", "nm"),
        pixel=("/ccd_pixel_um", "/ccd_pixel_um", "um"),
        pair="/points",
        unit="micrometer",
    ),
    Beamline(
        name="NSLS-II",
        patterns=("/diff_data/merlin1/det_images", "/entry/data/data"),
        signature=("/scan/scan_positions",),
        energy=("/scan/energy", "keV"),
        pair="/scan/scan_positions",
        unit="micrometer",
    ),
    Beamline(
        name="LCLS XPP",
        patterns=("/jungfrau1M/image_img",),
        separate=("/lmc/ch04", "/lmc/ch03"),
        unit="micrometer",
        intensities="/ipm2/sum",
    ),
    Beamline(
        name="MAX IV NanoMAX",
        patterns=(
            "/entry/measurement/eiger1m/frames",
            "/entry/instrument/Eiger/data",
            "/entry/measurement/Eiger/data",
        ),
        separate=("/entry/measurement/pseudo/y", "/entry/measurement/pseudo/x"),
        unit="micrometer",
    ),
    Beamline(
        name="PSI cSAXS",
        patterns=("/entry/data/data",),
        signature=("/entry/instrument/monochromator",),
        distance=("/entry/instrument/monochromator/distance", "mm"),
        energy=("/entry/instrument/monochromator/energy", "keV"),
        pixel=("/entry/instrument/eiger_4/y_pixel_size", "/entry/instrument/eiger_4/x_pixel_size", "um"),
    ),
    Beamline(
        name="APS 4-ID POLAR",
        patterns=("/entry/externals/eiger", "/entry/data/data"),
        signature=(f"{ATTRIBUTES}/DetectorDistance",),
        distance=(f"{ATTRIBUTES}/DetectorDistance", "m"),
        energy=("/entry/instrument/bluesky/streams/baseline/mono_energy/value_start", "keV"),
        center=(f"{ATTRIBUTES}/BeamCenterY", f"{ATTRIBUTES}/BeamCenterX"),
        numbers=f"{ATTRIBUTES}/NDArrayUniqueId",
    ),
    Beamline(
        name="APS 19-ID ISN",
        patterns=("/entry/data/data",),
        signature=("/entry/data/X_Position", "/entry/data/Y_Position"),
        wavelength=(f"{ATTRIBUTES}/Wavelength", "angstrom"),
        separate=("/entry/data/Y_Position", "/entry/data/X_Position"),
        unit="micrometer",
    ),
    Beamline(
        name="APS 12-ID",
        patterns=("/entry/data/data",),
        signature=(f"{ATTRIBUTES}/monoE",),
        energy=(f"{ATTRIBUTES}/monoE", "keV"),
        pair="/positions",
    ),
    Beamline(name="APS 12-ID", patterns=("/dp",), signature=("/positions",), pair="/positions"),
    Beamline(name="APS exchange", patterns=("/exchange/data",), pair="/exchange/motor_pos", unit="micrometer"),
    Beamline(name="area detector", patterns=("/entry/data/data",), numbers=f"{ATTRIBUTES}/NDArrayUniqueId"),
)
"""Beamlines from the most to the least specific paths."""


class BeamlineFormat(Format):
    """Files of beamlines."""

    name = "beamline"
    title = "HDF5 of beamlines: " + ", ".join(dict.fromkeys(each.name for each in BEAMLINES))

    def matches(self, file: InputFile) -> bool:
        return file.hdf5 is not None and _find_beamline(file.hdf5) is not None

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        beamline = _find_beamline(file.tree)
        if beamline is None:
            raise DataError(f"{file.path}: the paths are of none of {', '.join(each.name for each in BEAMLINES)}")
        return _read_beamline(file.tree, beamline, settings)


def _find_beamline(tree: Hdf5File) -> Beamline | None:
    for each in BEAMLINES:
        if not all(map(tree.has, each.signature)):
            continue
        if len(each.signature) > 1 or tree.find(*each.patterns) is not None:
            return each
    return None


def _read_beamline(tree: Hdf5File, beamline: Beamline, settings: InputSettings) -> ScanParts:
    report = InputReport(BeamlineFormat.name)
    report.assumptions.append(f"the paths are those of {beamline.name}; units without attribute are of this beamline")
    parts: dict[str, Any] = read_patterns(tree, beamline.patterns, report)
    if beamline.measurement == "amplitude":
        report.assumptions.append("the patterns are amplitudes by their name; set `measurement` to counts otherwise")
    if beamline.numbers and tree.has(beamline.numbers):
        numbers = tree.read(beamline.numbers, kinds="biuf", ndim=1).astype(np.int64)
        parts["pattern_numbers"] = numbers - numbers.min() if len(numbers) else numbers
    center = read_center(tree, beamline.center, report)
    if center is not None:
        parts["center"] = center
    if beamline.intensities and tree.has(beamline.intensities):
        parts["intensities"] = tree.read(beamline.intensities, kinds="iuf", ndim=1).astype(np.float64)
        report.add("intensities", beamline.intensities)
    parts["positions"] = _read_positions(tree, beamline, report)
    sides = [
        read_length(tree, (path,), "detector pixel", report, beamline.pixel[2]) for path in beamline.pixel[:2] if path
    ]
    y, x = sides if len(sides) == 2 else (None, None)
    return ScanParts(
        **parts,
        measurement=beamline.measurement,
        position_unit=beamline.unit,
        geometry=Geometry(
            wavelength_m=_read_wavelength(tree, beamline, settings, report),
            distance_m=None
            if not beamline.distance[0]
            else read_length(tree, beamline.distance[:1], "distance", report, beamline.distance[1]),
            detector_pixel_m=None if y is None or x is None else (y, x),
        ),
        report=report,
    )


def _read_wavelength(tree: Hdf5File, beamline: Beamline, settings: InputSettings, report: InputReport) -> float | None:
    if settings.wavelength or settings.energy_ev or settings.voltage_kv:
        return None
    if beamline.wavelength[0]:
        return read_length(tree, beamline.wavelength[:1], "wavelength", report, beamline.wavelength[1])
    if beamline.energy[0]:
        return read_wavelength(tree, settings, "", beamline.energy[:1], report, beamline.energy[1])
    return None


def _read_positions(tree: Hdf5File, beamline: Beamline, report: InputReport) -> NDArray[np.float64] | None:
    """Return the positions (n, 2) (row, column) in the unit of the beamline; None if the file has none."""
    if beamline.pair and tree.has(beamline.pair):
        pair = tree.read(beamline.pair, kinds="iuf", ndim=2).astype(np.float64)
        pair = pair.T if pair.shape[0] == 2 and pair.shape[1] != 2 else pair
        if pair.shape[1] != 2:
            raise DataError(f"{tree.path}: {beamline.pair} has shape {pair.shape}; expected (2, n) or (n, 2)")
        report.add("positions", beamline.pair, beamline.unit, "(x, y) to (row, column)")
        return pair[:, ::-1]
    if all(beamline.separate) and all(map(tree.has, beamline.separate)):
        columns = [
            tree.read(path, kinds="iuf", ndim=(1, 2)).astype(np.float64).reshape(-1) for path in beamline.separate
        ]
        if len(columns[0]) != len(columns[1]):
            raise DataError(
                f"{tree.path}: {beamline.separate[0]} has {len(columns[0])} values and {beamline.separate[1]} "
                f"{len(columns[1])}; expected equal numbers"
            )
        report.add("positions", ", ".join(beamline.separate), beamline.unit, "probe on the object, sign assumed")
        return np.stack(columns, 1)
    paths = beamline.pair or " and ".join(filter(None, beamline.separate)) or "none of its own"
    report.missing.append(f"positions: expected at {paths}; set `positions_file`, which may be a table")
    return None
