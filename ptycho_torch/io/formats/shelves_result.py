"""Results of PtychoShelves (cSAXS) and fold_slice: ``.mat`` of version 5 or 7.3, and ``.h5``."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.formats.layers import flatten_layers
from ptycho_torch.io.formats.lengths import guess_length, guess_radiation
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.mat import Mat73File, MatFile, open_mat
from ptycho_torch.io.parts import InputReport, ScanParts

MAX_OBJECT_PIXEL_M = 1e-4
MAX_WAVELENGTH_M = 1e-6
"""Largest lengths in meters; larger numbers are in ångströms."""

H5_ROOT = "/reconstruction"


class _Arrays(NamedTuple):
    """Arrays of a result in the axis order of the package."""

    object: NDArray[Any]
    """(rows, columns) or (layers, rows, columns)."""

    probe: NDArray[Any]
    """(modes, N, N)."""


class ShelvesResultFormat(Format):
    """Object, probe and positions; no patterns."""

    name = "ptychoshelves"
    title = "result of PtychoShelves or fold_slice (.mat of version 5 or 7.3, .h5), without patterns"

    def matches(self, file: InputFile) -> bool:
        if file.hdf5 is not None and file.hdf5.is_group(f"{H5_ROOT}/p"):
            return True
        mat = open_mat(file)
        if mat is None or not (mat.has("object") and mat.has("probe")):
            return False
        if isinstance(mat, Mat73File):
            return any(mat.tree.is_group(path) for path in ("/p", "/outputs"))
        return mat.has("p") or mat.has("outputs")

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        report = InputReport(self.name)
        if file.hdf5 is not None and file.hdf5.is_group(f"{H5_ROOT}/p"):
            return _read_h5(file.hdf5, report)
        mat = open_mat(file)
        if mat is None:
            raise DataError(f"{file.path}: this is a file of the kind {file.kind}; expected a MATLAB file")
        return _read_mat(mat, report)


def _read_mat(mat: MatFile, report: InputReport) -> ScanParts:
    """Read ``object``, ``probe``, ``outputs`` and ``p`` of a MATLAB file."""
    obj, probe = mat.read("object", "fc"), mat.read("probe", "fc")
    if obj.ndim not in (2, 3) or probe.ndim not in (2, 3, 4):
        raise DataError(
            f"{mat.path}: object has shape {obj.shape} and probe {probe.shape}; expected (rows, columns[, layers]) and "
            "(N, N[, modes[, variations]])"
        )
    if probe.ndim == 4:
        if probe.shape[3] > 1:
            report.assumptions.append(f"probe: the first of {probe.shape[3]} variations of the probe is used")
        probe = probe[..., 0]
    arrays = _Arrays(
        np.moveaxis(obj, 2, 0) if obj.ndim == 3 else obj, np.moveaxis(probe, 2, 0) if probe.ndim == 3 else probe[None]
    )
    size = arrays.probe.shape[-1]
    if mat.has("outputs.probe_positions"):
        pairs = _check_positions(mat.read("outputs.probe_positions", "biuf"), mat.path, "outputs.probe_positions")
        # Corners counted from 1 are (y, x) + ceil(object/2 − probe/2).
        sides = np.array(arrays.object.shape[-2:])
        offset = np.ceil(sides / 2 - size / 2) - 1 + size // 2
        positions = pairs[:, ::-1] + offset
        text = f"(x, y) about the center of the object, + ({offset[0]:g}, {offset[1]:g})"
        report.add("positions", "outputs.probe_positions", "pixel", text)
    elif mat.has("p.positions"):
        positions = _check_positions(mat.read("p.positions", "biuf"), mat.path, "p.positions") + size // 2
        report.add("positions", "p.positions", "pixel", f"(row, column) of the first pixel + {size // 2}")
    else:
        raise DataError(f"{mat.path}: neither outputs.probe_positions nor p.positions is in the file; expected one")
    numbers = {
        "lambda": mat.find_number("p.lambda"),
        "z": mat.find_number("p.z"),
        "ds": mat.find_number("p.ds"),
    }
    pixel = mat.read("p.dx_spec", "biuf").astype(np.float64).reshape(-1) if mat.has("p.dx_spec") else np.zeros(0)
    return _make_parts(arrays, positions, _make_geometry(numbers, pixel, "p.", report), ("object", "probe"), report)


def _read_h5(tree: Hdf5File, report: InputReport) -> ScanParts:
    """Read ``/reconstruction`` of an HDF5 file, whose arrays have rows before columns."""
    paths = (
        tree.find(f"{H5_ROOT}/object", f"{H5_ROOT}/p/objects/object_0") or f"{H5_ROOT}/object",
        tree.find(f"{H5_ROOT}/probes", f"{H5_ROOT}/p/probes/probe_0") or f"{H5_ROOT}/probes",
    )
    obj = tree.read(paths[0], kinds="fc", ndim=(2, 3, 4))
    probe = tree.read(paths[1], kinds="fc", ndim=(2, 3, 4))
    if obj.ndim == 4:
        report.assumptions.append(f"{paths[0]}: the first of {obj.shape[0]} objects is used")
        obj = obj[0]
    if probe.ndim == 4:
        if probe.shape[0] > 1:
            report.assumptions.append(f"{paths[1]}: the first of {probe.shape[0]} variations of the probe is used")
        probe = probe[0]
    place = f"{H5_ROOT}/p/positions"
    positions = _check_positions(tree.read(place, kinds="biuf", ndim=2), tree.path, place) + probe.shape[-1] // 2
    report.add("positions", place, "pixel", f"(row, column) of the first pixel + {probe.shape[-1] // 2}")
    numbers: dict[str, float | None] = {}
    for name in ("lambda", "z", "ds"):
        path = f"{H5_ROOT}/p/{name}"
        numbers[name] = tree.read_mean(path) if tree.has(path) else None
    path = f"{H5_ROOT}/p/dx_spec"
    pixel = tree.read(path, kinds="iuf").astype(np.float64).reshape(-1) if tree.has(path) else np.zeros(0)
    geometry = _make_geometry(numbers, pixel, f"{H5_ROOT}/p/", report)
    return _make_parts(_Arrays(obj, probe if probe.ndim == 3 else probe[None]), positions, geometry, paths, report)


def _check_positions(values: NDArray[Any], path: Any, name: str) -> NDArray[np.float64]:
    if values.ndim != 2 or values.shape[1] != 2:
        raise DataError(f"{path}: {name} has shape {values.shape}; expected (n, 2)")
    return values.astype(np.float64)


def _make_geometry(
    numbers: dict[str, float | None], pixel: NDArray[np.float64], prefix: str, report: InputReport
) -> Geometry:
    """Return the geometry of wavelength ``lambda``, distance ``z``, detector pixel ``ds`` and object pixel."""
    sides = [
        guess_length(float(side), MAX_OBJECT_PIXEL_M, "object pixel", f"{prefix}dx_spec", report) for side in pixel[:2]
    ]
    sides = sides * 2 if len(sides) == 1 else sides
    value = numbers["lambda"]
    wavelength = (
        None if value is None else guess_length(value, MAX_WAVELENGTH_M, "wavelength", f"{prefix}lambda", report)
    )
    electrons = guess_radiation(wavelength) == "electron"
    known: dict[str, float | None] = {}
    for name, label in (("z", "distance"), ("ds", "detector pixel")):
        number = numbers[name]
        # The distance and the pixel of electron data are not those of the experiment.
        usable = number is not None and 0 < number < math.inf and not electrons
        known[name] = number if usable else None
        if usable:
            report.add(label, f"{prefix}{name}", "m")
    step = known["ds"]
    return Geometry(
        wavelength_m=wavelength,
        distance_m=known["z"],
        detector_pixel_m=None if step is None else (step, step),
        object_pixel_m=(sides[0], sides[1]) if len(sides) == 2 and sides[0] and sides[1] else None,
        radiation="electron" if electrons else "photon",
    )


def _make_parts(
    arrays: _Arrays, positions: NDArray[np.float64], geometry: Geometry, paths: tuple[str, str], report: InputReport
) -> ScanParts:
    report.add("object", paths[0])
    report.add("probe", paths[1])
    report.missing.append("patterns: set `patterns_file`")
    obj = flatten_layers(arrays.object, paths[0], report)
    return ScanParts(
        positions=positions,
        position_unit="pixel",
        probe=arrays.probe.astype(np.result_type(arrays.probe, np.complex64)),
        object=obj.astype(np.result_type(obj, np.complex64)),
        object_origin=(0.0, 0.0),
        geometry=geometry,
        report=report,
    )
