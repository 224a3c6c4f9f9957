"""EMD files of electron microscopy (HDF5): EMD 1.0 as py4DSTEM writes it, its legacy layouts, and Berkeley EMD 0.2."""

from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.formats.calibrated_raster import Calibration, make_raster_parts, read_calibration
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.parts import InputReport, ScanParts

LEGACY_ROOTS = ("/4DSTEM_experiment", "/4DSTEM", "/4D-STEM_data")

MAX_GROUPS = 20
"""Largest number of members of a group that are tested for the attribute of EMD."""

CALIBRATION_NAMES = (
    "R_pixel_size", "R_pixel_units", "Q_pixel_size", "Q_pixel_units", "QR_rotation", "QR_rotation_degrees", "QR_flip",
    "qx0_mean", "qy0_mean", "qx0", "qy0",
)  # fmt: skip


class EmdFormat(Format):
    """EMD files with a four-dimensional array."""

    name = "emd"
    title = "EMD 1.0 of py4DSTEM, its legacy layouts, and Berkeley EMD 0.2 (HDF5)"

    def matches(self, file: InputFile) -> bool:
        tree = file.hdf5
        if tree is None:
            return False
        if "emd_group_type" in tree.get_attributes() or tree.find(*LEGACY_ROOTS):
            return True
        groups = tree.list_groups()[:MAX_GROUPS]
        groups += [child for group in groups for child in tree.list_groups(group)[:MAX_GROUPS]]
        return any("emd_group_type" in tree.get_attributes(each) for each in groups)

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        tree, report = file.tree, InputReport(self.name)
        path = _find_data(tree, settings.diffraction_key)
        patterns = tree.read(path, kinds="iuf", ndim=4)
        report.add("patterns", path, "counts", "axes (scan rows, scan columns, ky, kx)")
        calibration = _read_calibration(tree, path)
        return make_raster_parts(patterns, patterns.shape[:2], calibration, None, settings, report)


def _find_data(tree: Hdf5File, key: str | None) -> str:
    """Return the path of the scan: the only dataset of four axes, or the setting ``diffraction_key``."""
    if key is not None:
        return "/" + key.lstrip("/")
    found = [path for path in tree.walk_datasets() if len(tree.get_shape(path)) == 4]
    cubes = [
        path for path in found if tree.get_text_attribute(str(PurePosixPath(path).parent), "python_class") == "DataCube"
    ]
    candidates = cubes or [path for path in found if path.endswith("/data")] or found
    if len(candidates) != 1:
        names = ", ".join(candidates) or "none"
        raise DataError(
            f"{tree.path}: datasets of four axes: {names}; expected one, (scan rows, scan columns, ky, kx); set "
            "`diffraction_key`"
        )
    return candidates[0]


def _read_calibration(tree: Hdf5File, path: str) -> Calibration:
    """Return the calibration of the scan at ``path``, otherwise the steps of its axes."""
    root = "/" + path.split("/")[1]
    for group in (f"{root}/metadatabundle/calibration", f"{root}/metadata/calibration"):
        values: dict[str, Any] = dict(tree.get_attributes(group))
        for name in CALIBRATION_NAMES:
            place = f"{group}/{name}"
            if tree.is_dataset(place):
                text = tree.get_dtype(place).kind in "OSU"
                values[name] = tree.read_text(place) if text else tree.read(place)
        calibration = read_calibration(values, group)
        if calibration is not None:
            return calibration
    return _read_axes(tree, str(PurePosixPath(path).parent))


def _read_axes(tree: Hdf5File, group: str) -> Calibration:
    """Return the steps of the axes of an array, from the datasets ``dim0`` to ``dim3`` or ``dim1`` to ``dim4``."""
    first = 1 if tree.has(f"{group}/dim4") and not tree.has(f"{group}/dim0") else 0
    steps: list[float | None] = []
    units: list[str | None] = []
    for axis in range(4):
        path = f"{group}/dim{axis + first}"
        values = tree.read(path, kinds="iuf").reshape(-1)[:2].astype(np.float64) if tree.has(path) else np.zeros(0)
        steps.append(float(abs(values[1] - values[0])) if len(values) == 2 else None)
        text = tree.get_text_attribute(path, "units")
        units.append(None if text is None else text.strip("[] ").replace("_", ""))
    rows, columns = steps[:2]
    scan_step = (rows, columns) if rows and columns else None
    return Calibration(f"{group}/dim{first}–dim{first + 3}", scan_step, units[0], steps[2], units[2])
