"""Data sets of ptydy (HDF5): a four-dimensional scan with its calibration."""

from dataclasses import replace
from typing import Any

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import compute_electron_wavelength
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.formats.calibrated_raster import Calibration, make_raster_parts, read_calibration
from ptycho_torch.io.formats.lengths import parse_number
from ptycho_torch.io.parts import InputReport, ScanParts

CALIBRATION_PATH = "/ptydy/calibration"


class PtydyFormat(Format):
    """Data sets of ptydy."""

    name = "ptydy"
    title = "data set of ptydy (HDF5)"

    def matches(self, file: InputFile) -> bool:
        return file.hdf5 is not None and "ptydy_format" in file.hdf5.get_attributes()

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        tree, report = file.tree, InputReport(self.name)
        named = tree.get_text_attribute("/", "dataset") or "/dataset"
        path = "/" + named.lstrip("/")
        patterns = tree.read(path, kinds="iuf", ndim=(3, 4))
        shape: tuple[int, ...] | None = patterns.shape[:2]
        if patterns.ndim == 3:
            stored = tree.get_attributes(path).get("scan_shape")
            shape = None if stored is None or isinstance(stored, str) else tuple(int(side) for side in stored)
            if shape is not None and (len(shape) != 2 or shape[0] * shape[1] != len(patterns)):
                raise DataError(
                    f"{file.path}: the attribute scan_shape of {path} is {shape} for {len(patterns)} patterns; "
                    "expected rows and columns of the scan"
                )
        report.add("patterns", path, "counts")
        attributes: dict[str, Any] = tree.get_attributes(CALIBRATION_PATH)
        calibration = read_calibration(attributes, CALIBRATION_PATH) or Calibration(CALIBRATION_PATH)
        # ptydy counts the angle from the column axis to the row axis.
        calibration = replace(calibration, rotation=-calibration.rotation)
        voltage = parse_number(attributes.get("voltage"))
        wavelength = None
        if voltage is not None and voltage > 0:
            wavelength = compute_electron_wavelength(voltage)
            report.add("wavelength", f"{CALIBRATION_PATH} voltage", "V")
        return make_raster_parts(patterns, shape, calibration, wavelength, settings, report)
