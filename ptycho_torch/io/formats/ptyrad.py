"""Results of PtyRAD (HDF5, layouts 1 and 2): object, probe and positions, without patterns."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.formats.layers import flatten_layers
from ptycho_torch.io.formats.lengths import ANGSTROM_M, make_electron_geometry
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.parts import InputReport, ScanParts


class _Paths(NamedTuple):
    """Places of the quantities in one layout."""

    amplitude: str
    phase: str
    probe: str
    corners: str
    shifts: str
    pixel: str
    wavelength: str


LAYOUTS = (
    _Paths(
        "/optimizable_tensors/obja",
        "/optimizable_tensors/objp",
        "/optimizable_tensors/probe",
        "/model_attributes/crop_pos",
        "/optimizable_tensors/probe_pos_shifts",
        "/model_attributes/dx",
        "/model_attributes/lambd",
    ),
    _Paths(
        "/components/object/tensors/amp",
        "/components/object/tensors/phase",
        "/components/probe/tensors/modes",
        "/components/positions/tensors/crop_pos",
        "/components/positions/tensors/shifts",
        "/model_meta/dx",
        "/model_meta/lambd",
    ),
)
"""Layouts 1 and 2."""


class PtyradFormat(Format):
    """Results of PtyRAD."""

    name = "ptyrad"
    title = "model file of PtyRAD (HDF5), a result without patterns"

    def matches(self, file: InputFile) -> bool:
        return file.hdf5 is not None and _find_layout(file.hdf5) is not None

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        tree, report = file.tree, InputReport(self.name)
        paths = _find_layout(tree)
        if paths is None:
            raise DataError(
                f"{file.path}: neither /optimizable_tensors nor /components is in the file; expected a result of "
                "PtyRAD; change `format`"
            )
        probe = tree.read(paths.probe, kinds="c", ndim=(2, 3))
        report.add("probe", paths.probe)
        side = tree.read_number(paths.pixel) * ANGSTROM_M
        report.add("object pixel", paths.pixel, "Å")
        wavelength = tree.read_number(paths.wavelength) * ANGSTROM_M if tree.has(paths.wavelength) else None
        if wavelength is not None:
            report.add("wavelength", paths.wavelength, "Å")
        report.missing.append("patterns: set `patterns_file`, and `measurement`")
        return ScanParts(
            positions=_read_positions(tree, paths, probe.shape[-1], report),
            position_unit="pixel",
            probe=probe,
            object=_read_object(tree, paths, report),
            object_origin=(0.0, 0.0),
            geometry=make_electron_geometry(wavelength, side),
            report=report,
        )


def _find_layout(tree: Hdf5File) -> _Paths | None:
    """Return the places of the quantities; None if the file is of another program."""
    return next((each for each in LAYOUTS if tree.find(each.corners, each.probe)), None)


def _read_positions(tree: Hdf5File, paths: _Paths, size: int, report: InputReport) -> NDArray[np.float64]:
    """Return the centers of the probe windows in pixels of the object."""
    positions = tree.read(paths.corners, kinds="iuf", ndim=2).astype(np.float64) + size // 2
    if positions.shape[1] != 2:
        raise DataError(f"{tree.path}: {paths.corners} has shape {positions.shape}; expected (n, 2)")
    if tree.has(paths.shifts):
        shifts = tree.read(paths.shifts, kinds="iuf", ndim=2)
        if shifts.shape != positions.shape:
            raise DataError(
                f"{tree.path}: {paths.shifts} has shape {shifts.shape}; expected {positions.shape}, as {paths.corners}"
            )
        positions += shifts
    report.add("positions", f"{paths.corners}, {paths.shifts}", "pixel", f"top left + {size // 2} + shift")
    return positions


def _read_object(tree: Hdf5File, paths: _Paths, report: InputReport) -> NDArray[Any]:
    """Return the first object mode, the product of its slices."""
    amplitude = tree.read(paths.amplitude, kinds="f", ndim=(2, 3, 4))
    phase = tree.read(paths.phase, kinds="f", ndim=amplitude.ndim)
    if amplitude.shape != phase.shape:
        raise DataError(
            f"{tree.path}: {paths.amplitude} has shape {amplitude.shape} and {paths.phase} {phase.shape}; expected "
            "equal shapes"
        )
    obj = amplitude * np.exp(1j * phase)
    if obj.ndim == 4:
        if obj.shape[0] > 1:
            report.assumptions.append(f"{paths.amplitude}: the first of {obj.shape[0]} object modes is the object")
        obj = obj[0]
    report.add("object", f"{paths.amplitude}, {paths.phase}", "", "amplitude · exp(i phase)")
    return flatten_layers(obj, paths.amplitude, report)
