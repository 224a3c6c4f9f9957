"""Scan files of xptycho: frames and positions in ``scan``, object and probe in ``sample``."""

from typing import Any

import numpy as np

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.parts import InputReport, ScanParts
from ptycho_torch.io.units import UNIT_FACTORS


class XptychoFormat(Format):
    """Scans and results of xptycho."""

    name = "xptycho"
    title = "xptycho scan file (HDF5)"

    def matches(self, file: InputFile) -> bool:
        tree = file.hdf5
        if tree is None:
            return False
        return tree.has("/scan/frames") or (tree.is_dataset("/sample/object") and tree.is_dataset("/sample/probe"))

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        tree, report = file.tree, InputReport(self.name)
        parts: dict[str, Any] = {}
        if tree.is_group("/scan"):
            parts |= _read_scan(tree, report)
        pixel = None
        if tree.is_group("/sample"):
            parts |= _read_sample(tree, report)
            pixel = _find_length(tree, "/sample", "pixel_pitch")
        if not parts:
            raise DataError(f"{file.path}: neither /scan nor /sample is in the file; expected one of them")
        detector = _find_length(tree, "/scan", "det_pixel_pitch")
        for path, field in (
            ("wavelength", "wavelength"), ("det_distance", "distance"), ("det_pixel_pitch", "detector pixel")
        ):  # fmt: skip
            if _find_length(tree, "/scan", path) is not None:
                report.add(field, f"/scan: {path}", "m")
        geometry = Geometry(
            wavelength_m=_find_length(tree, "/scan", "wavelength"),
            distance_m=_find_length(tree, "/scan", "det_distance"),
            detector_pixel_m=None if detector is None else (detector, detector),
            object_pixel_m=None if pixel is None else (pixel, pixel),
        )
        return ScanParts(**parts, geometry=geometry, report=report)


def _read_scan(tree: Hdf5File, report: InputReport) -> dict[str, Any]:
    parts: dict[str, Any] = {"patterns": tree.read("/scan/frames", kinds="biuf", ndim=3)}
    report.add("patterns", "/scan/frames", "counts")
    positions = tree.read("/scan/probe_positions", kinds="iuf", ndim=2).astype(np.float64)
    if positions.shape[1] != 2:
        raise DataError(f"{tree.path}: /scan/probe_positions has shape {positions.shape}; expected (n, 2)")
    order = (tree.get_text_attribute("/scan/probe_positions", "order") or "row, column").replace(" ", "")
    if order not in ("row,column", "column,row"):
        raise DataError(f"{tree.path}: /scan/probe_positions has the order {order!r}; expected row, column")
    unit = tree.get_unit("/scan/probe_positions", "m")
    parts["positions"] = positions[:, :: 1 if order == "row,column" else -1] * UNIT_FACTORS[unit.lower()]
    report.add("positions", "/scan/probe_positions", unit, f"columns ({order})")
    return parts


def _read_sample(tree: Hdf5File, report: InputReport) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    if tree.has("/sample/probe"):
        parts["probe"] = tree.read("/sample/probe", kinds="c", ndim=(2, 3))
        report.add("probe", "/sample/probe")
    if tree.has("/sample/object"):
        parts["object"] = tree.read("/sample/object", kinds="c", ndim=2)
        report.add("object", "/sample/object")
        origin = tree.get_attributes("/sample").get("origin")
        if isinstance(origin, np.ndarray) and origin.shape == (2,) and np.isfinite(origin).all():
            parts["object_origin"] = (float(origin[0]), float(origin[1]))
        else:
            report.assumptions.append("/sample: no origin; the first pixel of the object is at position (0, 0)")
    return parts


def _find_length(tree: Hdf5File, group: str, name: str) -> float | None:
    """Return a positive number of the attributes of a group; None if it is missing.

    Raises:
        DataError: the attribute is no positive finite number.
    """
    value = tree.get_attributes(group).get(name)
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.size != 1 or not np.isfinite(value).all() or value.min() <= 0:
        raise DataError(f"{tree.path}: {group}: {name} is {value!r}; expected a positive length in meters")
    return float(value.reshape(-1)[0])
