"""Pairs ``*_dp.hdf5`` and ``*_para.hdf5`` of PtychoViT and ptycho-fm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.lattice import RELATIVE_ROUNDING_ERROR
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.container import InputFile, open_input
from ptycho_torch.io.export import compute_photons, make_object_canvas, require_object_pixel, write_hdf5
from ptycho_torch.io.formats.base import ScanWriter
from ptycho_torch.io.formats.fold_slice import list_pair
from ptycho_torch.io.formats.ptychodus_product import (
    compute_centered_origin,
    compute_half_pixel,
    read_object,
    read_probe,
)
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.parts import InputReport, ScanParts

POSITION_NAMES = {"probe_position_y_m", "probe_position_x_m"}


class PtychoVitFormat(ScanWriter):
    """Patterns in ``dp``; probe, object and positions in a second file."""

    name = "ptychovit"
    title = "pair *_dp.hdf5 and *_para.hdf5 of PtychoViT and ptycho-fm"
    writes_pair = True
    omitted_parts = ("mask", "scan_index", "wavelength_m", "distance_m", "detector_pixel_m")

    def matches(self, file: InputFile) -> bool:
        tree = file.hdf5
        if tree is None:
            return False
        if tree.is_dataset("/dp"):
            return any(each.is_file() and _holds_positions(each) for each in list_pair(file.path))
        return _has_parameters(tree)

    def list_partners(self, path: Path) -> Sequence[Path]:
        return list_pair(path)

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        tree, report = file.tree, InputReport(self.name)
        parts: dict[str, Any] = {}
        if tree.has("/dp"):
            parts |= _read_patterns(tree, settings, report)
        if _has_parameters(tree):
            parts |= _read_parameters(file, report)
        if not parts:
            raise DataError(
                f"{file.path}: neither /dp nor /probe_position_x_m is in the file; expected one; change `format`"
            )
        return ScanParts(**parts, report=report)

    def write_scan(self, path: Path, scan: Scan) -> None:
        partners = [each for each in list_pair(path) if each.suffix == path.suffix]
        if not partners:
            raise DataError(f"{path}: expected a name that ends in _dp or _para, such as scan_dp.hdf5")
        of_patterns, of_parameters = (path, partners[0]) if path.stem.endswith("_dp") else (partners[0], path)
        pixel = require_object_pixel(scan.geometry, scan.size, str(path))
        probe, photons = scan.require_probe(), compute_photons(scan)
        if scan.mask is not None:
            photons = np.where(scan.mask, photons, 0).astype(photons.dtype)
        obj, origin = make_object_canvas(scan)
        meters = (scan.positions - origin) * pixel + _compute_origin(obj.shape, scan.size, pixel, (0.0, 0.0))
        sides = {"pixel_height_m": pixel[0], "pixel_width_m": pixel[1]}
        with write_hdf5(of_patterns) as writer:
            writer.put("dp", photons.astype(np.float32))
        with write_hdf5(of_parameters) as writer:
            writer.put("object", obj[None].astype(np.complex64), sides | {"center_x_m": 0.0, "center_y_m": 0.0})
            writer.put("probe", probe[None].astype(np.complex64), sides)
            writer.put("probe_position_x_m", meters[:, 1])
            writer.put("probe_position_y_m", meters[:, 0])


def _holds_positions(path: Path) -> bool:
    with open_input(path) as file:
        return file.hdf5 is not None and _has_parameters(file.hdf5)


def _has_parameters(tree: Hdf5File) -> bool:
    names = set(tree.list_members("/"))
    return not names.isdisjoint(POSITION_NAMES) and not names.isdisjoint({"probe", "object"})


def _read_patterns(tree: Hdf5File, settings: InputSettings, report: InputReport) -> dict[str, Any]:
    """Return the patterns: whole numbers are counts; others are scaled, and their unit is unknown."""
    patterns = tree.read("/dp", kinds="biuf", ndim=3)
    rounding = 2 * RELATIVE_ROUNDING_ERROR * (np.abs(patterns) + 1)
    whole = patterns.dtype.kind in "biu" or bool((np.abs(patterns - np.rint(patterns)) <= rounding).all())
    if whole or settings.measurement is not None or settings.photons_per_unit is not None:
        report.add("patterns", "/dp", "counts")
        return {"patterns": patterns}
    report.add("patterns", "/dp", "scaled counts", "square root")
    report.assumptions.append("/dp holds scaled counts, whose unit is unknown; `photons_per_unit` gives it")
    return {"patterns": np.sqrt(np.maximum(patterns, 0)), "measurement": "amplitude"}


def _read_parameters(file: InputFile, report: InputReport) -> dict[str, Any]:
    """Return probe, object and positions.

    An object without a stored center is left out where patches lie outside it: its place is unknown then.
    """
    tree = file.tree
    probe = read_probe(file, report)
    obj = read_object(file, report)
    columns = [tree.read(f"/probe_position_{axis}_m", kinds="iuf", ndim=1).astype(np.float64) for axis in "yx"]
    if len(columns[0]) != len(columns[1]):
        raise DataError(
            f"{tree.path}: /probe_position_y_m has {len(columns[0])} values and /probe_position_x_m {len(columns[1])}"
        )
    report.add("positions", "/probe_position_y_m, /probe_position_x_m", "m", "from the middle of the object")
    attributes = tree.get_attributes("/object")
    pixel = _read_pair(attributes, "pixel_height_m", "pixel_width_m")
    if pixel is None:
        pixel = _read_pair(tree.get_attributes("/probe"), "pixel_height_m", "pixel_width_m")
    if pixel is None or min(pixel) <= 0:
        raise DataError(f"{tree.path}: /object: pixel_height_m, pixel_width_m are {pixel}; expected positive lengths")
    report.add("object pixel", "/object: pixel_height_m, pixel_width_m", "m")
    center = _read_pair(attributes, "center_y_m", "center_x_m")
    size, shape = probe.shape[-1], obj.shape
    positions = np.stack(columns, 1)
    keeps_object = True
    if center is None:  # Ptychodus omits it, and its middle of an array is (side - 1)/2.
        origin = compute_centered_origin(shape, size, pixel)
        starts = np.rint((positions - origin) / pixel) - size // 2
        inside = ((starts >= 0) & (starts + size <= shape)).all()
        report.assumptions.append(
            "/object has no center: it is at position (0, 0)"
            if inside
            else "/object has no center, and patches about (0, 0) lie outside it: the object is left out"
        )
        keeps_object = bool(inside)
    else:
        origin = _compute_origin(shape, size, pixel, center)
    return {
        "probe": probe,
        "object": obj if keeps_object else None,
        "positions": positions,
        "object_origin": origin if keeps_object else None,
        "geometry": Geometry(object_pixel_m=pixel),
    }


def _compute_origin(
    shape: tuple[int, ...], size: int, pixel: tuple[float, float], center: tuple[float, float]
) -> tuple[float, float]:
    """Return the position of the first pixel of an object: PtychoViT puts its center at round(side/2) + 1/2.

    Args:
        shape: (rows, columns) of the object.
        size: N, side of the probe in pixels, whose center is at (N - 1)/2.
        pixel: sides (y, x) of an object pixel in meters.
        center: position (y, x) of the object's center in meters.
    """
    middle = np.rint(np.array(shape) / 2) + 0.5 + compute_half_pixel(size)
    return center[0] - pixel[0] * float(middle[0]), center[1] - pixel[1] * float(middle[1])


def _read_pair(attributes: dict[str, Any], *names: str) -> tuple[float, float] | None:
    values: list[NDArray[Any] | None] = [attributes.get(name) for name in names]
    numbers = [float(value.reshape(-1)[0]) for value in values if isinstance(value, np.ndarray) and value.size == 1]
    return (numbers[0], numbers[1]) if len(numbers) == 2 and np.isfinite(numbers).all() else None
