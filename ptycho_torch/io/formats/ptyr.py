"""Results of ptypy (``.ptyr``) and its dumps: probe, object and positions in storages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry, compute_photon_wavelength
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.export import (
    Hdf5Writer,
    put_result_origin,
    read_result_origin,
    require_object_pixel,
    write_hdf5,
)
from ptycho_torch.io.formats.base import ResultWriter
from ptycho_torch.io.formats.ptyd import EV_PER_KEV, has_value, put_typed
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.parts import InputReport, ScanParts

STORAGE = "Sscan_00G00"
"""Name of the storages of a written result."""


class PtyrFormat(ResultWriter):
    """Results of ptypy."""

    name = "ptyr"
    title = "ptypy result (.ptyr)"
    result_suffixes = (".ptyr",)

    def matches(self, file: InputFile) -> bool:
        tree = file.hdf5
        return tree is not None and (tree.is_group("/content/probe") or tree.is_group("/content/obj"))

    def list_partners(self, path: Path) -> Sequence[Path]:
        return (path.with_suffix(".ptyd"),)

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        tree, report = file.tree, InputReport(self.name)
        probe_path = _choose_storage(tree, "/content/probe", report)
        object_path = _choose_storage(tree, "/content/obj", report)
        if probe_path is None and object_path is None:
            raise DataError(f"{file.path}: /content/probe and /content/obj are empty; expected storages of a result")
        parts: dict[str, Any] = {}
        if probe_path is not None:
            parts["probe"] = tree.read(f"{probe_path}/data", kinds="c", ndim=(2, 3))
            report.add("probe", f"{probe_path}/data")
        if object_path is not None:
            parts |= _read_object(tree, object_path, report)
            parts |= _read_positions(tree, object_path, report)
        return ScanParts(
            **parts,
            geometry=_read_geometry(tree, object_path, probe_path, report),
            metadata=read_result_origin(tree),
            report=report,
        )

    def write_result(self, path: Path, result: Reconstruction) -> None:
        pixel = np.asarray(require_object_pixel(result.geometry, result.probe.shape[-1], str(path)))
        energy = None if result.geometry is None else result.geometry.energy_ev
        size = result.probe.shape[-1]
        origin = np.asarray(result.origin_yx, np.float64)
        with write_hdf5(path) as writer:
            for group in ("/header", "/content", "/content/probe", "/content/obj", "/content/positions"):
                writer.set_attributes(group, type="param" if group == "/content" else "dict")
            put_typed(writer, "/header/kind", "minimal")
            put_typed(writer, "/header/description", "Ptypy .h5 compatible storage format")
            _write_storage(writer, "/content/probe", result.probe, pixel, np.full(2, float(size // 2)), energy)
            _write_storage(writer, "/content/obj", result.object[None], pixel, -origin, energy)
            put_typed(writer, f"/content/positions/{STORAGE}", result.positions * pixel)
            put_result_origin(writer, result)


def _write_storage(
    writer: Hdf5Writer,
    group: str,
    data: NDArray[Any],
    pixel: NDArray[np.float64],
    center: NDArray[np.float64],
    energy_ev: float | None,
) -> None:
    path = f"{group}/{STORAGE}"
    writer.set_attributes(path, type="dict")
    put_typed(writer, f"{path}/ID", STORAGE)
    put_typed(writer, f"{path}/data", data.astype(np.complex64))
    put_typed(writer, f"{path}/shape", np.array(data.shape), "arraytuple")
    put_typed(writer, f"{path}/layermap", np.arange(len(data)), "arraylist")
    put_typed(writer, f"{path}/nlayers", len(data))
    put_typed(writer, f"{path}/_psize", pixel)
    put_typed(writer, f"{path}/_center", center)
    put_typed(writer, f"{path}/_origin", -center * pixel)
    if energy_ev is not None:
        put_typed(writer, f"{path}/_energy", energy_ev / EV_PER_KEV)


def _choose_storage(tree: Hdf5File, group: str, report: InputReport) -> str | None:
    """Return the path of the first storage of a group with data; None if there is none."""
    names = [name for name in tree.list_members(group) if tree.is_dataset(f"{group}/{name}/data")]
    if not names:
        return None
    if len(names) > 1:
        report.assumptions.append(f"{group}: {names[0]} is read of the storages {', '.join(names)}")
    return f"{group}/{names[0]}"


def _read_object(tree: Hdf5File, path: str, report: InputReport) -> dict[str, Any]:
    obj = tree.read(f"{path}/data", kinds="c", ndim=(2, 3))
    if obj.ndim == 3:
        if len(obj) != 1:
            report.assumptions.append(f"{path}/data: the first of {len(obj)} object modes is read")
        if not len(obj):
            raise DataError(f"{tree.path}: {path}/data has shape {obj.shape}; expected (modes, rows, columns)")
        obj = obj[0]
    report.add("object", f"{path}/data")
    origin = None
    if has_value(tree, f"{path}/_origin"):
        origin = _read_pair(tree, f"{path}/_origin")
    elif has_value(tree, f"{path}/_center") and has_value(tree, f"{path}/_psize"):
        center, pixel = _read_pair(tree, f"{path}/_center"), _read_pair(tree, f"{path}/_psize")
        origin = (-center[0] * pixel[0], -center[1] * pixel[1])
    else:
        report.assumptions.append(f"{path}: no _origin; the first pixel of the object is at position (0, 0)")
    return {"object": obj, "object_origin": origin}


def _read_positions(tree: Hdf5File, object_path: str, report: InputReport) -> dict[str, Any]:
    names = tree.list_members("/content/positions")
    storage = object_path.rpartition("/")[2]
    name = storage if storage in names else names[0] if len(names) == 1 else None
    if name is None:
        report.missing.append("positions: set `positions_file`")
        return {}
    path = f"/content/positions/{name}"
    positions = tree.read(path, kinds="iuf", ndim=2).astype(np.float64)
    if positions.shape[1] != 2:
        raise DataError(f"{tree.path}: {path} has shape {positions.shape}; expected (n, 2)")
    report.add("positions", path, "m", "minus _origin, divided by _psize")
    return {"positions": positions, "position_unit": "meter"}


def _read_geometry(tree: Hdf5File, object_path: str | None, probe_path: str | None, report: InputReport) -> Geometry:
    storages = [path for path in (object_path, probe_path) if path is not None]
    found: dict[str, Any] = {}
    pixel = next((f"{path}/_psize" for path in storages if has_value(tree, f"{path}/_psize")), None)
    if pixel is not None:
        found["object_pixel_m"] = _read_pair(tree, pixel)
        report.add("object pixel", pixel, "m", "(row, column)")
    # The energy of an object storage is a default of 1 keV in some versions; that of the probe is the scan's.
    energy = next((f"{path}/_energy" for path in storages[::-1] if has_value(tree, f"{path}/_energy")), None)
    if energy is not None:
        found["wavelength_m"] = compute_photon_wavelength(tree.read_positive(energy) * EV_PER_KEV)
        report.add("wavelength", energy, "keV", "energy to wavelength")
    return Geometry(**found)


def _read_pair(tree: Hdf5File, path: str) -> tuple[float, float]:
    """Read two finite numbers (row, column); one number counts for both."""
    values = tree.read(path, kinds="iuf").reshape(-1).astype(np.float64)
    if values.size not in (1, 2) or not np.isfinite(values).all():
        raise DataError(f"{tree.path}: {path} is {values}; expected two finite numbers (row, column)")
    return float(values[0]), float(values[-1])
