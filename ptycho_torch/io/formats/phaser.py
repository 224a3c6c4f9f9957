"""States of phaser (HDF5, versions 0.1 and 0.2): object, probe and positions, without patterns."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.formats.layers import flatten_layers
from ptycho_torch.io.formats.lengths import ANGSTROM_M
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.parts import InputReport, ScanParts

NEWEST_VERSION = (0, 2)


class PhaserFormat(Format):
    """Results of phaser."""

    name = "phaser"
    title = "state of phaser (HDF5), a result without patterns"

    def matches(self, file: InputFile) -> bool:
        tree = file.hdf5
        return tree is not None and tree.is_dataset("/type") and _read_type(tree) == "phaser_state"

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        tree, report = file.tree, InputReport(self.name)
        version = _check_version(tree)
        positions_path = "/scan/data" if tree.is_group("/scan") else "/scan"
        positions = tree.read(positions_path, kinds="iuf").astype(np.float64)
        if positions.ndim < 2 or positions.shape[-1] != 2:
            raise DataError(f"{file.path}: {positions_path} has shape {positions.shape}; expected (…, 2)")
        report.add("positions", positions_path, "Å", "(y, x)")
        probe = tree.read("/probe/data", kinds="c", ndim=(2, 3))
        report.add("probe", "/probe/data")
        pixel = _read_pair(tree, "/probe/sampling")
        report.add("object pixel", "/probe/sampling", "Å")
        parts: dict[str, Any] = {}
        if tree.has("/object/data"):
            parts = _read_object(tree, probe.shape[-1], pixel, report)
        report.missing.append("patterns: set `patterns_file`, and `measurement`")
        wavelength = tree.read_number("/wavelength") * ANGSTROM_M
        report.add("wavelength", "/wavelength", "Å")
        return ScanParts(
            **parts,
            positions=positions.reshape(-1, 2),
            position_unit="angstrom",
            probe=probe,
            geometry=Geometry(
                wavelength_m=wavelength,
                object_pixel_m=(float(pixel[0]) * ANGSTROM_M, float(pixel[1]) * ANGSTROM_M),
                radiation="electron",
            ),
            metadata={"phaser_version": version},
            report=report,
        )


def _read_type(tree: Hdf5File) -> str:
    return tree.read_text("/type") if tree.get_dtype("/type").kind in "OSU" else ""


def _check_version(tree: Hdf5File) -> str:
    version = tree.read_text("/version") if tree.has("/version") else "0.1"
    try:
        numbers = tuple(int(part) for part in version.split("."))
    except ValueError as error:
        raise DataError(f"{tree.path}: /version is {version!r}; expected 0.1 or 0.2") from error
    if numbers[:2] > NEWEST_VERSION:
        raise DataError(
            f"{tree.path}: /version is {version}; expected at most 0.2; write the state with an earlier version"
        )
    return version


def _read_pair(tree: Hdf5File, path: str) -> NDArray[np.float64]:
    values = tree.read(path, kinds="iuf").astype(np.float64).reshape(-1)
    if values.shape != (2,) or not np.isfinite(values).all():
        raise DataError(f"{tree.path}: {path} is {values}; expected two finite numbers (y, x)")
    return values


def _read_object(tree: Hdf5File, size: int, pixel: NDArray[np.float64], report: InputReport) -> dict[str, Any]:
    """Return the object and the position of its first pixel."""
    sampling = _read_pair(tree, "/object/sampling")
    if not np.allclose(sampling, pixel, rtol=1e-3):
        report.assumptions.append(
            f"the object is left out: its pixel is {sampling} Å, that of the probe {pixel} Å (/object/sampling)"
        )
        return {}
    # The middle of a window is (N − 1)/2 in phaser and N//2 here.
    shift = size // 2 - (size - 1) / 2
    corner = _read_pair(tree, "/object/corner") - shift * sampling
    report.add("object", "/object/data", "", f"origin moved by {shift} pixel from /object/corner")
    obj = flatten_layers(tree.read("/object/data", kinds="c", ndim=(2, 3)), "/object/data", report)
    return {"object": obj, "object_origin": (float(corner[0]), float(corner[1]))}
