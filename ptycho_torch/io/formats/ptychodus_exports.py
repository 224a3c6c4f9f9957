"""Exports of Ptychodus for networks: the training file, and the NPZ file that it writes for PtychoPINN."""

from typing import Any

import numpy as np

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry, compute_photon_wavelength
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.formats.members import list_members, read_bad_pixels, read_member, read_scalar, read_vector
from ptycho_torch.io.formats.ptychodus_product import compute_half_pixel, read_object, read_probe
from ptycho_torch.io.parts import InputReport, ScanParts

HALF_PIXEL_CONVERSION = "plus half a pixel for even N, whose middle is N//2"


class PtychodusTrainingFormat(Format):
    """Training file of Ptychodus: patterns, positions, probe and object of one scan."""

    name = "ptychodus_training"
    title = "Ptychodus training file (.h5)"

    def matches(self, file: InputFile) -> bool:
        return not list_members(file).isdisjoint({"probe_position_x_px", "probe_position_y_px"})

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        report = InputReport(self.name)
        parts = _read_patterns(file, "patterns", report)
        count = len(parts["patterns"])
        parts["probe"] = read_probe(file, report)
        parts["object"] = read_object(file, report)
        names = ("probe_position_y_px", "probe_position_x_px")
        half = compute_half_pixel(parts["probe"].shape[-1])
        parts["positions"] = np.stack([read_vector(file, name, count) for name in names], 1) + half
        report.add("positions", ", ".join(names), "pixel", HALF_PIXEL_CONVERSION)
        return ScanParts(**parts, position_unit="pixel", geometry=_read_geometry(file, report), report=report)


class PtychoPinnFormat(Format):
    """NPZ files of Ptychodus for PtychoPINN, which resemble the package's own but hold counts."""

    name = "ptychopinn"
    title = "Ptychodus export for PtychoPINN (.npz): counts in diff3d, with bad_pixels"

    def matches(self, file: InputFile) -> bool:
        return list_members(file) >= {"diff3d", "bad_pixels", "xcoords", "ycoords"}

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        report = InputReport(self.name)
        names = list_members(file)
        parts = _read_patterns(file, "diff3d", report)
        count, size = len(parts["patterns"]), max(parts["patterns"].shape[1:])
        if "probeGuess" in names:
            parts["probe"] = read_member(file, "probeGuess", kinds="c", ndim=(2, 3))
            report.add("probe", "probeGuess")
        if "objectGuess" in names:
            parts["object"] = read_member(file, "objectGuess", kinds="c", ndim=2)
            report.add("object", "objectGuess")
        half = compute_half_pixel(size)
        parts["positions"] = np.stack([read_vector(file, name, count) for name in ("ycoords", "xcoords")], 1) + half
        report.add("positions", "ycoords, xcoords", "pixel", HALF_PIXEL_CONVERSION)
        if "scan_index" in names:
            parts["scan_index"] = read_vector(file, "scan_index", count).astype(np.int64)
        return ScanParts(**parts, position_unit="pixel", report=report)


def _read_patterns(file: InputFile, name: str, report: InputReport) -> dict[str, Any]:
    """Return patterns and mask; a file without ``bad_pixels`` has no mask."""
    patterns = read_member(file, name, kinds="biuf", ndim=3)
    report.add("patterns", name, "counts")
    if not len(patterns):
        raise DataError(f"{file.path}: {name} has shape {patterns.shape}; expected at least one pattern")
    mask = None
    if "bad_pixels" in list_members(file):
        mask = read_bad_pixels(file, patterns.shape[1:])
        report.add("mask", "bad_pixels", "", "True is bad: inverted")
    return {"patterns": patterns, "mask": None if mask is None or mask.all() else mask}


def _read_geometry(file: InputFile, report: InputReport) -> Geometry:
    names = list_members(file)
    found: dict[str, Any] = {}

    def read_length(name: str) -> float:
        value = read_scalar(file, name)
        if value <= 0:
            raise DataError(f"{file.path}: {name} is {value}; expected a positive number")
        return value

    if "photon_energy_eV" in names:
        found["wavelength_m"] = compute_photon_wavelength(read_length("photon_energy_eV"))
        report.add("wavelength", "photon_energy_eV", "eV", "energy to wavelength")
    if "detector_object_distance_m" in names:
        found["distance_m"] = read_length("detector_object_distance_m")
        report.add("distance", "detector_object_distance_m", "m")
    if names >= {"object_pixel_height_m", "object_pixel_width_m"}:
        found["object_pixel_m"] = (read_length("object_pixel_height_m"), read_length("object_pixel_width_m"))
        report.add("object pixel", "object_pixel_height_m, object_pixel_width_m", "m")
    return Geometry(**found)
